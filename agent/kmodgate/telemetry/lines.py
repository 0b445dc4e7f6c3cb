# SPDX-License-Identifier: Apache-2.0
"""Lines to a stream that may be slow, full or gone, without ever waiting for it.

This module knows nothing of what the lines say. ``put`` takes a line or counts it as lost,
and returns at once; one thread writes. A node whose log collector hangs leaves the pipe
behind stdout full, and a plain ``print`` would then stop the agent.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

# A pipe that polls writable takes this much without blocking (PIPE_BUF, pipe(7)).
_CHUNK: Final = 4096
_POLL_MS: Final = 200


class Stream(Protocol):
    """Anything with a file descriptor: ``sys.stdout``, a pipe, a file."""

    def fileno(self) -> int:
        """The descriptor. It stays the caller's; nothing here closes it."""


class Loss(StrEnum):
    """How a line was lost."""

    QUEUE_FULL = "queue_full"
    """The stream took nothing for so long that the queue ran full."""
    WRITE_FAILED = "write_failed"
    """The stream refused the line: the reader is gone, or the disk is full."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A line about the lines before it, made by the writer's owner when it is due.

    Attributes:
        line: what to write.
        delivered: called once the line has been written; if it could not be, the owner
            is asked again later.
    """

    line: bytes
    delivered: Callable[[], None]


def no_statement(lost: Mapping[Loss, int], *, final: bool) -> Statement | None:
    """State nothing."""
    del lost, final
    return None


class Statements(Protocol):
    """Asked by the writer's thread: is there anything to state?"""

    def __call__(self, lost: Mapping[Loss, int], *, final: bool) -> Statement | None:
        """Make a statement, or None.

        Args:
            lost: lines lost since the start, by cause.
            final: the writer is closing; there will be no later time.
        """


class LineWriter:
    """A bounded queue, and one thread that writes it out line by line.

    Args:
        stream: where to.
        capacity: lines that wait at most.
        interval: seconds between two questions for a statement.
        statements: see ``Statements``.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        capacity: int = 1024,
        interval: float = 1.0,
        statements: Statements = no_statement,
    ) -> None:
        self._fd = stream.fileno()
        self._queue: queue.Queue[bytes | None] = queue.Queue(capacity)
        self._interval = interval
        self._statements = statements
        self._lock = threading.Lock()
        self._lost = dict.fromkeys(Loss, 0)
        self._written = 0
        self._torn = False
        self._closed = False
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="kmodgate-lines", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> bool:
        """Hand one line over, newline included. Never waits; False when it is lost."""
        if not self._closed:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(line)
                return True
        self._lose(Loss.QUEUE_FULL)
        return False

    def lost(self) -> Mapping[Loss, int]:
        """Lines lost since the start, by cause. Only ever grows."""
        with self._lock:
            return dict(self._lost)

    def written(self) -> int:
        """Lines that the stream took since the start; statements are not counted."""
        return self._written

    def close(self, timeout: float = 2.0) -> None:
        """Write out what waits, within ``timeout`` seconds; count the rest as lost."""
        if self._closed:
            return
        self._closed = True
        self._deadline = time.monotonic() + timeout
        with contextlib.suppress(queue.Full):  # full: the thread sees _closed by itself
            self._queue.put_nowait(None)
        self._thread.join(timeout + 1.0)

    def _lose(self, cause: Loss) -> None:
        with self._lock:
            self._lost[cause] += 1

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                line = None
            if line is not None:
                if self._write(line):
                    self._written += 1  # by this thread alone
                else:
                    self._lose(Loss.WRITE_FAILED)
            if time.monotonic() >= due:
                self._state(final=False)
                due = time.monotonic() + self._interval
            if self._closed and self._queue.empty():
                self._state(final=True)
                return

    def _state(self, *, final: bool) -> None:
        statement = self._statements(self.lost(), final=final)
        if statement is not None and self._write(statement.line):
            statement.delivered()

    def _write(self, line: bytes) -> bool:
        """Write one line whole, however many calls it takes; False when the stream refuses.

        A line that broke off in the middle is ended before the next one begins.
        """
        rest = memoryview(b"\n" + line if self._torn else line)
        written = 0
        while written < len(rest):
            if not self._wait_writable():
                break
            try:
                written += os.write(self._fd, rest[written : written + _CHUNK])
            except BlockingIOError:
                continue
            except OSError:  # EPIPE (Python ignores SIGPIPE), ENOSPC, EIO, EBADF
                break
        if written:
            self._torn = written < len(rest)
        return written == len(rest)

    def _wait_writable(self) -> bool:
        """Wait until the stream takes bytes; False when the writer's time is over."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while True:
            deadline = self._deadline
            over = deadline is not None and time.monotonic() >= deadline
            if poll.poll(0 if over else _POLL_MS):
                return True
            if over:
                return False
