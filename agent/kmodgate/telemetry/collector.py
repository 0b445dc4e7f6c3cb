# SPDX-License-Identifier: Apache-2.0
"""Reads the counters of the kernel and of the agent at each scrape, and exports them.

Nothing is decided here and nothing is held: a scrape reads mapped memory and snapshots, so
it cannot hold up a load. Each source is read on its own; one that fails is counted and
logged, and the others are exported. Label values pass through the table's closed sets, so
whatever a source says, it cannot make a new series.
"""

from __future__ import annotations

import bisect
import logging
import math
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric as Family

from kmodgate import __version__
from kmodgate.model import Api, By, EffectivePolicy, KernelHistogram, Reason, Verdict

from . import families as make
from . import kubernetes as k
from . import metrics as m
from .exemplars import Exemplars, Latest
from .expected import expected_loads
from .flood import LeftOut
from .lines import Loss
from .sink import SinkCounts
from .sinkmetrics import EVENT_SINK_DROPPED, EVENT_SINK_SENT, EventSink
from .status import AgentStatus

log = logging.getLogger(__name__)

Load = tuple[Verdict, Reason, Api, By, int]
HistogramName = Literal["decision", "hold"]

_LOSS: Final = {Loss.QUEUE_FULL: m.EventLoss.LOG_QUEUE, Loss.WRITE_FAILED: m.EventLoss.LOG_WRITE}


class KernelCounters(Protocol):
    """What a backend counts in the kernel. All of it only ever grows."""

    def loads(self) -> Iterable[Load]:
        """Decided loads: ``(verdict, reason, api, by, count)``, those that are not 0."""

    def histogram(self, name: HistogramName) -> KernelHistogram:
        """Time to decide, or time that loads waited."""

    def attempts(self) -> int:
        """Loads that reached the first hook."""

    def undecided(self) -> int:
        """Loads that failed on their own before a decision was due."""

    def misses(self) -> int:
        """Runs of programs that the kernel skipped (``bpf_prog_info.recursion_misses``)."""

    def lost(self) -> Mapping[str, int]:
        """Lost records: ``event_ring``, ``question_ring``."""

    def errors(self) -> Mapping[str, int]:
        """Failures inside the programs, by ``metrics.KernelErrorKind``."""


class EventLogCounts(Protocol):
    """What the event log counts (``events.EventLog``)."""

    exemplars: Exemplars

    def suppressed(self) -> Mapping[LeftOut, int]:
        """Events that the flood limit left out."""

    def lost(self) -> Mapping[Loss, int]:
        """Lines that the stream did not take."""


class ClusterCounts(Protocol):
    """What the agent's side of a cluster counts (``cluster.Cluster``)."""

    @property
    def node(self) -> str | None:
        """Name of the node, where it is known."""

    @property
    def joined(self) -> bool:
        """Whether there is an API server; nothing of it is exported without."""

    def watches(self) -> Mapping[str, bool]:
        """Whether each watch stands, by ``WatchedResource``."""

    def notices(self) -> Mapping[str, int]:
        """Events by ``NoticeOutcome``."""


class _Histogram:
    """A histogram that the agent fills: lock, list, sum. Without ``_created`` series."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
            self._sum += seconds

    def read(self) -> KernelHistogram:
        with self._lock:
            return KernelHistogram(tuple(zip(self._bounds, self._counts, strict=True)), self._sum)


class AgentMetrics:
    """All metrics of one agent, on a registry of their own.

    Args:
        status: the agent's state.
        registry: where to register; None for a new one.
        process: export the ``process_*`` metrics as well.
        began: Unix time at which the agent's own counts began.

    Attributes:
        registry: for the HTTP server.
    """

    def __init__(
        self,
        status: AgentStatus,
        *,
        registry: CollectorRegistry | None = None,
        process: bool = True,
        began: float | None = None,
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._status = status
        self._began = time.time() if began is None else began
        self._kernel: KernelCounters | None = None
        self._event_log: EventLogCounts | None = None
        self._verify = _Histogram(m.VERIFY_SECONDS.buckets)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._questions: Counter[m.QuestionOutcome] = Counter()
        self._off_switches: Counter[m.OffSwitch] = Counter()
        self._guard: Callable[[], Mapping[m.GuardedSwitch, int]] | None = None
        self._hardened = False
        self._sinks: Callable[[], Mapping[EventSink, SinkCounts]] | None = None
        self._cluster: ClusterCounts | None = None
        self._errors: Counter[m.ScrapeSource] = Counter()
        self._failing: set[m.ScrapeSource] = set()
        self._expected: dict[tuple[Verdict, Reason, Api, By], int] = {}
        self._expected_for: EffectivePolicy | None = None
        self._sources: dict[m.ScrapeSource, Callable[[], Iterator[Family]]] = {
            m.ScrapeSource.LOADS: self._loads,
            m.ScrapeSource.HISTOGRAMS: self._histograms,
            m.ScrapeSource.STATISTICS: self._statistics,
            m.ScrapeSource.STATUS: self._state,
            m.ScrapeSource.AGENT: self._agent,
            m.ScrapeSource.EVENT_LOG: self._log,
            m.ScrapeSource.GUARD: self._off,
            m.ScrapeSource.EVENT_SINKS: self._event_sinks,
            m.ScrapeSource.CLUSTER: self._kubernetes,
        }
        self.registry.register(self)
        if process:
            ProcessCollector(registry=self.registry)

    def attach(self, kernel: KernelCounters | None) -> None:
        """Read the counts of this backend from now on; None for no backend.

        Once this returns nobody reads the one before, so its memory may be unmapped.
        """
        with self._reading:
            self._kernel = kernel

    def attach_event_log(
        self,
        event_log: EventLogCounts,
        sinks: Callable[[], Mapping[EventSink, SinkCounts]] | None = None,
    ) -> None:
        """Export what this event log lost and left out, and what became of the events of each sink."""
        self._event_log = event_log
        self._sinks = sinks

    def loads(self) -> Mapping[tuple[Verdict, Reason, By], int]:
        """The decided loads, for ``kmodgate status``. OSError when they cannot be read."""
        totals: Counter[tuple[Verdict, Reason, By]] = Counter()
        with self._reading:
            if self._kernel is not None:
                for verdict, reason, _, by, count in self._kernel.loads():
                    totals[verdict, reason, by] += count
        return totals

    def lost(self) -> Mapping[str, int]:
        """Lost records, by ``EventLoss``, for ``kmodgate status``."""
        with self._reading:
            return self._lost(self._kernel, self._event_log)

    @staticmethod
    def _lost(kernel: KernelCounters | None, event_log: EventLogCounts | None) -> dict[str, int]:
        lost = dict.fromkeys(map(str, m.EventLoss), 0)
        if kernel is not None:
            lost |= kernel.lost()
        if event_log is not None:
            lost |= {_LOSS[cause].value: count for cause, count in event_log.lost().items()}
        return lost

    @property
    def hardened(self) -> bool:
        """The guard denies now."""
        return self._hardened

    def attach_cluster(self, cluster: ClusterCounts) -> None:
        """Export how the agent stands with the API server."""
        self._cluster = cluster

    def observe_verify(self, seconds: float) -> None:
        """One module was read and verified."""
        self._verify.observe(seconds)

    def count_question(self, outcome: m.QuestionOutcome) -> None:
        """One question of the programs has come to its end."""
        with self._lock:
            self._questions[outcome] += 1

    def count_off_switch(self, switch: m.OffSwitch) -> None:
        """An off switch was found touched."""
        with self._lock:
            self._off_switches[switch] += 1

    def attach_guard(self, denied: Callable[[], Mapping[m.GuardedSwitch, int]] | None) -> None:
        """Export what the guard denies. Like ``attach``, once it returns the one before is not read."""
        with self._reading:
            self._guard = denied

    def set_hardened(self, *, hardened: bool) -> None:
        """Whether the guard denies now."""
        self._hardened = hardened

    def describe(self) -> Iterator[Family]:
        """Every family without samples; the registry finds duplicate names by it."""
        for metric in m.TABLE:
            yield make.family_of(metric)

    def collect(self) -> Iterator[Family]:
        """Every family with its samples. Called by the registry at each scrape."""
        for source, read in self._sources.items():
            try:
                with self._reading:
                    families = list(read())
            except Exception as error:  # noqa: BLE001  # whatever breaks one source, the others are exported
                self._failed(source, error)
                continue
            self._failing.discard(source)
            yield from families
        with self._lock:
            errors = dict(self._errors)
        yield make.counts(m.SCRAPE_ERRORS, {(source,): errors.get(source, 0) for source in m.ScrapeSource})

    def _failed(self, source: m.ScrapeSource, error: Exception) -> None:
        with self._lock:
            self._errors[source] += 1
            first = source not in self._failing
            self._failing.add(source)
        if first:  # said once, until it has worked again
            log.error("metrics: %s cannot be read", source, exc_info=error)

    def _loads(self) -> Iterator[Family]:
        policy = self._status.snapshot().policy
        with self._lock:
            if policy is not None and policy != self._expected_for:
                # Zeros stay once they are there: a counter must not vanish when the policy changes.
                self._expected |= dict.fromkeys(expected_loads(policy), 0)
                self._expected_for = policy
            totals = Counter(self._expected)
        if self._kernel is not None:
            for verdict, reason, api, by, count in self._kernel.loads():
                totals[(verdict, reason, api, by)] += count
        told = {_load_labels(key): event for key, event in self._latest().loads.items()}
        yield make.counts(m.MODULE_LOADS, {_load_labels(key): n for key, n in totals.items()}, told=told)

    def _latest(self) -> Latest:
        return Latest() if self._event_log is None else self._event_log.exemplars.latest()

    def _histograms(self) -> Iterator[Family]:
        if self._kernel is not None:
            told = self._latest()
            yield make.histogram(m.DECISION_SECONDS, self._kernel.histogram("decision"), told.decision)
            yield make.histogram(m.HOLD_SECONDS, self._kernel.histogram("hold"), told.hold)

    def _statistics(self) -> Iterator[Family]:
        kernel, event_log = self._kernel, self._event_log
        if kernel is not None:
            since = self._status.snapshot().counts_since
            yield make.counts(m.LOAD_ATTEMPTS, {(): kernel.attempts()}, since)
            yield make.counts(m.LOADS_UNDECIDED, {(): kernel.undecided()}, since)
            yield make.counts(m.PROGRAM_MISSES, {(): kernel.misses()}, since)
            errors = dict.fromkeys(map(str, m.KernelErrorKind), 0) | dict(kernel.errors())
            yield make.counts(m.KERNEL_ERRORS, {(kind,): count for kind, count in errors.items()})
        lost = self._lost(kernel, event_log)
        yield make.counts(m.EVENTS_LOST, {(kind,): count for kind, count in lost.items()})

    def _state(self) -> Iterator[Family]:
        state = self._status.snapshot()
        yield make.value_of(m.ENFORCING, float(state.enforcing))
        yield make.info(m.BACKEND_INFO, (state.backend.value,))
        yield make.counts(m.BACKEND_DOWNGRADES, {(): state.downgrades}, self._began)
        yield make.info(m.BUILD_INFO, (__version__, platform.python_version(), platform.machine()))
        if state.policy is not None:
            yield make.info(m.POLICY_INFO, _policy_labels(state.policy))
            node = None if self._cluster is None else self._cluster.node
            yield make.info(k.NODE_POOL_INFO, (state.pool or "", node or ""))
        if state.reload_successful is not None:
            yield make.value_of(m.RELOAD_SUCCESSFUL, float(state.reload_successful))
        if state.reload_success_time is not None:
            yield make.value_of(m.RELOAD_TIMESTAMP, state.reload_success_time)
        if state.enforcement_gap is not None:
            yield make.value_of(m.ENFORCEMENT_GAP, state.enforcement_gap)
        if state.agent_gap is not None:
            yield make.value_of(m.AGENT_GAP, state.agent_gap)
        if state.hold_limit is not None:
            yield make.value_of(m.HOLD_LIMIT, state.hold_limit)
        yield make.value_of(m.TRUST_ANCHORS, state.anchor_count)
        yield make.gauges(m.TRUST_ANCHOR_NOT_AFTER, {(anchor,): end for anchor, end in state.anchors})
        if state.pinned_root is not None:
            root = state.pinned_root
            yield make.info(m.PINNED_ROOT_INFO, (root.protection.value, root.fs_type, root.device))
        if state.pinned_root_current is not None:
            yield make.value_of(m.PINNED_ROOT_CURRENT, float(state.pinned_root_current))
            yield make.value_of(m.PINNED_VERITY, state.pinned_verity)
        yield make.gauges(m.LOADED_MODULES, {(s.value,): n for s, n in state.loaded_modules.items()})
        yield make.gauges(m.PREVERIFIED, {(o.value,): n for o, n in state.preverified.items()})

    def _agent(self) -> Iterator[Family]:
        with self._lock:
            questions = dict(self._questions)
        yield make.counts(m.QUESTIONS, {(o.value,): questions.get(o, 0) for o in m.QuestionOutcome})
        yield make.histogram(m.VERIFY_SECONDS, self._verify.read())

    def _off(self) -> Iterator[Family]:
        with self._lock:
            events = dict(self._off_switches)
        yield make.value_of(m.HARDENED, float(self._hardened))
        yield make.counts(m.OFF_SWITCH_EVENTS, {(s.value,): events.get(s, 0) for s in m.OffSwitch})
        if self._guard is not None:
            denied = self._guard()
            yield make.counts(m.OFF_SWITCH_DENIALS, {(s.value,): denied.get(s, 0) for s in m.GuardedSwitch})

    def _kubernetes(self) -> Iterator[Family]:
        if self._cluster is not None and self._cluster.joined:
            watches, notices = self._cluster.watches(), self._cluster.notices()
            yield make.gauges(
                k.KUBERNETES_WATCH, {(r.value,): watches.get(r, False) for r in k.WatchedResource}
            )
            yield make.counts(k.KUBERNETES_EVENTS, {(o.value,): notices.get(o, 0) for o in k.NoticeOutcome})

    def _log(self) -> Iterator[Family]:
        if self._event_log is not None:
            left_out = self._event_log.suppressed()
            yield make.counts(
                m.EVENTS_SUPPRESSED, {(key.verdict.label, key.reason.label): n for key, n in left_out.items()}
            )

    def _event_sinks(self) -> Iterator[Family]:
        if self._sinks is not None:
            counts = self._sinks()
            yield make.counts(EVENT_SINK_SENT, {(sink.value,): found.sent for sink, found in counts.items()})
            yield make.counts(
                EVENT_SINK_DROPPED,
                {
                    (sink.value, cause.value): count
                    for sink, found in counts.items()
                    for cause, count in found.dropped.items()
                },
            )


def _policy_labels(policy: EffectivePolicy) -> tuple[str, ...]:
    return (
        policy.policy.value,
        policy.mode.value,
        str(policy.load_pin).lower(),
        str(policy.pinned_root_exempt).lower(),
        policy.failure_policy.value,
    )


def _load_labels(key: tuple[Verdict, Reason, Api, By]) -> tuple[str, ...]:
    return tuple(part.label for part in key)
