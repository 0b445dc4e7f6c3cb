# SPDX-License-Identifier: Apache-2.0
"""What a scrape may cost and show: bounded series, exemplars, and nobody held up by it."""

from __future__ import annotations

import errno
import io
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import Sample
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from kmodgate.hooks import abi
from kmodgate.model import Api, By, EffectivePolicy, KernelHistogram, LoadEvent, Reason, Verdict
from kmodgate.node import PinnedRoot
from kmodgate.telemetry.collector import AgentMetrics
from kmodgate.telemetry.events import EventLog
from kmodgate.telemetry.lines import Loss
from kmodgate.telemetry.metrics import HOLD_SECONDS, MODULE_LOADS, QuestionOutcome
from kmodgate.telemetry.sink import SinkCounts
from kmodgate.telemetry.sinkmetrics import EventSink
from kmodgate.telemetry.status import AgentStatus, TrustAnchorValidity
from kmodgate.workload import Pod

SERIES = 150
ROOT = PinnedRoot(27, 254, 1, "/", "ext4", "/dev/vda1", mount_read_only=False, superblock_read_only=False)


def openmetrics(metrics: AgentMetrics) -> list[Sample]:
    text: bytes = generate_openmetrics(metrics.registry)  # type: ignore[no-untyped-call]  # no types there
    families = parse_openmetrics(text.decode())  # type: ignore[no-untyped-call]  # the same
    return [sample for family in families for sample in family.samples]


def sample(metrics: AgentMetrics, name: str, **labels: str) -> Sample:
    (found,) = [s for s in openmetrics(metrics) if s.name == name and s.labels == labels]
    return found


@contextmanager
def log_to_nowhere() -> Iterator[EventLog]:
    with open(os.devnull, "wb", buffering=0) as nowhere:  # noqa: PTH123  # as agents get theirs
        log = EventLog(nowhere)
        try:
            yield log
        finally:
            log.close()


@pytest.fixture
def status(enforce: EffectivePolicy) -> AgentStatus:
    """A node as it is in production: everything known, one certificate."""
    status = AgentStatus()
    status.set_policy(enforce)
    status.set_gap(enforcement=0.0, agent=0.4)
    status.reload_succeeded(1.7e9)
    status.set_loaded_modules({})
    status.set_preverified({})
    status.set_pins(ROOT, current=True, verity=0)
    status.set_hold_limit(0.25)
    status.set_counts_since(1.7e9)
    status.set_trust_anchors([TrustAnchorValidity("ab" * 32, datetime(2030, 1, 1, tzinfo=UTC))])
    return status


@pytest.fixture
def metrics(status: AgentStatus, counters: Any) -> AgentMetrics:
    last = abi.HISTOGRAM_BUCKETS - 1
    full = tuple(
        (math.inf if bucket == last else 2**bucket * 1e-6, 3) for bucket in range(abi.HISTOGRAM_BUCKETS)
    )
    counters.histograms = {"decision": KernelHistogram(full, 1.0), "hold": KernelHistogram(full, 1.0)}
    counters.load_counts = [(Verdict.DENY, Reason.UNSIGNED, Api.FINIT_MODULE, By.KMODGATE, 3)]
    metrics = AgentMetrics(status)
    metrics.attach(counters)
    return metrics


def test_a_node_has_at_most_150_series(metrics: AgentMetrics) -> None:
    with log_to_nowhere() as log:
        metrics.attach_event_log(log)
        assert len(openmetrics(metrics)) <= SERIES
        metrics.attach_guard(dict)
        hardened = len(openmetrics(metrics))
    # The guard's counters are there on hardened nodes alone.
    assert hardened <= SERIES + 5


def test_what_is_set_up_adds_what_the_page_says(metrics: AgentMetrics) -> None:
    class Cluster:
        node, joined = "node-a", True

        def watches(self) -> dict[str, bool]:
            return {}

        def notices(self) -> dict[str, int]:
            return {}

    def size() -> int:
        return len(openmetrics(metrics))

    with log_to_nowhere() as log:
        metrics.attach_event_log(log)
        plain = size()
        sinks = {sink: SinkCounts(0, dict.fromkeys(Loss, 0)) for sink in EventSink}
        metrics.attach_event_log(log, lambda: sinks)
        assert size() - plain == 3 * len(EventSink)
        metrics.attach_event_log(log)
        metrics.attach_cluster(Cluster())
        assert size() - plain == 5
        metrics.attach_guard(dict)
        assert size() - plain == 10


def test_no_loader_can_make_a_series(metrics: AgentMetrics, change: Callable[..., LoadEvent]) -> None:
    with log_to_nowhere() as log:
        metrics.attach_event_log(log)
        log.write(change())
        log.write(change(module="first"))

        def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
            return {(s.name, tuple(sorted(s.labels.items()))) for s in openmetrics(metrics)}

        def size() -> int:
            return len(generate_latest(metrics.registry))

        # The flood limit has begun to leave out: its own counter is one of a closed set, and there.
        while not log.suppressed():
            log.write(change())
        before, bytes_before = series(), size()
        for number in range(10_000):
            log.write(
                change(
                    module=f"mod_{number}",
                    path=f"/tmp/{number}/evil.ko",
                    comm=f"comm-{number}",
                    exe=f"/proc/{number}/exe",
                    container_id=f"{number:064x}",
                    pod=Pod(f"uid-{number}", f"namespace-{number}", f"pod-{number}"),
                    signature_detail=f"signed by CN={number}",
                    pid=number + 1,
                    result=-errno.EKEYREJECTED,
                )
            )
        assert series() == before
    assert b"evil" not in generate_latest(metrics.registry)
    assert size() - bytes_before < 500  # digits of the counts


def test_exemplars_lead_to_the_log(metrics: AgentMetrics, change: Callable[..., LoadEvent]) -> None:
    reading, writing = os.pipe()
    stream = io.FileIO(writing, "w")
    log = EventLog(stream)
    metrics.attach_event_log(log)
    labels = {"verdict": "deny", "reason": "unsigned", "api": "finit_module", "by": "kmodgate"}
    assert sample(metrics, MODULE_LOADS.name, **labels).exemplar is None
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    log.write(change(reason=Reason.UNSIGNED, time=when, hold_ns=5_000_000))
    number = log.write(change(reason=Reason.UNSIGNED, time=when, hold_ns=3_000_000))
    log.close()
    told = sample(metrics, MODULE_LOADS.name, **labels).exemplar
    assert told is not None
    assert told.labels == {"sequence": str(number)}
    assert float(told.timestamp or 0) == when.timestamp()
    lines = os.read(reading, 1 << 16).splitlines()
    assert any(f'"sequence":{number},'.encode() in line for line in lines)
    os.close(reading)
    stream.close()
    held = [s for s in openmetrics(metrics) if s.name == f"{HOLD_SECONDS.name}_bucket" and s.exemplar]
    assert {s.labels["le"] for s in held} == {"0.004096", "0.016384"}
    for bucket in held:
        assert bucket.exemplar is not None
        assert bucket.exemplar.value <= float(bucket.labels["le"])


def test_an_exemplar_of_a_count_that_is_still_0_is_left_out(
    metrics: AgentMetrics, change: Callable[..., LoadEvent]
) -> None:
    with log_to_nowhere() as log:
        metrics.attach_event_log(log)
        log.write(change(reason=Reason.REVOKED))
        labels = {"verdict": "deny", "reason": "revoked", "api": "finit_module", "by": "kmodgate"}
        assert sample(metrics, MODULE_LOADS.name, **labels).value == 0
        assert sample(metrics, MODULE_LOADS.name, **labels).exemplar is None


def test_native_counters_say_since_when(metrics: AgentMetrics) -> None:
    assert sample(metrics, "kmodgate_module_load_attempts_created").value == 1.7e9


def test_so_does_what_the_agent_counts(metrics: AgentMetrics) -> None:
    began = sample(metrics, "kmodgate_backend_downgrades_created").value
    assert 0 <= time.time() - began < 300
    started = sample(metrics, "process_start_time_seconds").value
    assert began >= started - 1
    created = [s.name for s in openmetrics(metrics) if s.name.endswith("_created")]
    assert len(created) == 4


def test_a_scrape_that_hangs_holds_up_nobody(
    metrics: AgentMetrics, counters: Any, status: AgentStatus, change: Callable[..., LoadEvent]
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hangs() -> int:
        entered.set()
        go_on.wait(30)
        return 1

    counters.attempts = hangs
    with log_to_nowhere() as log:
        metrics.attach_event_log(log)
        scraper = threading.Thread(target=generate_latest, args=(metrics.registry,))
        scraper.start()
        assert entered.wait(30)
        began = time.monotonic()
        for _ in range(100):  # all that the agent's threads do while loads are decided
            metrics.count_question(QuestionOutcome.TRUSTED)
            metrics.observe_verify(0.01)
            status.set_enforcing(enforcing=True)
            log.write(change())
        took = time.monotonic() - began
        assert scraper.is_alive()
        go_on.set()
        scraper.join(30)
    assert took < 10
