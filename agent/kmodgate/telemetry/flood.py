# SPDX-License-Identifier: Apache-2.0
"""How many events may be told, and what was left out.

This module does no I/O and owns no clock. Two limits stand one behind the other, both token
buckets: one for each source (the reason and verdict of the load, and its container), and
one for all together. A pod that floods the log with refused loads thus exhausts its own
bucket and cannot hide what another pod does. The sources remembered are bounded too.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from kmodgate.model import LoadEvent, Reason, Verdict

MAX_SOURCES: Final = 256
"""Buckets remembered; the one unused for longest makes room."""


class LeftOut(NamedTuple):
    """A class of events that the limit left out: closed sets only."""

    verdict: Verdict
    reason: Reason


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket's size: ``burst`` at once, then ``per_second``."""

    per_second: float
    burst: int


DEFAULT_SOURCE_RATE: Final = Rate(per_second=1.0, burst=20)
DEFAULT_TOTAL_RATE: Final = Rate(per_second=20.0, burst=200)


class TokenBucket:
    """Full at the start; a token comes back each ``1 / per_second`` seconds."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate.burst)
        self._at = now

    def ready(self, now: float) -> bool:
        """Whether a token is there at ``now`` (seconds on any clock that never goes back)."""
        elapsed = max(0.0, now - self._at)
        self._tokens = min(float(self._rate.burst), self._tokens + elapsed * self._rate.per_second)
        self._at = now
        return self._tokens >= 1.0

    def take(self) -> None:
        """Take the token that ``ready`` has found."""
        self._tokens -= 1.0


class FloodLimit:
    """Decides which events are told. Not thread-safe; the event log holds a lock around it.

    Args:
        source: the limit of each source.
        total: the limit of all together.
    """

    def __init__(self, source: Rate = DEFAULT_SOURCE_RATE, total: Rate = DEFAULT_TOTAL_RATE) -> None:
        self._source_rate = source
        self._total_rate = total
        self._total: TokenBucket | None = None
        self._sources: OrderedDict[tuple[Verdict, Reason, str], TokenBucket] = OrderedDict()
        self._left_out: Counter[LeftOut] = Counter()

    def allow(self, event: LoadEvent, now: float) -> bool:
        """Whether this event may be told; if not, it is counted as left out."""
        if self._total is None:
            self._total = TokenBucket(self._total_rate, now)
        source = self._bucket(event, now)
        # Both are asked before either pays, or a full log would drain the sources as well.
        if source.ready(now) and self._total.ready(now):
            source.take()
            self._total.take()
            return True
        self._left_out[LeftOut(event.verdict, event.reason)] += 1
        return False

    def left_out(self) -> Mapping[LeftOut, int]:
        """Events left out since the start, by class. Only ever grows."""
        return dict(self._left_out)

    def _bucket(self, event: LoadEvent, now: float) -> TokenBucket:
        key = (event.verdict, event.reason, event.container_id or "")
        bucket = self._sources.get(key)
        if bucket is None:
            bucket = self._sources[key] = TokenBucket(self._source_rate, now)
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(key)
        return bucket
