# SPDX-License-Identifier: Apache-2.0
"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP.

Small on purpose: GET and HEAD, one request a connection, a bound on connections and on the
time that each may take, however slowly it sends. Nothing that a client does reaches the
agent's other threads, and no request is logged. Where passwords are asked for, the health checks answer
without one, by their status alone: whoever starts pods has no password.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import logging
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from kmodgate.errors import InputError, NodeError

from .access import Access

log = logging.getLogger(__name__)

Check = Callable[[], str | None]
"""A health check: None when all is well, else what is wrong, in one line."""

MAX_CONNECTIONS: Final = 16
REQUEST_SECONDS: Final = 5.0
TEXT: Final = "text/plain; charset=utf-8"

_BUSY: Final = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n"
    b"Retry-After: 1\r\n\r\ntoo many connections\n"
)
_INDEX: Final = """\
kmodgate

/metrics  Prometheus or OpenMetrics
/healthz  the agent's loop turns
/readyz   the policy is in force
"""


def always_well() -> str | None:
    """The check that never finds anything."""
    return None


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    encoding: str = ""


_WHO = _Answer(HTTPStatus.UNAUTHORIZED, b"user and password, please\n")


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until a moment, not for so long a call: a byte now and then buys no time."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        super().__init__()
        self._connection = connection
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    """One request. Everything it answers comes from the server's registry and checks."""

    server_version = "kmodgate"
    sys_version = ""
    error_content_type = TEXT
    error_message_format = "%(code)d %(message)s\n"
    server: _Server

    def setup(self) -> None:
        seconds = self.server.request_seconds
        if isinstance(self.request, ssl.SSLSocket):
            self.request.settimeout(seconds)
            self.request.do_handshake()
        super().setup()
        self.rfile = io.BufferedReader(_DeadlineReader(self.connection, seconds))
        # For sendall() this is the limit of the whole answer.
        self.connection.settimeout(seconds)

    def do_GET(self) -> None:
        self._send(self._answer())

    def do_HEAD(self) -> None:
        self._send(self._answer())

    def _refuse(self) -> None:
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815  # http.server's names

    def _answer(self) -> _Answer:
        access = self.server.access
        known = access is None or access.admits(self.headers.get("Authorization"))
        match self.path.partition("?")[0]:
            case "/healthz":
                return _checked(self.server.healthy, detail=known)
            case "/readyz":
                return _checked(self.server.ready, detail=known)
            case _ if not known:
                return _WHO
            case "/metrics":
                return self._metrics()
            case "/":
                return _Answer(HTTPStatus.OK, _INDEX.encode())
        return _Answer(HTTPStatus.NOT_FOUND, b"there is only /metrics, /healthz and /readyz\n")

    def _metrics(self) -> _Answer:
        accept = self.headers.get("Accept", "")
        if not accept.isprintable():  # a folded header: part of it comes back in Content-Type
            accept = ""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        body = encode(self.server.registry)
        if gzip_accepted(self.headers.get("Accept-Encoding", "")):
            return _Answer(HTTPStatus.OK, gzip.compress(body, 1), content_type, "gzip")
        return _Answer(HTTPStatus.OK, body, content_type)

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="kmodgate"')
        if answer.encoding:
            self.send_header("Content-Encoding", answer.encoding)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.connection.settimeout(self.server.request_seconds)
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Log nothing."""


def _checked(check: Check, *, detail: bool = True) -> _Answer:
    try:
        problem = check()
    except Exception as error:  # a check that fails has found something
        problem = f"the check itself failed: {type(error).__name__}"
        log.exception("health check failed")
    if problem is None:
        return _Answer(HTTPStatus.OK, b"ok\n")
    if not detail:
        return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"not well\n")
    return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{problem}\n".encode("utf-8", "backslashreplace"))


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each connection, up to a limit. ``HTTPServer`` would ask DNS for its own name."""

    allow_reuse_address = True
    request_queue_size = 32
    daemon_threads = False
    block_on_close = True

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[Any, ...],
        *,
        registry: CollectorRegistry,
        healthy: Check,
        ready: Check,
        max_connections: int,
        request_seconds: float,
        access: Access | None,
    ) -> None:
        self.access = access
        self.address_family = family
        self.registry = registry
        self.healthy = healthy
        self.ready = ready
        self.request_seconds = request_seconds
        self._slots = threading.BoundedSemaphore(max_connections)
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread, or say at once that there are too many."""
        context = None if self.access is None else self.access.context()
        if not self._slots.acquire(blocking=False):
            with contextlib.suppress(OSError):
                if context is None:
                    request.settimeout(0)
                    request.send(_BUSY)
            self.shutdown_request(request)
            return
        try:
            if context is not None:
                # Nothing is read here: the thread of the connection shakes hands.
                request = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            with self._open_lock:
                self._open.add(request)
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had: its slot must not be lost
            self._release(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve, then give the slot back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was too slow is no news; a mistake of ours is."""
        del request, client_address
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "an HTTP request ended early", exc_info=error)

    def hang_up(self) -> None:
        """End all connections, so that their threads end."""
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _release(self, request: socket.socket) -> None:
        with self._open_lock:
            self._open.discard(request)
        self._slots.release()


class TelemetryServer:
    """The HTTP server of the agent. ``start`` and ``stop`` it, or use it in ``with``.

    Args:
        host: address or name; an IPv6 address without brackets.
        port: 0 for any free one.
        registry: what ``/metrics`` shows.
        healthy: check behind ``/healthz``: is the process worth keeping?
        ready: check behind ``/readyz``: is the policy in force?
        max_connections: at the same time; the next one gets 503.
        request_seconds: that a request may take to arrive, and an answer to leave.
        access: TLS and passwords; None for neither.

    Raises:
        InputError: the host is no address of this machine.
        NodeError: the port is taken or needs a privilege.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        healthy: Check = always_well,
        ready: Check = always_well,
        max_connections: int = MAX_CONNECTIONS,
        request_seconds: float = REQUEST_SECONDS,
        access: Access | None = None,
    ) -> None:
        family, address = _resolve(host, port)
        try:
            self._server = _Server(
                family,
                address,
                registry=registry,
                healthy=healthy,
                ready=ready,
                max_connections=max_connections,
                request_seconds=request_seconds,
                access=access,
            )
        except OSError as error:
            raise _bind_error(host, port, error) from error
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            name="kmodgate-http",
            kwargs={"poll_interval": None},  # sleep until somebody connects; stop() wakes it
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, end what is open, join all threads. May be called twice."""
        if self._thread is not None:
            with contextlib.suppress(OSError):  # not connected, says the kernel, and does it
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.hang_up()
        self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise InputError(f"cannot listen on {_name(host, port)}: no such address ({error})") from error
    family, _, _, _, address = found[0]
    return family, address


def _bind_error(host: str, port: int, error: OSError) -> InputError | NodeError:
    where = f"cannot listen on {_name(host, port)}"
    match error.errno:
        case errno.EADDRINUSE:
            return NodeError(
                f"{where}: the port is taken, on a host network by any process of the node; "
                "set another one in kmodgate.listen"
            )
        case errno.EACCES | errno.EPERM:
            return NodeError(
                f"{where}: not permitted; ports below 1024 need CAP_NET_BIND_SERVICE, set another one in "
                "kmodgate.listen"
            )
        case errno.EADDRNOTAVAIL:
            return InputError(
                f"{where}: this node does not have that address; set another one in kmodgate.listen"
            )
    return NodeError(f"{where}: {error.strerror or error}")


def _name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
