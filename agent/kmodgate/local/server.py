# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the socket: one thread, a few clients, bounded in everything.

A client has five seconds for its question and thirty for taking an answer that ends. Who
follows the events may be slow: it is given a piece when it has taken the one before, and is
told by a ``suppressed`` record how many it missed. No client is ever waited for, and the
agent's loop does no more for all of them than to put an event into ``recent`` and to wake this
thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final

from kmodgate.telemetry.events import Cause, MissingEvents

from .place import Listening
from .protocol import MAX_REQUEST, Answer, Ask, ProtocolError, Request, answer
from .recent import Recent

log = logging.getLogger(__name__)

MAX_CLIENTS: Final = 16
MAX_FOLLOWERS: Final = 8
REQUEST_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0
STATEMENT_SECONDS: Final = 5.0
_PIECE: Final = 64  # events
_PIECE_BYTES: Final = 64 << 10
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred, unix(7)
_BUSY: Final = "too many clients; close one, or try again later"


class _State(Enum):
    ASKING = auto()
    TELLING = auto()
    ENDING = auto()
    """What is in ``out`` is the last of it."""


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.connection = connection
        self.state = _State.ASKING
        self.question = bytearray()
        self.out = memoryview(b"")
        self.deadline = now + REQUEST_SECONDS
        self.request = Request(Ask.STATUS)
        self.position = 0
        self.end = 0
        self.missed = 0
        self.stated = now
        self.missing: MissingEvents | None = None
        self.events = 0
        """What the selector watches it for."""

    @property
    def follows(self) -> bool:
        return self.state is _State.TELLING and self.request.follow


class LocalServer:
    """Serves ``status`` and ``events`` at a socket. ``start`` and ``stop`` it.

    Args:
        listening: the socket; closed by ``stop``.
        status: makes the report, on the server's thread.
        recent: the events.
        missing: makes what states to one reader what it does not get.
    """

    def __init__(
        self,
        listening: Listening,
        *,
        status: Callable[[], Mapping[str, object]],
        recent: Recent,
        missing: Callable[[], MissingEvents],
        max_clients: int = MAX_CLIENTS,
        max_followers: int = MAX_FOLLOWERS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listening = listening
        self._status = status
        self._recent = recent
        self._missing = missing
        self._max_clients = max_clients
        self._max_followers = max_followers
        self._now = now
        self._clients: set[_Client] = set()
        self._stopping = False
        self._following = False
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="kmodgate-socket", daemon=True)

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._selector.register(self._listening.socket, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._recent.wake_by(self._event)
        self._thread.start()

    def stop(self) -> None:
        """Tell the followers that it is over, hang up, remove the socket. May be called twice."""
        self._recent.wake_by(None)
        if self._stopping:
            return
        self._stopping = True
        self._wake()
        self._thread.join()  # it waits for nobody
        os.close(self._woken)
        self._listening.close()

    def _event(self) -> None:
        if self._following:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.eventfd_write(self._woken, 1)

    # --- the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            for client in tuple(self._clients):
                self._farewell(client)
        finally:
            self._selector.close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            if key.fileobj is self._listening.socket:
                self._accept()
            elif key.fileobj == self._woken:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._woken)
            else:
                with self._at_its_own_risk(key.data):
                    if key.data.state is _State.ASKING:
                        self._hear(key.data)
                    else:
                        self._watch_for_the_end(key.data)
        now = self._now()
        for client in tuple(self._clients):
            if now >= client.deadline:
                self._drop(client)
            elif client.state is not _State.ASKING:
                with self._at_its_own_risk(client):
                    self._serve(client, now)
        self._following = any(client.follows for client in self._clients)

    @contextmanager
    def _at_its_own_risk(self, client: _Client) -> Iterator[None]:
        """A mistake over one client ends that client alone."""
        try:
            yield
        except Exception:
            log.exception("a client of the agent's socket")
            self._drop(client)

    def _patience(self) -> float | None:
        """Seconds until something is due by itself."""
        due = [client.deadline for client in self._clients if not client.follows]
        # One that has not taken its last piece is waited for, not the clock.
        due += [c.stated + STATEMENT_SECONDS for c in self._clients if c.follows and not c.out]
        return max(0.0, min(due) - self._now()) if due else None

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.error("the agent's socket takes nobody: %s", error.strerror)
            time.sleep(1.0)  # out of descriptors or memory: the same client is there again at once
            return
        connection.setblocking(False)
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        client = _Client(connection, self._now())
        if _CREDENTIALS.unpack(raw)[1] not in {0, os.geteuid()}:
            connection.close()  # the socket's mode keeps them out; this is the second lock
        elif len(self._clients) >= self._max_clients:
            with contextlib.suppress(OSError):
                connection.send(answer(Answer.ERROR, error=_BUSY))
            connection.close()
        else:
            self._clients.add(client)
            self._watch(client, selectors.EVENT_READ)

    def _hear(self, client: _Client) -> None:
        """Read a part of the question."""
        try:
            chunk = client.connection.recv(MAX_REQUEST + 1 - len(client.question))
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._drop(client)
            return
        client.question += chunk
        text, newline, more = bytes(client.question).partition(b"\n")
        if newline:
            self._begin(client, text, more)
        elif len(client.question) >= MAX_REQUEST:
            self._refuse(client, f"a question has {MAX_REQUEST} bytes at most")

    def _begin(self, client: _Client, text: bytes, more: bytes) -> None:
        now = self._now()
        client.deadline = now + ANSWER_SECONDS
        if more:
            self._refuse(client, "one question a connection")
            return
        try:
            client.request = request = Request.decode(text)
        except ProtocolError as error:
            self._refuse(client, str(error))
            return
        if request.ask is Ask.STATUS:
            self._report(client)
            return
        if request.follow:
            if sum(other.follows for other in self._clients) >= self._max_followers:
                self._refuse(client, _BUSY)
                return
            client.deadline = float("inf")
            self._following = True  # before the look: what comes from now on wakes us
        first, client.end = self._recent.span()
        client.position = self._start_at(request, first, client.end)
        client.stated = now
        client.missing = self._missing()
        client.state = _State.TELLING
        oldest = [event.record.get("time") for event in self._recent.piece(first, 1).events]
        head = {"kept": client.end - first, "forgotten": first, "oldest": oldest[0] if oldest else None}
        client.out = memoryview(answer(Answer.EVENTS, **head))

    def _report(self, client: _Client) -> None:
        try:
            status = self._status()
        except Exception:
            log.exception("status")
            self._refuse(client, "the report cannot be made; the agent's log says why")
            return
        client.state = _State.ENDING
        client.out = memoryview(answer(Answer.STATUS, status=status))

    def _start_at(self, request: Request, first: int, end: int) -> int:
        """Where the remembered events begin that are asked for."""
        if request.last is None:
            return first
        piece = self._recent.piece(first, end - first)
        position, found = piece.position, 0
        for event in reversed(piece.events):
            if found == request.last:
                break
            position -= 1
            found += _wanted(request, event.record)
        return position

    def _refuse(self, client: _Client, why: str) -> None:
        client.state = _State.ENDING
        client.out = memoryview(answer(Answer.ERROR, error=why))

    def _watch_for_the_end(self, client: _Client) -> None:
        """A client that hangs up is dropped; one that goes on talking is, too."""
        if not client.events & selectors.EVENT_READ:
            return
        try:
            chunk = client.connection.recv(1)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if chunk or client.follows:
            self._drop(client)
        else:  # half closed: it still reads
            self._watch(client, selectors.EVENT_WRITE)

    def _serve(self, client: _Client, now: float) -> None:
        """Send what the client takes now."""
        while True:
            if not client.out and not self._refill(client, now):
                break
            try:
                sent = client.connection.send(client.out)
            except BlockingIOError:
                break
            except OSError:
                self._drop(client)
                return
            client.out = client.out[sent:]
        if not client.out and client.state is _State.ENDING:
            self._drop(client)
            return
        reading = client.events & selectors.EVENT_READ
        self._watch(client, (reading | selectors.EVENT_WRITE) if client.out else selectors.EVENT_READ)

    def _refill(self, client: _Client, now: float) -> bool:
        """The next piece of events; False when there is none yet."""
        if client.state is not _State.TELLING:
            return False
        limit = _PIECE if client.follows else min(_PIECE, client.end - client.position)
        piece = None
        lines: list[bytes] = []
        if limit > 0:
            piece = self._recent.piece(client.position, limit, max_bytes=_PIECE_BYTES)
            client.position = piece.position
            client.missed += piece.gone
            lines = [event.line for event in piece.events if _wanted(client.request, event.record)]
        lines[:0] = self._statement(client, now)
        done = not client.follows and client.position >= client.end
        if done:
            lines.append(answer(Answer.END, stopping=False))
            client.state = _State.ENDING
        client.out = memoryview(b"".join(lines))
        return done or bool(piece and piece.events) or bool(lines)

    def _statement(self, client: _Client, now: float) -> list[bytes]:
        """What the client does not get: at once if it is too slow, else every few seconds."""
        due = client.missed or (client.follows and now >= client.stated + STATEMENT_SECONDS)
        if not due or client.missing is None:
            return []
        client.stated = now
        statement = client.missing.statement({Cause.SLOW_READER: client.missed})
        if statement is None:
            return []
        statement.delivered()
        return [statement.line]

    def _watch(self, client: _Client, events: int) -> None:
        if events == client.events:
            return
        if client.events:
            self._selector.modify(client.connection, events, client)
        else:
            self._selector.register(client.connection, events, client)
        client.events = events

    def _farewell(self, client: _Client) -> None:
        """As much as the client takes at once, and that it is over."""
        if client.follows:
            with contextlib.suppress(OSError):
                self._serve(client, self._now())
                if not client.out:
                    client.connection.send(answer(Answer.END, stopping=True))
        self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.discard(client)
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._selector.unregister(client.connection)
            client.connection.close()


def _wanted(request: Request, record: Mapping[str, object]) -> bool:
    if request.since is not None and str(record.get("time", "")) < request.since:
        return False
    return request.wanted.wants(record)
