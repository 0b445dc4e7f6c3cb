# SPDX-License-Identifier: Apache-2.0
"""Requests to the API server as a pod makes them: service account, TLS, JSON, bounds on all of it.

Only ``http.client`` and ``ssl`` of the standard library are used, which the agent has loaded
anyway. Redirects are not followed, proxies not used, and no answer is believed to be small:
a body and a line of a watch have limits, and so has the time for each.

Sources: Kubernetes API concepts (resource versions, watch, bookmarks, 410 Gone).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from kmodgate import __version__
from kmodgate.errors import KmodgateError, NodeError
from kmodgate.fsutil import read_regular_file

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MAX_BODY: Final = 16 << 20
"""Bytes of an answer. etcd holds objects of up to 1.5 MiB; a node has some 110 pods of 5 to 20 KiB."""
MAX_LINE: Final = 4 << 20
"""Bytes of one event of a watch."""

TOO_LARGE: Final = 413
"""Status of our own for an event that is larger; a list may still give the object."""

_TIMEOUT: Final = 10.0
# Bookmarks come about once a minute; a watch that is silent for longer may be dead.
_WATCH_SILENCE: Final = 150.0
_MAX_ERROR_BODY: Final = 64 << 10
_MAX_TOKEN: Final = 64 << 10
_CHUNK: Final = 64 << 10
_MAX_RETRY_AFTER: Final = 60.0
_REMEDY: Final = {
    401: "; the service account's token is not accepted",
    403: "; grant the right as the chart's ClusterRole does",
}
_NODE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)

Json = dict[str, Any]


class ApiError(KmodgateError):
    """The API server did not give what was asked for.

    Args:
        message: what happened, and what to do where something can be done.
        status: HTTP status, or that of an ERROR event; None when there was no answer.
        retry_after: seconds that the server asks to wait.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Place:
    """Where the API server is and who we are there.

    Attributes:
        host: name or address.
        port: of the server.
        token: file with the bearer token; it is read anew for each request, because it is rotated.
        authority: file with the certificates of the cluster's authority; None for plain HTTP.
    """

    host: str
    port: int
    token: Path
    authority: Path | None

    @staticmethod
    def in_cluster(environment: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Place | None:
        """As a pod's environment tells; None outside a cluster or without a service account."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
        if not host or not port or not (account / "token").is_file():
            return None
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise NodeError(f"KUBERNETES_SERVICE_PORT is {port[:40]!a}, no port; the kubelet sets it")
        return Place(host, int(port), account / "token", account / "ca.crt")


def node_name(environment: Mapping[str, str]) -> str | None:
    """``NODE_NAME``, which the chart takes from the downward API; None when it is not set.

    Raises:
        NodeError: it is no name of a node.
    """
    name = environment.get("NODE_NAME")
    if not name:
        return None
    if not _NODE_NAME.fullmatch(name):
        raise NodeError(f"NODE_NAME is {name[:300]!a}, no name of a node; take it from spec.nodeName")
    return name


class Api:
    """The API server. Safe to use from several threads: each request has a connection of its own.

    Args:
        place: where it is.
        max_body: bytes that an answer may have.
        max_line: bytes that an event of a watch may have.
        silence: seconds without a byte after which a watch is given up.
    """

    def __init__(
        self,
        place: Place,
        *,
        max_body: int = MAX_BODY,
        max_line: int = MAX_LINE,
        silence: float = _WATCH_SILENCE,
    ) -> None:
        self._place = place
        self._max_body = max_body
        self._max_line = max_line
        self._silence = silence
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._closed = False
        self._context: ssl.SSLContext | None = None
        self._context_made_from: tuple[int, int] | None = None

    def close(self) -> None:
        """End every request, watches included, whatever they wait for."""
        with self._lock:
            self._closed = True
            connections = list(self._open)
        for connection in connections:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Json:
        """An object or a list. Raises ApiError."""
        return self._call("GET", path, query)

    def post(self, path: str, body: Json) -> Json:
        """Create an object. Raises ApiError."""
        return self._call("POST", path, None, body, "application/json")

    def patch(self, path: str, body: Json) -> Json:
        """Change an object by a strategic merge patch. Raises ApiError."""
        return self._call("PATCH", path, None, body, "application/strategic-merge-patch+json")

    @contextlib.contextmanager
    def watch(self, path: str, query: Mapping[str, str], lifetime: float) -> Iterator[Iterator[Json]]:
        """A watch: within the block it stands, and gives its events until ``lifetime`` is over.

        Raises:
            ApiError: it cannot be had, or breaks; status 410: what it should go on from is gone.
        """
        asked = {**query, "watch": "true", "timeoutSeconds": str(int(lifetime))}
        with self._request("GET", path, asked, timeout=self._silence) as response:
            yield self._events(response, path, time.monotonic() + lifetime + _TIMEOUT)

    def _events(self, response: http.client.HTTPResponse, path: str, deadline: float) -> Iterator[Json]:
        pending = bytearray()
        while time.monotonic() < deadline:
            chunk = response.read1(_CHUNK)
            if not chunk:
                return
            pending += chunk
            if b"\n" not in chunk and len(pending) <= self._max_line:
                continue  # nothing is searched twice
            *lines, rest = pending.split(b"\n")
            if max(map(len, (*lines, rest))) > self._max_line:
                raise ApiError(
                    f"watch of {path}: an event of more than {self._max_line} bytes", status=TOO_LARGE
                )
            pending = rest
            for line in lines:
                if line.strip():
                    yield _event(bytes(line), path)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Json | None = None,
        kind: str = "",
    ) -> Json:
        with self._request(method, path, query or {}, body=body, kind=kind) as response:
            deadline = time.monotonic() + _TIMEOUT
            data = bytearray()
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > self._max_body:
                    raise ApiError(f"{method} {path}: the answer has more than {self._max_body} bytes")
                if time.monotonic() > deadline:
                    raise ApiError(f"{method} {path}: the answer is not whole after {_TIMEOUT:g} s")
            return _json(bytes(data), f"{method} {path}")

    @contextlib.contextmanager
    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        body: Json | None = None,
        kind: str = "",
        timeout: float = _TIMEOUT,
    ) -> Iterator[http.client.HTTPResponse]:
        """A request whose answer is good. Everything that can go wrong is an ApiError."""
        what = f"{method} {path}"
        headers = {"Accept": "application/json", "User-Agent": f"kmodgate/{__version__}"}
        if kind:
            headers["Content-Type"] = kind
        target = f"{path}?{urlencode(query)}" if query else path
        connection: http.client.HTTPConnection | None = None
        try:
            headers["Authorization"] = f"Bearer {self._token()}"
            connection = self._connection()
            self._register(connection)
            connection.connect()
            self._register(connection)  # close() has no hold on a connection that is being made
            _keep_alive(connection.sock)
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            if not http.HTTPStatus.OK <= response.status < http.HTTPStatus.MULTIPLE_CHOICES:
                raise _refused(response, what)
            connection.sock.settimeout(timeout)
            yield response
        except ssl.SSLCertVerificationError as error:
            raise ApiError(
                f"{what}: the API server's certificate is not good: {error.verify_message}"
            ) from None
        except (OSError, http.client.HTTPException, KmodgateError) as error:
            if isinstance(error, ApiError):
                raise
            raise ApiError(f"{what}: {self._place.host}:{self._place.port}: {_shown(error)}") from None
        finally:
            if connection is not None:
                with self._lock:
                    self._open.discard(connection)
                connection.close()

    def _register(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if self._closed:
                raise ApiError("the agent is ending")
            self._open.add(connection)

    def _connection(self) -> http.client.HTTPConnection:
        place = self._place
        if place.authority is None:
            return http.client.HTTPConnection(place.host, place.port, timeout=_TIMEOUT)
        return http.client.HTTPSConnection(
            place.host, place.port, timeout=_TIMEOUT, context=self._tls(place.authority)
        )

    def _tls(self, authority: Path) -> ssl.SSLContext:
        """A context that trusts the cluster's authority and nobody else; made anew when the file changes."""
        state = authority.stat()
        made_from = (state.st_ino, state.st_mtime_ns)
        with self._lock:
            if self._context is None or made_from != self._context_made_from:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                context.load_verify_locations(authority)
                self._context, self._context_made_from = context, made_from
            return self._context

    def _token(self) -> str:
        token = read_regular_file(self._place.token, _MAX_TOKEN).strip()
        if not re.fullmatch(rb"[\x21-\x7e]+", token):
            raise ApiError(f"{self._place.token}: no token; the kubelet writes it")
        return token.decode("ascii")


def _keep_alive(sock: socket.socket) -> None:
    """Notice a server that is gone without a word within a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _refused(response: http.client.HTTPResponse, what: str) -> ApiError:
    said = ""
    with contextlib.suppress(ApiError, OSError, http.client.HTTPException):
        said = str(_json(response.read(_MAX_ERROR_BODY), what).get("message", ""))[:300]
    remedy = _REMEDY.get(response.status, "")
    retry = response.getheader("Retry-After", "")
    return ApiError(
        f"{what}: the API server answers {response.status}: {said!a}{remedy}",
        status=response.status,
        retry_after=min(float(retry), _MAX_RETRY_AFTER) if retry.isdecimal() else None,
    )


def _shown(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)[:300]


def _json(data: bytes, what: str) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ApiError(f"{what}: the answer is no JSON") from None
    if not isinstance(value, dict):
        raise ApiError(f"{what}: the answer is no JSON object")
    return value


def _event(line: bytes, path: str) -> Json:
    event = _json(line, f"watch of {path}")
    if not isinstance(event.get("type"), str) or not isinstance(event.get("object"), dict):
        raise ApiError(f"watch of {path}: an event without type or object")
    if event["type"] == "ERROR":
        code = event["object"].get("code")
        raise ApiError(
            f"watch of {path}: {str(event['object'].get('message', ''))[:300]!a}",
            status=code if isinstance(code, int) else None,
        )
    return event


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")
