# SPDX-License-Identifier: Apache-2.0
"""Requests to the API server, and everything that can come back. The server is a mock."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.kube.mock_apiserver import Handler, MockApiServer

from kmodgate.errors import NodeError
from kmodgate.kube.api import Api, ApiError, Place, node_name

PODS = "/api/v1/pods"


def pod(name: str = "a") -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "n", "uid": f"uid-{name}"}}


def test_an_object_is_read(server: MockApiServer) -> None:
    server.put(PODS, pod())
    answer = Api(server.place).get(PODS, {"fieldSelector": "spec.nodeName=x y"})
    assert [item["metadata"]["name"] for item in answer["items"]] == ["a"]
    assert server.asked("GET")[0][1] == {"fieldSelector": "spec.nodeName=x y"}


def test_the_token_is_read_for_each_request(server: MockApiServer) -> None:
    api = Api(server.place)
    api.get(PODS)
    server.place.token.write_text("")
    with pytest.raises(ApiError, match="no token"):
        api.get(PODS)


def test_a_token_cannot_smuggle_a_header(server: MockApiServer) -> None:
    server.place.token.write_text("a\r\nX-Evil: 1")
    with pytest.raises(ApiError, match="no token"):
        Api(server.place).get(PODS)
    assert not server.requests


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
    ],
)
def test_what_is_no_object_is_an_error(server: MockApiServer, body: bytes, says: str) -> None:
    def fault(handler: Handler) -> bool:
        handler.send(200, body)
        return True

    server.faults["list"] = [fault]
    with pytest.raises(ApiError, match=says):
        Api(server.place).get(PODS)


def test_an_answer_has_a_limit(server: MockApiServer) -> None:
    server.put(PODS, {**pod(), "spec": "x" * 5000})
    assert Api(server.place, max_body=10_000).get(PODS)
    with pytest.raises(ApiError, match="more than 4000 bytes"):
        Api(server.place, max_body=4000).get(PODS)


@pytest.mark.parametrize(("code", "says"), [(403, "ClusterRole"), (401, "token"), (500, "oh"), (302, "302")])
def test_a_refusal_says_what_to_do(server: MockApiServer, code: int, says: str) -> None:
    server.faults["list"] = [lambda handler: handler.send_status(code, "oh", Location="http://127.0.0.1:1/")]
    with pytest.raises(ApiError, match=says) as caught:
        Api(server.place).get(PODS)
    assert caught.value.status == code


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("99999", 60.0), ("-1", None), ("soon", None)])
def test_the_server_may_ask_to_wait_but_not_for_ever(
    server: MockApiServer, header: str, seconds: float | None
) -> None:
    server.faults["list"] = [lambda handler: handler.send_status(429, "later", Retry_After=header)]
    with pytest.raises(ApiError) as caught:
        Api(server.place).get(PODS)
    assert caught.value.retry_after == seconds


def test_nobody_there(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = Place("127.0.0.1", unused.getsockname()[1], tmp_path / "token", None)
        with pytest.raises(ApiError, match=r"127\.0\.0\.1:\d+: Connection refused") as caught:
            Api(place).get(PODS)
    assert caught.value.status is None


def test_plain_http_is_no_tls(server: MockApiServer, tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text("no certificate")
    with pytest.raises(ApiError):
        Api(Place("127.0.0.1", server.place.port, server.place.token, authority)).get(PODS)
    with pytest.raises(ApiError):
        Api(Place("127.0.0.1", server.place.port, server.place.token, tmp_path / "none")).get(PODS)
    assert not server.requests


def watched(api: Api) -> list[str]:
    with api.watch(PODS, {"resourceVersion": "0"}, 30) as events:
        return [str(event["object"]["metadata"]["name"]) for event in events]


def test_a_watch_gives_events_however_they_are_cut(server: MockApiServer) -> None:
    def fault(handler: Handler) -> bool:
        handler.start_stream()
        for byte in b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}\n\n':
            handler.chunk(bytes((byte,)))
        handler.chunk(
            b'{"type":"ADDED","object":{"metadata":{"name":"b"}}}\n{"type":"ADDED","object":{"metadata":'
        )
        handler.chunk(b'{"name":"c"}}}\n')
        handler.chunk(b"")
        return True

    server.faults["watch"] = [fault]
    assert watched(Api(server.place)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "says", "status"),
    [
        (b"nonsense\n", "no JSON", None),
        (b'{"type":1,"object":{}}\n', "without type or object", None),
        (b'{"type":"ADDED"}\n', "without type or object", None),
        (b'{"type":"ERROR","object":{"code":410,"message":"too old"}}\n', "too old", 410),
        (b'{"type":"ERROR","object":{"code":"x"}}\n', "watch of", None),
        (b"x" * 3000, "more than 2000 bytes", 413),
        (b'{"type":"ADDED","object":{"x":"' + b"x" * 3000 + b'"}}\n', "more than 2000 bytes", 413),
    ],
)
def test_a_bad_event_ends_the_watch(
    server: MockApiServer, line: bytes, says: str, status: int | None
) -> None:
    def fault(handler: Handler) -> bool:
        handler.start_stream()
        handler.chunk(line)
        handler.chunk(b"")
        handler.close_connection = True
        return True

    server.faults["watch"] = [fault]
    with pytest.raises(ApiError, match=says) as caught:
        watched(Api(server.place, max_line=2000))
    assert caught.value.status == status


def test_a_watch_that_breaks_off_in_the_middle(server: MockApiServer) -> None:
    def fault(handler: Handler) -> bool:
        handler.start_stream()
        handler.wfile.write(b"ffff\r\n{")
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return True

    server.faults["watch"] = [fault]
    with pytest.raises(ApiError):
        watched(Api(server.place))


def test_a_silent_watch_is_given_up(server: MockApiServer) -> None:
    with pytest.raises(ApiError, match="no answer in time"):
        watched(Api(server.place, silence=0.2))


def test_closing_ends_a_watch_that_waits(server: MockApiServer) -> None:
    api = Api(server.place)
    ended = threading.Event()

    def watch() -> None:
        with contextlib.suppress(ApiError):
            watched(api)
        ended.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    with server.changed:
        assert server.changed.wait_for(lambda: server.watches == 1, 20)
    began = time.monotonic()
    api.close()
    assert ended.wait(20)
    assert time.monotonic() - began < 15
    with pytest.raises(ApiError, match="ending"):
        api.get(PODS)


def test_closing_ends_a_watch_whose_connection_is_being_made(
    server: MockApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api(server.place)
    connect = http.client.HTTPConnection.connect

    def slowly(connection: http.client.HTTPConnection) -> None:
        api.close()
        connect(connection)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", slowly)
    with pytest.raises(ApiError, match="ending"):
        watched(api)


def test_in_a_cluster_or_not(tmp_path: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    assert Place.in_cluster({}, tmp_path) is None
    assert Place.in_cluster(environment, tmp_path) is None
    (tmp_path / "token").write_text("t")
    assert Place.in_cluster(environment, tmp_path) == Place(
        "10.0.0.1", 443, tmp_path / "token", tmp_path / "ca.crt"
    )
    with pytest.raises(NodeError, match="no port"):
        Place.in_cluster({**environment, "KUBERNETES_SERVICE_PORT": "tcp://"}, tmp_path)


def test_the_nodes_name() -> None:
    assert node_name({}) is None
    assert node_name({"NODE_NAME": "gke-a.b-1"}) == "gke-a.b-1"
    for name in ("../secrets", "a,metadata.name=b", "A", "-a", "a" * 254):
        with pytest.raises(NodeError, match="no name of a node"):
            node_name({"NODE_NAME": name})


def certificate(folder: Path, name: str, address: str) -> Path:
    """A self-signed certificate for an address, and its key beside it."""
    made = folder / f"{name}.crt"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                f"/CN={name}",
            ),
            *("-addext", f"subjectAltName=IP:{address}"),
            *("-keyout", folder / f"{name}.key", "-out", made),
        ],
        check=True,
        capture_output=True,
    )
    return made


def test_tls_trusts_the_clusters_authority_and_nobody_else(tmp_path: Path) -> None:
    good = certificate(tmp_path, "good", "127.0.0.1")
    other = certificate(tmp_path, "other", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good, tmp_path / "good.key")
    server = MockApiServer(tmp_path, context)
    authority = tmp_path / "ca.crt"
    authority.write_bytes(good.read_bytes())
    api = Api(replace(server.place, authority=authority))
    try:
        assert api.get(PODS)["items"] == []
        replacement = tmp_path / "new"
        replacement.write_bytes(other.read_bytes())
        replacement.replace(authority)  # the kubelet swaps files, never writes into them
        with pytest.raises(ApiError, match="certificate is not good"):
            api.get(PODS)
    finally:
        server.close()


def test_tls_wants_the_right_name(tmp_path: Path) -> None:
    elsewhere = certificate(tmp_path, "elsewhere", "10.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(elsewhere, tmp_path / "elsewhere.key")
    server = MockApiServer(tmp_path, context)
    try:
        with pytest.raises(ApiError, match="certificate is not good"):
            Api(replace(server.place, authority=elsewhere)).get(PODS)
    finally:
        server.close()
