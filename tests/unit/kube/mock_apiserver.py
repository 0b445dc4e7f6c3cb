# SPDX-License-Identifier: Apache-2.0
"""A mock of the API server: real HTTP on loopback, list and watch of what a test puts in, and faults.

It is no API server: no storage, no admission, no RBAC. What a real one answers is tested against a
real one (``make test-apiserver``).
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kmodgate.kube.api import Place

Json = dict[str, Any]


class MockApiServer:
    """Objects by path of their collection, and everything that was asked.

    Attributes:
        requests: ``(method, path, query, body)`` in order.
        faults: taken one by one by the next requests of a kind (``"list"``, ``"watch"``,
            ``"POST"``, ``"PATCH"``); each gets the handler and says whether it has answered.
    """

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[str, dict[str, Json]] = {}
        self.requests: list[tuple[str, str, dict[str, str], Json | None]] = []
        self.faults: dict[str, list[Callable[[Handler], bool]]] = {}
        self.version = 100
        self.history: list[tuple[int, str, Json]] = []
        self.changed = threading.Condition()
        self.closing = False
        self.watches = 0
        (folder / "token").write_text("secret-token\n")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.mock = self  # type: ignore[attr-defined]
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.place = Place("127.0.0.1", self.server.server_address[1], folder / "token", None)

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()

    def put(self, path: str, item: Json) -> None:
        with self.changed:
            self.version += 1
            item = json.loads(json.dumps(item))
            item["metadata"]["resourceVersion"] = str(self.version)
            known = self.objects.setdefault(path, {})
            name = item["metadata"]["name"]
            kind = "MODIFIED" if name in known else "ADDED"
            known[name] = item
            self.tell(path, kind, item)

    def delete(self, path: str, name: str) -> None:
        with self.changed:
            self.version += 1
            item = self.objects[path].pop(name)
            item["metadata"]["resourceVersion"] = str(self.version)
            self.tell(path, "DELETED", item)

    def tell(self, path: str, kind: str, item: Json) -> None:
        with self.changed:
            self.history.append((self.version, path, {"type": kind, "object": item}))
            self.changed.notify_all()

    def asked(
        self, method: str, *, watch: bool | None = None
    ) -> list[tuple[str, dict[str, str], Json | None]]:
        return [
            (path, query, body)
            for verb, path, query, body in list(self.requests)
            if verb == method and (watch is None or ("watch" in query) == watch)
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def mock(self) -> MockApiServer:
        return self.server.mock  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_status(self, code: int, message: str, **headers: str) -> bool:
        self.send(code, json.dumps({"kind": "Status", "code": code, "message": message}).encode(), **headers)
        return True

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def do_GET(self) -> None:
        path, query = self.note(None)
        kind = "watch" if "watch" in query else "list"
        if self.faulty(kind):
            return
        if kind == "watch":
            self.watch(path, int(query["resourceVersion"]), float(query["timeoutSeconds"]))
            return
        with self.mock.changed:
            items = list(self.mock.objects.get(path, {}).values())
            version = self.mock.version
        page = {"metadata": {"resourceVersion": str(version)}, "items": items}
        self.send(200, json.dumps(page).encode())

    def do_POST(self) -> None:
        self.write("POST")

    def do_PATCH(self) -> None:
        self.write("PATCH")

    def write(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.note(body)
        if not self.faulty(method):
            self.send(200, json.dumps(body).encode())

    def note(self, body: Json | None) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        assert self.headers["Authorization"] == "Bearer secret-token"
        self.mock.requests.append((self.command, parts.path, query, body))
        return parts.path, query

    def faulty(self, kind: str) -> bool:
        waiting = self.mock.faults.get(kind)
        return bool(waiting) and waiting.pop(0)(self)  # type: ignore[union-attr]

    def watch(self, path: str, version: int, lifetime: float) -> None:
        self.start_stream()
        mock, deadline = self.mock, time.monotonic() + lifetime
        with mock.changed:
            mock.watches += 1
            mock.changed.notify_all()
        try:
            while time.monotonic() < deadline and not mock.closing:
                with mock.changed:
                    new = [entry for entry in mock.history if entry[0] > version and entry[1] == path]
                    if not new:
                        mock.changed.wait(0.5)
                        continue
                for number, _, event in new:
                    self.chunk(json.dumps(event).encode() + b"\n")
                    version = number
            self.chunk(b"")
        finally:
            with mock.changed:
                mock.watches -= 1
                mock.changed.notify_all()
        self.close_connection = True
