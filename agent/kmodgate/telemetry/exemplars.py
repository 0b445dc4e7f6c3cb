# SPDX-License-Identifier: Apache-2.0
"""The latest event behind each load counter and each histogram bucket.

This module does no I/O. An exemplar is no series: it hangs on a sample, and a scraper that asks for
OpenMetrics gets it. It holds the event's number in the log and nothing else, so it says where to look
and nothing that a loader chose. As many are kept as there are counters and buckets.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kmodgate.model import Api, By, LoadEvent, Reason, Verdict

from . import metrics as m
from .table import Metric

LABEL = "sequence"
"""The event log's own key (docs/events.md)."""

Key = tuple[Verdict, Reason, Api, By]


@dataclass(frozen=True, slots=True)
class Told:
    """One event that stands in the log.

    Attributes:
        sequence: its number there.
        time: Unix time of the load.
        value: what was observed: seconds, or 1 for a counter.
    """

    sequence: int
    time: float
    value: float


@dataclass(frozen=True, slots=True)
class Latest:
    """The exemplars at one moment: of loads, and of histogram buckets by their position."""

    loads: Mapping[Key, Told] = field(default_factory=lambda: MappingProxyType({}))
    decision: Mapping[int, Told] = field(default_factory=lambda: MappingProxyType({}))
    hold: Mapping[int, Told] = field(default_factory=lambda: MappingProxyType({}))


class Exemplars:
    """Told of each event that is written; gives the latest of each kind. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads: dict[Key, Told] = {}
        self._decision: dict[int, Told] = {}
        self._hold: dict[int, Told] = {}

    def note(self, event: LoadEvent, sequence: int) -> None:
        """This event stands in the log under that number."""
        moment = event.time.timestamp()
        decision, hold = event.decision_ns / 1e9, event.hold_ns / 1e9
        with self._lock:
            self._loads[event.verdict, event.reason, event.api, event.by] = Told(sequence, moment, 1.0)
            if decision:
                self._decision[_bucket(m.DECISION_SECONDS, decision)] = Told(sequence, moment, decision)
            if hold:
                self._hold[_bucket(m.HOLD_SECONDS, hold)] = Told(sequence, moment, hold)

    def latest(self) -> Latest:
        """What is there now."""
        with self._lock:
            return Latest(dict(self._loads), dict(self._decision), dict(self._hold))


def _bucket(metric: Metric, seconds: float) -> int:
    return bisect.bisect_left(metric.buckets, seconds)
