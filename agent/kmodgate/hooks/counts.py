# SPDX-License-Identifier: Apache-2.0
"""What the programs count, read from mapped memory: a scrape costs no system call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping

from kmodgate.model import Api, By, KernelHistogram, Reason, Verdict

from . import abi

Numbers = ctypes.Array[ctypes.c_uint64]


class KernelCounts:
    """The part of a backend that ``telemetry`` reads. Twin: ``bpf/count.h``."""

    _counters: Numbers
    _stats: Numbers
    _histograms: Numbers

    def loads(self) -> Iterator[tuple[Verdict, Reason, Api, By, int]]:
        """Verdicts by reason, call and decider, those that were ever given."""
        for verdict in Verdict:
            for reason in Reason:
                for api in Api:
                    for by in By:
                        slot = (verdict * abi.REASON_SLOTS + reason) * len(Api) + api
                        count = self._counters[slot * abi.BY_SLOTS + by]
                        if count:
                            yield verdict, reason, api, by, count

    def stat(self, stat: abi.Stat) -> int:
        """One plain count."""
        return int(self._stats[stat])

    def histogram(self, name: str) -> KernelHistogram:
        """One histogram, ``"hold"`` or ``"decision"``; buckets double from one microsecond."""
        base = abi.Histogram[name.upper()] * abi.HISTOGRAM_ROW
        last = abi.HISTOGRAM_BUCKETS - 1
        buckets = tuple(
            (math.inf if bucket == last else 2**bucket * 1e-6, int(self._histograms[base + bucket]))
            for bucket in range(abi.HISTOGRAM_BUCKETS)
        )
        return KernelHistogram(buckets, self._histograms[base + abi.HISTOGRAM_BUCKETS] / 1e9)

    def attempts(self) -> int:
        """Loads that reached the first hook."""
        return self.stat(abi.Stat.ATTEMPTS_FINIT) + self.stat(abi.Stat.ATTEMPTS_INIT)

    def undecided(self) -> int:
        """Loads that failed on their own before a decision was due."""
        return self.stat(abi.Stat.UNDECIDED)

    def loaded_unseen(self) -> int:
        """Modules that got in without a decision."""
        return self.stat(abi.Stat.LOADED_UNSEEN)

    def lost(self) -> Mapping[str, int]:
        """Records that found their ring full, by ring."""
        return {
            "event_ring": self.stat(abi.Stat.EVENTS_LOST),
            "question_ring": self.stat(abi.Stat.QUESTIONS_LOST),
        }

    def errors(self) -> Mapping[str, int]:
        """What failed inside the programs, by kind."""
        kinds = (
            abi.Stat.LOADED_UNSEEN,
            abi.Stat.STORAGE_FAILED,
            abi.Stat.READ_FAILED,
            abi.Stat.PATH_FAILED,
            abi.Stat.TABLE_RACED,
            abi.Stat.ABANDONED,
            abi.Stat.REDECIDED,
            abi.Stat.REFUSED_EARLY,
            abi.Stat.WAITS_REFUSED,
        )
        return {kind.name.lower(): self.stat(kind) for kind in kinds}
