# SPDX-License-Identifier: Apache-2.0
"""The last events, for whoever asks. Bounded in number and bytes; no I/O.

The agent's loop puts events in and never waits for a reader. Readers hold a position, not a
queue: one that is too slow finds that what it wanted is gone, and how much that was.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

MAX_EVENTS: Final = 1000
MAX_BYTES: Final = 1 << 20
DENIALS: Final = 10
_DENIED: Final = frozenset({"deny", "would_deny"})


class Kept(NamedTuple):
    """One event, as the log told it."""

    record: Mapping[str, object]
    line: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Some events in a row.

    Attributes:
        events: the first ones from a position on.
        gone: how many before them are forgotten already.
        position: behind them.
    """

    events: tuple[Kept, ...]
    gone: int
    position: int


class Recent:
    """The last events of this agent.

    Args:
        max_events: how many.
        max_bytes: of their lines together.
    """

    def __init__(self, *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: deque[Kept] = deque()
        self._bytes = 0
        self._first = 0
        self._denials: deque[Mapping[str, object]] = deque(maxlen=DENIALS)
        self._wake: Callable[[], None] | None = None

    def put(self, record: Mapping[str, object], line: bytes) -> None:
        """Remember an event; forgets the oldest ones to make room."""
        with self._lock:
            self._kept.append(Kept(record, line))
            self._bytes += len(line)
            while len(self._kept) > self._max_events or self._bytes > self._max_bytes:
                self._bytes -= len(self._kept.popleft().line)
                self._first += 1
            if record.get("verdict") in _DENIED:
                self._denials.append(record)
            if self._wake is not None:
                self._wake()  # inside the lock: nobody is woken any more once wake_by() returns

    def wake_by(self, wake: Callable[[], None] | None) -> None:
        """Call this after each event; it must not wait. None: nothing, from the return of this call on."""
        with self._lock:
            self._wake = wake

    def span(self) -> tuple[int, int]:
        """The positions of the oldest event, and behind the youngest."""
        with self._lock:
            return self._first, self._first + len(self._kept)

    def piece(self, position: int, limit: int, *, max_bytes: int = MAX_BYTES) -> Piece:
        """At most ``limit`` events from a position on, and not many more bytes than ``max_bytes``."""
        events: list[Kept] = []
        with self._lock:
            gone = max(0, self._first - position)
            start = position + gone - self._first
            for event in islice(self._kept, start, start + limit):
                events.append(event)
                max_bytes -= len(event.line)
                if max_bytes <= 0:
                    break
            return Piece(tuple(events), gone, self._first + start + len(events))

    def denials(self) -> tuple[Mapping[str, object], ...]:
        """The last refusals, oldest first; those that audit withheld too."""
        with self._lock:
            return tuple(self._denials)
