# SPDX-License-Identifier: Apache-2.0
"""A place beside stdout that events go to: its own queue, its own thread, its own counts.

``put`` takes a line or counts it as dropped, and returns at once. What the thread does with
the lines is the target's business; a target that hangs holds up itself alone. What a sink did
not get is stated to it by ``suppressed`` records, as on stdout.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from .lines import Loss, Statements

log = logging.getLogger(__name__)

CAPACITY: Final = 1024
"""Lines that wait at most."""
MAX_BYTES: Final = 4 << 20
"""Bytes that wait at most; a line has 32 KiB at most, and 1 KiB as a rule."""
_UNEXPECTED: Final = "unexpected, see the agent's log"


@dataclass(frozen=True, slots=True)
class SinkCounts:
    """What became of the events of one sink. All of it only ever grows."""

    sent: int
    dropped: Mapping[Loss, int]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a target did with a batch.

    Attributes:
        count: how many of the first lines arrived; the others are dropped.
        problem: why not all of them, with the remedy; None when all did.
    """

    count: int
    problem: str | None = None


class Patience:
    """How long a target may still try: for ever, until the sink is closed."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._deadline = float("inf")

    def close(self, seconds: float) -> None:
        """From now on there is an end."""
        self._deadline = time.monotonic() + seconds
        self._closing.set()

    @property
    def closing(self) -> bool:
        """The sink is being closed."""
        return self._closing.is_set()

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    def pause(self, seconds: float) -> None:
        """Wait before another try; no longer than until the sink is closed."""
        self._closing.wait(seconds)


class Target(Protocol):
    """Where a sink's lines go. Used by the sink's thread alone."""

    @property
    def batch(self) -> int:
        """Most lines at once."""

    def deliver(self, lines: Sequence[bytes], patience: Patience) -> Delivery:
        """Take these lines, in order. OSError where a whole batch failed."""

    def reopen(self) -> None:
        """Let go of what is open: it may have been renamed or renewed."""

    def close(self) -> None:
        """Let go of everything."""


class Sink:
    """A bounded queue, and one thread that hands it to a target.

    Args:
        name: in the log and in the metrics.
        target: where the lines go.
        statements: makes the ``suppressed`` records.
        capacity: lines that wait at most.
        max_bytes: bytes that wait at most.
        interval: seconds between two questions for a statement.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        *,
        statements: Statements,
        capacity: int = CAPACITY,
        max_bytes: int = MAX_BYTES,
        interval: float = 5.0,
    ) -> None:
        self.name = name
        self._target = target
        self._statements = statements
        self._capacity = capacity
        self._room = max_bytes
        self._interval = interval
        self._queue: deque[bytes] = deque()
        self._lock = threading.Condition()
        self._patience = Patience()
        self._reopen = False
        self._sent = 0
        self._dropped = dict.fromkeys(Loss, 0)
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"kmodgate-{name}", daemon=True)
        self._thread.start()

    def put(self, record: Mapping[str, object], line: bytes) -> None:
        """Hand one event over. Never waits."""
        del record
        with self._lock:
            if self._patience.closing or len(self._queue) >= self._capacity or len(line) > self._room:
                self._dropped[Loss.QUEUE_FULL] += 1
                return
            self._room -= len(line)
            self._queue.append(line)
            self._lock.notify()

    def counts(self) -> SinkCounts:
        """What became of the events so far."""
        with self._lock:
            return SinkCounts(self._sent, dict(self._dropped))

    @property
    def over(self) -> bool:
        """The thread has ended after ``stop``: the counts are final."""
        return not self._thread.is_alive()

    def reopen(self) -> None:
        """Have the target let go of what it has open."""
        with self._lock:
            self._reopen = True
            self._lock.notify()

    def stop(self, seconds: float) -> None:
        """Take nothing more; what waits has ``seconds`` to go. Does not wait: ``join`` does."""
        with self._lock:
            self._patience.close(seconds)
            self._lock.notify()

    def join(self) -> None:
        """Wait for the end after ``stop``, and a moment longer; count as dropped what is left."""
        self._thread.join(self._patience.left + 0.5)
        with self._lock:
            self._dropped[Loss.WRITE_FAILED] += len(self._queue)
            self._queue.clear()

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        while True:
            with self._lock:
                while not (self._queue or self._reopen or self._patience.closing):
                    if not self._lock.wait(max(0.0, due - time.monotonic())) and time.monotonic() >= due:
                        break
                lines = [self._queue.popleft() for _ in range(min(len(self._queue), self._target.batch))]
                self._room += sum(map(len, lines))
                reopen, self._reopen = self._reopen, False
                over = self._patience.closing and not self._queue
            if reopen:
                self._target.reopen()
            if lines:
                count = self._deliver(lines)
                with self._lock:
                    self._sent += count
                    self._dropped[Loss.WRITE_FAILED] += len(lines) - count
            if over or time.monotonic() >= due:
                self._state(final=over)
                due = time.monotonic() + self._interval
            if over:
                self._target.close()
                return

    def _state(self, *, final: bool) -> None:
        statement = self._statements(self.counts().dropped, final=final)
        if statement is not None and self._deliver([statement.line]):
            statement.delivered()

    def _deliver(self, lines: Sequence[bytes]) -> int:
        """How many arrived; a problem is said when it comes, changes and goes."""
        try:
            if self._patience.closing and not self._patience.left:
                return 0
            done = self._target.deliver(lines, self._patience)
        except OSError as error:
            done = Delivery(0, error.strerror or str(error))
        except Exception:
            log.exception("event sink %s", self.name)
            done = Delivery(0, _UNEXPECTED)
        if done.problem != self._problem:
            if done.problem is None:
                log.warning("event sink %s works again", self.name)
            else:
                log.error("event sink %s: %s; events are dropped and counted", self.name, done.problem)
            self._problem = done.problem
        return done.count
