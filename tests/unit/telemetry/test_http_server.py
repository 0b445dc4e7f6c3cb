# SPDX-License-Identifier: Apache-2.0
"""The HTTP server over real loopback connections, well-behaved and otherwise."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from kmodgate.errors import InputError, NodeError
from kmodgate.telemetry.http import TelemetryServer


class Checks:
    """What the two checks find."""

    def __init__(self) -> None:
        self.health: str | None = None
        self.readiness: str | None = "no policy yet"

    def healthy(self) -> str | None:
        if self.health == "raise":
            raise RuntimeError("secret detail")
        return self.health

    def ready(self) -> str | None:
        return self.readiness


@pytest.fixture
def checks() -> Checks:
    return Checks()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(42)
    return registry


@pytest.fixture
def server(registry: CollectorRegistry, checks: Checks) -> Iterator[TelemetryServer]:
    with TelemetryServer(
        "127.0.0.1",
        0,
        registry=registry,
        healthy=checks.healthy,
        ready=checks.ready,
        max_connections=4,
        request_seconds=0.6,
    ) as running:
        yield running


def get(
    server: TelemetryServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  # the same
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def raw(server: TelemetryServer, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def total(families: Iterable[Metric]) -> list[float]:
    return [s.value for family in families for s in family.samples if s.name == "things_total"]


def test_text_format(server: TelemetryServer) -> None:
    code, headers, body = get(server, "/metrics?anything=1")
    assert code == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert total(parse_text(body.decode())) == [42]


def test_openmetrics_format(server: TelemetryServer) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"
    code, headers, body = get(server, "/metrics", Accept=accept)
    assert code == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert total(parse_openmetrics(body.decode())) == [42]  # type: ignore[no-untyped-call]


def test_gzip(server: TelemetryServer) -> None:
    _, headers, body = get(server, "/metrics", **{"Accept-Encoding": "deflate, gzip;q=0.9"})
    assert headers["Content-Encoding"] == "gzip"
    assert total(parse_text(gzip.decompress(body).decode())) == [42]


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=abc",
        "application/openmetrics-text;version=1.x",
        "text/plain;version=99999999999999999999.0;escaping=nonsense",
        "application/openmetrics-text;version=1.0.0;escaping=\x01",
        ";;;,,,=",
        "a" * 4000,
        "application/openmetrics-text;version=1.0.0\r\n X-Evil: 1",
    ],
)
def test_hostile_accept_headers(server: TelemetryServer, accept: str) -> None:
    answer = raw(server, f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"X-Evil" not in head
    assert b"things_total" in body


def test_head_has_the_same_headers_and_no_body(server: TelemetryServer) -> None:
    _, headers, body = get(server, "/metrics")
    code, head, nothing = get(server, "/metrics", method="HEAD")
    assert (code, nothing) == (200, b"")
    assert head["Content-Length"] == headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(server: TelemetryServer, method: str) -> None:
    code, headers, _ = get(server, "/metrics", method=method)
    assert (code, headers["Allow"]) == (405, "GET, HEAD")


def test_unknown_methods_paths_and_nonsense(server: TelemetryServer) -> None:
    assert get(server, "/metrics", method="BREW")[0] == 501
    assert get(server, "/other")[0] == 404
    assert get(server, "/")[0] == 200
    assert b"<" not in get(server, "/%3Cscript%3E")[2]
    assert raw(server, b"\x16\x03\x01\x02\x00\x01").startswith((b"HTTP/1.0 400", b"400"))
    assert raw(server, b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 414")


def test_nothing_identifies_the_interpreter(server: TelemetryServer) -> None:
    assert "Python" not in get(server, "/metrics")[1]["Server"]


def test_health_and_readiness(server: TelemetryServer, checks: Checks) -> None:
    assert get(server, "/healthz")[::2] == (200, b"ok\n")
    assert get(server, "/readyz")[::2] == (503, b"no policy yet\n")
    checks.readiness = None
    assert get(server, "/readyz")[::2] == (200, b"ok\n")
    checks.health = "the loop is stuck"
    assert get(server, "/healthz")[::2] == (503, b"the loop is stuck\n")
    checks.health = "raise"
    code, _, body = get(server, "/healthz")
    assert (code, body) == (503, b"the check itself failed: RuntimeError\n")


def test_a_slow_sender_is_cut_off_in_time(server: TelemetryServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        begin = time.monotonic()
        with contextlib.suppress(OSError):  # reset or broken pipe, as it comes
            while time.monotonic() - begin < 4:
                connection.sendall(b"G")  # a byte now and then must not buy time
                time.sleep(0.1)
        assert 0.5 < time.monotonic() - begin < 2


def test_too_many_connections_are_told_so_and_the_server_recovers(server: TelemetryServer) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(4)]
    time.sleep(0.1)
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as one_more:
            assert one_more.recv(100).startswith(b"HTTP/1.0 503 ")
    finally:
        for connection in idle:
            connection.close()
    end = time.monotonic() + 3
    while get_code(server) != 200:
        assert time.monotonic() < end
        time.sleep(0.02)


def get_code(server: TelemetryServer) -> int:
    try:
        return get(server, "/healthz")[0]
    except OSError:
        return 0


def test_stop_ends_open_connections_and_threads(registry: CollectorRegistry) -> None:
    before = set(threading.enumerate())
    server = TelemetryServer("127.0.0.1", 0, registry=registry, request_seconds=30)
    server.start()
    port = server.port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /met")
        time.sleep(0.1)
        begin = time.monotonic()
        server.stop()
        server.stop()
        assert time.monotonic() - begin < 3
    assert set(threading.enumerate()) <= before
    with pytest.raises(OSError):  # noqa: PT011  # refused
        socket.create_connection(("127.0.0.1", port), timeout=1)


def switches(thread: threading.Thread) -> int:
    """How often a thread has gone to sleep."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_it_sleeps_until_somebody_connects(server: TelemetryServer) -> None:
    thread = server._thread
    assert thread is not None
    get(server, "/metrics")
    time.sleep(0.5)
    before = switches(thread)
    time.sleep(2.5)
    assert switches(thread) == before


def test_a_server_that_was_never_started_can_be_stopped(registry: CollectorRegistry) -> None:
    TelemetryServer("127.0.0.1", 0, registry=registry).stop()


def test_taken_port_names_the_address_and_the_remedy(
    server: TelemetryServer, registry: CollectorRegistry
) -> None:
    with pytest.raises(NodeError, match=rf"127\.0\.0\.1:{server.port}: the port is taken.*kmodgate\.listen"):
        TelemetryServer("127.0.0.1", server.port, registry=registry)


def test_addresses_that_cannot_be(registry: CollectorRegistry) -> None:
    with pytest.raises(InputError, match=r"192\.0\.2\.1:9464: this node does not have that address"):
        TelemetryServer("192.0.2.1", 9464, registry=registry)
    with pytest.raises(InputError, match="no such address"):
        TelemetryServer("not an address", 9464, registry=registry)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 in this interpreter")
def test_ipv6(registry: CollectorRegistry) -> None:
    try:
        server = TelemetryServer("::1", 0, registry=registry)
    except InputError:
        pytest.skip("no IPv6 loopback on this machine")
    with server:
        connection = http.client.HTTPConnection("::1", server.port, timeout=5)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises(NodeError, match=rf"\[::1\]:{server.port}"):
            TelemetryServer("::1", server.port, registry=registry)
