# SPDX-License-Identifier: Apache-2.0
"""The commands' end of the agent's socket."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kmodgate.errors import NodeError

from .place import SOCKET
from .protocol import Answer, Ask, ProtocolError, Request, read_answer

MAX_LINE: Final = 4 << 20
"""Bytes of a line of the answer."""
_REPORT: Final = 1  # `schema` of a report that is understood here
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred, unix(7)


class NoAgentError(NodeError):
    """Nobody answers: no agent, not root, or an agent that ended meanwhile."""


class Connection:
    """One question to the agent, and the lines of its answer.

    Args:
        request: the question.
        path: of the socket.
        wait: seconds in which the agent must begin to answer.

    Raises:
        NoAgentError: nobody answers there.
    """

    def __init__(self, request: Request, path: Path = SOCKET, wait: float = 10.0) -> None:
        self._path = path
        self._wait = wait
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(wait)
            self._socket.connect(str(path))
            self._refuse_strangers()
            self._socket.sendall(request.encode())
        except NoAgentError:
            self.close()
            raise
        except FileNotFoundError:
            self.close()
            raise NoAgentError(
                f"{path}: no agent runs on this node, or its /run is another one (a container's)"
            ) from None
        except ConnectionRefusedError:
            self.close()
            raise NoAgentError(f"{path}: the agent that made this socket runs no more") from None
        except PermissionError:
            self.close()
            raise NoAgentError(f"{path}: only root may ask the agent; use sudo") from None
        except OSError as error:
            self.close()
            reason = (error.strerror or str(error)).lower()
            raise NoAgentError(f"{path}: {reason}; is that the agent's socket?") from None

    def _refuse_strangers(self) -> None:
        """What answers must be root's, or our own."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        if uid not in {0, os.geteuid()}:
            raise NoAgentError(f"{self._path}: belongs to user {uid}, not to root; this is not the agent")

    def line(self, *, wait: float | None, reader: int | None = None) -> bytes:
        """The next line, without its newline.

        Args:
            wait: seconds until it must be there; None for as long as it takes.
            reader: descriptor that it is for; nobody waits for a line that nobody will read.

        Raises:
            NoAgentError: there is none.
            BrokenPipeError: the reader has gone.
        """
        deadline = None if wait is None else time.monotonic() + wait
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE:
                raise NoAgentError(f"{self._path}: sends a line without an end; this is not the agent")
            left = None if deadline is None else max(0.001, deadline - time.monotonic())
            try:
                self._socket.settimeout(left)
                self._wait_for_more(left, reader)
                chunk = self._socket.recv(1 << 16)
            except TimeoutError:
                raise NoAgentError(f"{self._path}: the agent does not answer") from None
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise NoAgentError(f"{self._path}: the agent ended before it had answered")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _wait_for_more(self, left: float | None, reader: int | None) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if reader is not None:
            poll.register(reader, 0)  # POLLERR and POLLHUP come unasked
        ready = dict(poll.poll(None if left is None else max(1, round(left * 1000))))
        if reader is not None and ready.get(reader, 0) & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def answer(self, line: bytes) -> tuple[Answer, dict[str, Any]] | None:
        """As ``read_answer``; an ``error`` of the agent, or nonsense, is raised.

        Raises:
            NoAgentError: with what the agent said.
        """
        try:
            found = read_answer(line)
        except ProtocolError as error:
            raise NoAgentError(f"{self._path}: {error}") from None
        if found is not None and found[0] is Answer.ERROR:
            raise NoAgentError(f"{self._path}: the agent refuses: {found[1].get('error')}")
        return found

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextmanager
def asked(request: Request, path: Path = SOCKET, wait: float = 10.0) -> Iterator[Connection]:
    """A connection for the time of the block."""
    connection = Connection(request, path, wait)
    try:
        yield connection
    finally:
        connection.close()


def ask_status(path: Path = SOCKET, wait: float = 10.0) -> dict[str, Any]:
    """The agent's report of itself.

    Raises:
        NoAgentError: there is none.
    """
    with asked(Request(Ask.STATUS), path, wait) as connection:
        found = connection.answer(connection.line(wait=wait))
    if found is None or found[0] is not Answer.STATUS or not isinstance(found[1].get("status"), dict):
        raise NoAgentError(f"{path}: answers something else than asked; use the agent's own kmodgate")
    status: dict[str, Any] = found[1]["status"]
    if status.get("schema") != _REPORT:
        raise NoAgentError(f"{path}: this agent's report is of another version; use the agent's own kmodgate")
    return status
