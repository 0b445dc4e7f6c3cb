# SPDX-License-Identifier: Apache-2.0
"""Events to an OpenTelemetry collector: OTLP over HTTP, in JSON.

What the receiver may take later (no connection, 429, 502, 503, 504) is tried again with
growing pauses for five minutes, while the sink's queue fills; what it refuses is dropped at
once. No redirect is followed and no proxy is used. docs/adr/0019 says why no SDK is.
"""

from __future__ import annotations

import http.client
import io
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from kmodgate import __version__
from kmodgate.errors import KmodgateError
from kmodgate.fsutil import read_regular_file

from .otlp import export_request, rejected
from .sink import Delivery, Patience
from .text import printable

_RETRY: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_MAX_ANSWER: Final = 64 << 10
_MAX_PAUSE: Final = 30.0
_MAX_AGE: Final = 300.0
_MAX_SECRET: Final = 16 << 10
_MAX_CERTIFICATES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class OtlpEndpoint:
    """Where to send.

    Attributes:
        host: a name or an address, IPv6 without brackets.
        port: of the receiver.
        path: usually ``/v1/logs``.
        tls: speak TLS.
        ca_certificate: PEM file of what the receiver's certificate is checked against; None for
            the system's.
        token_file: file with a bearer token, read anew for each connection; None for none.
        timeout: seconds that a connection, and that an answer may take.
        client_certificate: PEM file of the certificate (and its chain) that the agent shows; None for none.
        client_key: PEM file of its key, unencrypted.
    """

    host: str
    port: int
    path: str = "/v1/logs"
    tls: bool = False
    ca_certificate: Path | None = None
    token_file: Path | None = None
    timeout: float = 10.0
    client_certificate: Path | None = None
    client_key: Path | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}{self.path}"


class _Until(io.RawIOBase):
    """Reads a socket until a moment: a byte now and then buys no time."""

    def __init__(self, raw: Any, connection: socket.socket, seconds: float) -> None:
        super().__init__()
        self._raw = raw
        self._socket = connection
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self._socket.settimeout(left)
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer that must be there whole within the socket's time limit."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        raw = sock.makefile("rb", buffering=0)
        self.fp = io.BufferedReader(_Until(raw, sock, sock.gettimeout() or 0.0))


class _TransientError(Exception):
    """To be tried again.

    Args:
        message: what went wrong.
        answered: the receiver said so itself.
        after: seconds that it asks for, or 0.
    """

    def __init__(self, message: str, *, answered: bool = False, after: float = 0.0) -> None:
        super().__init__(message)
        self.answered = answered
        self.after = after


class OtlpTarget:
    """One receiver, over one connection that is kept.

    Args:
        endpoint: where.
        node: Kubernetes name of the node.
        max_age: seconds after which a batch is given up.
        first_pause: seconds before the second try.
    """

    batch = 128

    def __init__(
        self,
        endpoint: OtlpEndpoint,
        *,
        node: str | None = None,
        max_age: float = _MAX_AGE,
        first_pause: float = 1.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._endpoint = endpoint
        self._node = node
        self._max_age = max_age
        self._first_pause = first_pause
        self._jitter = jitter
        self._connection: http.client.HTTPConnection | None = None
        self._token: str | None = None

    def deliver(self, lines: Sequence[bytes], patience: Patience) -> Delivery:
        """Send one request, again and again if need be."""
        body = export_request(lines, observed_ns=time.time_ns(), node=self._node)
        give_up, pause = time.monotonic() + self._max_age, self._first_pause
        while True:
            kept = self._connection is not None
            try:
                status, reason, answer = self._send(body, patience)
            except _TransientError as error:
                self.reopen()
                if kept and not error.answered:  # the receiver may have closed it long ago
                    continue
                wait = max(pause * (0.5 + self._jitter() / 2), min(error.after, _MAX_PAUSE))
                if time.monotonic() + wait >= give_up or (patience.closing and patience.left <= wait):
                    return Delivery(0, f"{self._endpoint}: {error}")
                patience.pause(wait)
                pause = min(2 * pause, _MAX_PAUSE)
                continue
            if status != HTTPStatus.OK:
                self.reopen()
                return Delivery(0, f"{self._endpoint}: refused with {status} {printable(reason, 80)}")
            lost, why = rejected(answer)
            if lost:
                told = f"{self._endpoint}: took a batch but for some records: {printable(why, 200)}"
                return Delivery(max(0, len(lines) - lost), told)
            return Delivery(len(lines))

    def reopen(self) -> None:
        """Close the connection; the next one reads certificate and token again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    close = reopen

    def _send(self, body: bytes, patience: Patience) -> tuple[int, str, bytes]:
        """Status, reason and body of the answer."""
        limit = min(self._endpoint.timeout, max(patience.left, 0.05))
        try:
            connection = self._connection or self._connect(limit)
            self._connection = connection
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(limit)
            headers = {"Content-Type": "application/json", "User-Agent": f"kmodgate/{__version__}"}
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token}"
            connection.request("POST", self._endpoint.path, body=body, headers=headers)
            connection.sock.settimeout(limit)
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER + 1)
            if len(answer) > _MAX_ANSWER:
                raise _TransientError(f"the answer has more than {_MAX_ANSWER} bytes")
        except KmodgateError as error:
            raise _TransientError(str(error)) from error
        except ssl.SSLError as error:
            raise _TransientError(f"TLS: {error.reason or error}") from error
        except OSError as error:
            raise _TransientError((error.strerror or str(error)).lower()) from error
        except (http.client.HTTPException, ValueError) as error:
            raise _TransientError(f"no HTTP answer ({type(error).__name__})") from error
        if response.status in _RETRY:
            after = response.getheader("Retry-After", "")
            raise _TransientError(
                f"answers {response.status} {printable(response.reason, 80)}",
                answered=True,
                after=float(after) if after.isdecimal() and len(after) < 6 else 0.0,  # noqa: PLR2004  # digits
            )
        return response.status, response.reason, answer

    def _connect(self, limit: float) -> http.client.HTTPConnection:
        where = self._endpoint
        self._token = None
        if where.token_file is not None:
            token = read_regular_file(where.token_file, _MAX_SECRET).strip()
            if not token or not token.isascii() or not token.decode().isprintable():
                raise _TransientError(
                    f"{where.token_file}: holds no token; write one line of printable ASCII"
                )
            self._token = token.decode()
        connection: http.client.HTTPConnection
        if where.tls:
            connection = http.client.HTTPSConnection(
                where.host, where.port, timeout=limit, context=self._context()
            )
        else:
            connection = http.client.HTTPConnection(where.host, where.port, timeout=limit)
        connection.response_class = _Response
        return connection

    def _context(self) -> ssl.SSLContext:
        path = self._endpoint.ca_certificate
        if path is None:
            context = ssl.create_default_context()
        else:
            data = read_regular_file(path, _MAX_CERTIFICATES)
            try:
                context = ssl.create_default_context(cadata=data.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise _TransientError(f"{path}: no PEM certificates; give a file with some") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._endpoint.client_certificate is not None and self._endpoint.client_key is not None:
            _show(context, self._endpoint.client_certificate, self._endpoint.client_key)
        return context


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Let a context show a client's certificate.

    OpenSSL opens files by name, and would wait for a FIFO: it is given a copy in memory.
    """
    pem = read_regular_file(certificate, _MAX_CERTIFICATES) + b"\n" + read_regular_file(key, _MAX_SECRET)
    with os.fdopen(os.memfd_create("kmodgate-client", os.MFD_CLOEXEC), "wb", buffering=0) as copy:
        copy.write(pem)
        try:
            # A password would be asked for on the terminal: an agent has none.
            context.load_cert_chain(f"/proc/self/fd/{copy.fileno()}", password=lambda: b"")
        except (OSError, ValueError) as error:
            why = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
            raise _TransientError(
                f"{certificate}, {key}: cannot be used as certificate and key "
                f"({why.lower().replace('_', ' ')}); name a PEM certificate and the unencrypted PEM key "
                "that belongs to it"
            ) from error
