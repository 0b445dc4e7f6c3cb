# SPDX-License-Identifier: Apache-2.0
"""OTLP: what is sent, to a receiver that is well, away, slow, full, wrong or hostile."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vectors.generate import make_identity

from kmodgate import __version__
from kmodgate.model import LoadEvent, Verdict
from kmodgate.telemetry.events import MissingEvents, to_json
from kmodgate.telemetry.lines import Loss, no_statement
from kmodgate.telemetry.otlp import export_request, rejected
from kmodgate.telemetry.otlpsink import OtlpEndpoint, OtlpTarget
from kmodgate.telemetry.sink import Patience, Sink

PATIENCE = Patience()
Change = Callable[..., LoadEvent]


@dataclass
class Receiver:
    """A collector: what it got, and what it answers, one answer a request; at the end 200 for ever."""

    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: dict[Any, socket.socket] = field(default_factory=dict)
    port: int = 0

    def records(self) -> list[dict[str, Any]]:
        return [
            record
            for _, _, body in self.requests
            for resource in json.loads(body)["resourceLogs"]
            for scope in resource["scopeLogs"]
            for record in scope["logRecords"]
        ]


@contextmanager
def receiving(receiver: Receiver, context: ssl.SSLContext | None = None) -> Iterator[OtlpEndpoint]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_POST(self) -> None:
            receiver.connections[self.client_address] = self.connection
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append((self.path, dict(self.headers.items()), body))
            status, headers, answer = receiver.answers.pop(0) if receiver.answers else (200, {}, b"{}")
            self.send_response(status)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", receiver.port), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield OtlpEndpoint("127.0.0.1", server.server_address[1], timeout=5.0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in receiver.connections.values():
            with suppress(OSError):  # the client hung up first
                connection.shutdown(socket.SHUT_RDWR)


def quick(endpoint: OtlpEndpoint, **values: Any) -> OtlpTarget:
    return OtlpTarget(endpoint, first_pause=0.01, jitter=lambda: 1.0, **values)


def attributes(record: dict[str, Any]) -> dict[str, Any]:
    return {
        item["key"]: next(iter(item["value"].values())) for item in record["attributes"]
    }  # one value each


@pytest.fixture
def line(denial: LoadEvent) -> bytes:
    return to_json(denial, sequence=7).encode() + b"\n"


def test_a_record_whole(line: bytes) -> None:
    document = json.loads(export_request([line], observed_ns=2**63 + 1, node="node-a"))
    (resource,) = document["resourceLogs"]
    assert resource["resource"]["attributes"] == [
        {"key": "service.name", "value": {"stringValue": "kmodgate"}},
        {"key": "service.version", "value": {"stringValue": __version__}},
        {"key": "k8s.node.name", "value": {"stringValue": "node-a"}},
    ]
    (scope,) = resource["scopeLogs"]
    assert scope["scope"] == {"name": "kmodgate.events", "version": __version__}
    (record,) = scope["logRecords"]
    assert attributes(record) == {
        "event.name": "kmodgate.module_load",
        "kmodgate.verdict": "deny",
        "kmodgate.reason": "untrusted_signer",
        "kmodgate.mode": "enforce",
        "kmodgate.by": "kmodgate",
        "kmodgate.module": "evil",
        "kmodgate.sequence": "7",
        "file.path": "/tmp/evil.ko",
        "process.pid": "4711",
        "process.executable.path": "/usr/bin/kmod",
        "container.id": "c" * 64,
        "k8s.pod.uid": "0d3b1c52-0000-4000-8000-000000000001",
        "k8s.pod.name": "loader-0",
        "k8s.namespace.name": "default",
    }
    del record["attributes"]
    assert record == {
        "timeUnixNano": "1772600767000089000",
        "observedTimeUnixNano": "9223372036854775809",
        "severityNumber": 17,
        "severityText": "ERROR",
        "eventName": "kmodgate.module_load",
        "body": {"stringValue": line.decode().rstrip("\n")},
    }


@pytest.mark.parametrize(
    ("verdict", "severity"), [(Verdict.ALLOW, 9), (Verdict.WOULD_DENY, 13), (Verdict.DENY, 17)]
)
def test_severity(change: Change, verdict: Verdict, severity: int) -> None:
    text = to_json(change(verdict=verdict)).encode()
    document = json.loads(export_request([text], observed_ns=0))
    assert document["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["severityNumber"] == severity


def test_what_is_missing_is_a_record_too() -> None:
    missing = MissingEvents(dict)
    statement = missing({Loss.QUEUE_FULL: 3}, final=False)
    assert statement is not None
    document = json.loads(export_request([statement.line], observed_ns=0))
    record = document["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    assert (record["severityText"], record["eventName"]) == ("WARN", "kmodgate.suppressed")


@given(st.text(max_size=50) | st.binary(max_size=50).map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_hostile_strings_are_printable_ascii_on_the_way(name: str) -> None:
    from tests.unit.telemetry.conftest import DENIAL  # noqa: PLC0415  # hypothesis takes no fixture

    text = to_json(replace(DENIAL, module=name, path=name, comm=name, exe=name)).encode()
    body = export_request([text], observed_ns=0)
    assert body.isascii()
    record = json.loads(body)["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    assert all(value.isprintable() for value in attributes(record).values())
    assert record["body"]["stringValue"].isprintable()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", (0, "")),
        (b"{}", (0, "")),
        (b'{"partialSuccess": {"rejectedLogRecords": "3", "errorMessage": "old"}}', (3, "old")),
        (b'{"partialSuccess": {"rejectedLogRecords": 2}}', (2, "")),
        (b'{"partialSuccess": {"rejectedLogRecords": -2}}', (0, "")),
        (b'{"partialSuccess": [1]}', (0, "")),
        (b'{"partialSuccess": {"rejectedLogRecords": {}}}', (0, "")),
        (b"[]", (0, "")),
        (b"\xff", (0, "")),
        (b"[" * 50_000, (0, "")),
    ],
)
def test_partial_success(answer: bytes, expected: tuple[int, str]) -> None:
    assert rejected(answer) == expected


def test_events_arrive_over_one_connection(line: bytes) -> None:
    receiver = Receiver()
    with receiving(receiver) as endpoint:
        target = quick(endpoint)
        for _ in range(3):
            assert target.deliver([line, line], PATIENCE).count == 2
        target.close()
    assert len(receiver.records()) == 6
    assert len(receiver.connections) == 1
    path, headers, _ = receiver.requests[0]
    assert path == "/v1/logs"
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"] == f"kmodgate/{__version__}"
    assert "Authorization" not in headers


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(line: bytes, status: int) -> None:
    receiver = Receiver(answers=[(status, {"Retry-After": "0"}, b""), (status, {}, b"busy")])
    with receiving(receiver) as endpoint:
        assert quick(endpoint).deliver([line], PATIENCE).count == 1
    assert len(receiver.requests) == 3
    assert len({body.partition(b"observed")[0] for _, _, body in receiver.requests}) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 500])
def test_what_is_refused_is_not(line: bytes, status: int) -> None:
    receiver = Receiver(answers=[(status, {"Location": "http://127.0.0.1:1/"}, b"no\x1b[2J")])
    with receiving(receiver) as endpoint:
        done = quick(endpoint).deliver([line], PATIENCE)
    assert done.count == 0
    assert done.problem is not None
    assert done.problem.startswith(f"http://127.0.0.1:{endpoint.port}/v1/logs: refused with {status} ")
    assert done.problem.isprintable()
    assert len(receiver.requests) == 1


def test_records_that_the_receiver_throws_away_are_counted(line: bytes) -> None:
    answer = b'{"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": "too old\\u001b"}}'
    with receiving(Receiver(answers=[(200, {}, answer)])) as endpoint:
        done = quick(endpoint).deliver([line, line], PATIENCE)
    assert done.count == 1
    assert done.problem is not None
    assert done.problem.endswith(r"took a batch but for some records: too old\x1b")


def test_a_receiver_that_comes_back(line: bytes) -> None:
    """Gone in between, with a connection that was kept; nothing is lost."""
    receiver = Receiver()
    with receiving(receiver) as endpoint:
        target = quick(endpoint)
        assert target.deliver([line], PATIENCE).count == 1
    receiver.port = endpoint.port
    done = list[int]()
    thread = threading.Thread(target=lambda: done.append(target.deliver([line], PATIENCE).count))
    thread.start()
    time.sleep(0.2)
    assert not done
    with receiving(receiver):
        thread.join(30)
    assert done == [1]
    assert len(receiver.records()) == 2


def test_a_batch_is_given_up_in_the_end(line: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    start = time.monotonic()
    done = quick(OtlpEndpoint("127.0.0.1", port), max_age=0.3).deliver([line], PATIENCE)
    assert time.monotonic() - start < 5
    assert (done.count, done.problem) == (0, f"http://127.0.0.1:{port}/v1/logs: connection refused")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 " + b"2" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000,
    ],
)
def test_an_answer_that_is_none(line: bytes, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            server.settimeout(0.05)
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(1)
                    try:
                        connection.recv(65536)
                        connection.sendall(answer)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = OtlpEndpoint("127.0.0.1", server.getsockname()[1], timeout=2.0)
        done = quick(endpoint, max_age=0.2).deliver([line], PATIENCE)
        stop.set()
        thread.join()
    assert done.count == 0
    assert done.problem is not None
    assert done.problem.isprintable()


def test_an_answer_that_drips_is_not_waited_for(line: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"X: y\r\n")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        start = time.monotonic()
        endpoint = OtlpEndpoint("127.0.0.1", server.getsockname()[1], timeout=0.5)
        done = quick(endpoint, max_age=0.1).deliver([line], PATIENCE)
        assert time.monotonic() - start < 5
        assert done.count == 0
        stop.set()
        thread.join()


def test_the_end_does_not_wait_for_a_receiver_that_is_away(line: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, answers nothing
        endpoint = OtlpEndpoint("127.0.0.1", silent.getsockname()[1], timeout=30.0)
        sink = Sink("otlp", OtlpTarget(endpoint), statements=no_statement)
        for _ in range(300):
            sink.put({}, line)
        time.sleep(0.1)
        start = time.monotonic()
        sink.stop(0.3)
        sink.join()
        assert time.monotonic() - start < 5


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate of 127.0.0.1, and a server that has it."""
    import subprocess  # noqa: PLC0415  # here alone

    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=receiver",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


def test_tls_and_token(line: bytes, tls: tuple[Path, ssl.SSLContext], tmp_path: Path) -> None:
    certificate, context = tls
    token = tmp_path / "token"
    token.write_text("  s3cret \n")
    receiver = Receiver()
    with receiving(receiver, context) as endpoint:
        secure = replace(endpoint, tls=True, ca_certificate=certificate, token_file=token)
        target = quick(secure)
        assert target.deliver([line], PATIENCE).count == 1
        token.write_text("renewed")
        assert target.deliver([line], PATIENCE).count == 1
        target.reopen()
        assert target.deliver([line], PATIENCE).count == 1
        target.close()
    told = [headers["Authorization"] for _, headers, _ in receiver.requests]
    assert told == ["Bearer s3cret", "Bearer s3cret", "Bearer renewed"]
    assert str(secure).startswith("https://127.0.0.1:")


def test_a_receiver_that_nobody_vouches_for(
    line: bytes, tls: tuple[Path, ssl.SSLContext], tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(make_identity("other").pem)
    receiver = Receiver()
    with receiving(receiver, tls[1]) as endpoint:
        for ca in (None, other):
            secure = replace(endpoint, tls=True, ca_certificate=ca)
            done = quick(secure, max_age=0.1).deliver([line], PATIENCE)
            assert done.count == 0
            assert "CERTIFICATE_VERIFY_FAILED" in str(done.problem)
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("token_file", b"", "holds no token"),
        ("token_file", b"two\nlines", "holds no token"),
        ("token_file", "schlüssel".encode(), "holds no token"),
        ("token_file", None, "no such file or directory"),
        ("ca_certificate", b"nothing", "no PEM certificates"),
        ("ca_certificate", b"\xff", "no PEM certificates"),
        ("ca_certificate", None, "no such file or directory"),
    ],
)
def test_files_that_cannot_be_used(
    line: bytes, tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    endpoint = OtlpEndpoint("127.0.0.1", 9, tls=True, ca_certificate=file)
    if name == "token_file":
        endpoint = OtlpEndpoint("127.0.0.1", 9, token_file=file)
    done = quick(endpoint, max_age=0.02).deliver([line], PATIENCE)
    assert done.count == 0
    assert f"{file}: " in str(done.problem)
    assert says in str(done.problem)
