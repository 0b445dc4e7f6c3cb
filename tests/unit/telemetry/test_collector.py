# SPDX-License-Identifier: Apache-2.0
"""What a scrape shows, read back with the parsers that Prometheus' own client ships."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from kmodgate.kube.notices import Outcome
from kmodgate.model import (
    Api,
    Backend,
    By,
    EffectivePolicy,
    KernelHistogram,
    Mode,
    Policy,
    Reason,
    Verdict,
)
from kmodgate.node import PinnedRoot
from kmodgate.telemetry.collector import AgentMetrics
from kmodgate.telemetry.exemplars import Exemplars
from kmodgate.telemetry.expected import expected_loads
from kmodgate.telemetry.flood import LeftOut
from kmodgate.telemetry.kubernetes import NoticeOutcome
from kmodgate.telemetry.lines import Loss
from kmodgate.telemetry.metrics import TABLE, LoadedSignature, QuestionOutcome
from kmodgate.telemetry.sink import SinkCounts
from kmodgate.telemetry.sinkmetrics import EventSink
from kmodgate.telemetry.status import AgentStatus, Heartbeat, TrustAnchorValidity
from kmodgate.telemetry.table import OTHER

ROOT = PinnedRoot(27, 254, 1, "/", "ext4", "/dev/vda1", mount_read_only=False, superblock_read_only=False)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def sinks() -> Mapping[EventSink, SinkCounts]:
    return {sink: SinkCounts(7, {Loss.QUEUE_FULL: 3, Loss.WRITE_FAILED: 0}) for sink in EventSink}


class FakeLog:
    def __init__(self) -> None:
        self.exemplars = Exemplars()

    def suppressed(self) -> Mapping[LeftOut, int]:
        return {LeftOut(Verdict.DENY, Reason.UNSIGNED): 12}

    def lost(self) -> Mapping[Loss, int]:
        return {Loss.QUEUE_FULL: 3, Loss.WRITE_FAILED: 4}


def scrape(metrics: AgentMetrics) -> Samples:
    """Both formats, parsed; they must agree on everything."""
    text = read(parse_text(generate_latest(metrics.registry).decode()))
    encoded: bytes = generate_openmetrics(metrics.registry)  # type: ignore[no-untyped-call]
    openmetrics = read(parse_openmetrics(encoded.decode()))  # type: ignore[no-untyped-call]
    assert {k: v for k, v in text.items() if k[0].startswith("kmodgate_")} == {
        k: v for k, v in openmetrics.items() if k[0].startswith("kmodgate_")
    }
    return text


def read(families: Iterable[Metric]) -> Samples:
    samples: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


@pytest.fixture
def status() -> AgentStatus:
    return AgentStatus()


@pytest.fixture
def metrics(status: AgentStatus) -> AgentMetrics:
    return AgentMetrics(status, process=False)


def test_load_counters_are_exact(metrics: AgentMetrics, counters: Any) -> None:
    counters.load_counts = [
        (Verdict.DENY, Reason.UNSIGNED, Api.FINIT_MODULE, By.KMODGATE, 3),
        (Verdict.ALLOW, Reason.TRUSTED_SIGNATURE, Api.INIT_MODULE, By.KERNEL, 2**40 + 1),
    ]
    metrics.attach(counters)
    loads = {k: v for k, v in scrape(metrics).items() if k[0] == "kmodgate_module_loads_total"}
    assert sorted(loads.values()) == [3, 2**40 + 1]
    name = "kmodgate_module_loads_total"
    assert value(loads, name, verdict="deny", reason="unsigned", api="finit_module", by="kmodgate") == 3


def test_every_refusal_the_policy_can_give_is_there_at_zero(
    metrics: AgentMetrics, status: AgentStatus, counters: Any, enforce: EffectivePolicy
) -> None:
    status.set_policy(enforce)
    metrics.attach(counters)
    name = "kmodgate_module_loads_total"
    samples = scrape(metrics)
    for reason in ("unsigned", "untrusted_signer", "bad_signature", "revoked", "hold_timeout", "too_large"):
        for api in ("finit_module", "init_module"):
            assert value(samples, name, verdict="deny", reason=reason, api=api, by="kmodgate") == 0
    kernel = {"verdict": "deny", "reason": "kernel_lockdown", "api": "finit_module", "by": "kernel"}
    assert value(samples, name, **kernel) == 0
    before = {k for k in samples if k[0] == name}
    assert len(before) <= 40
    # A change of policy adds its own zeros and takes none away.
    status.set_policy(replace(enforce, mode=Mode.AUDIT))
    after = {k for k in scrape(metrics) if k[0] == name}
    assert before < after
    audit = {"verdict": "would_deny", "reason": "unsigned", "api": "init_module", "by": "kmodgate"}
    assert (name, frozenset(audit.items())) in after


def test_zeros_follow_the_policy() -> None:
    loadpin = expected_loads(EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=True))
    assert (Verdict.DENY, Reason.OUTSIDE_PINNED_ROOT, Api.FINIT_MODULE, By.KMODGATE) in loadpin
    assert (Verdict.DENY, Reason.NO_FILE, Api.INIT_MODULE, By.KMODGATE) in loadpin
    assert (Verdict.DENY, Reason.OUTSIDE_PINNED_ROOT, Api.INIT_MODULE, By.KMODGATE) not in loadpin
    assert Reason.UNSIGNED not in {reason for _, reason, _, _ in loadpin}


def test_kernel_histograms_are_cumulated(metrics: AgentMetrics, counters: Any) -> None:
    counters.histograms["decision"] = KernelHistogram(
        ((1e-6, 5), (2e-6, 0), (4e-6, 7), (8e-6, 2), (16e-6, 3), (math.inf, 1)), 0.25
    )
    metrics.attach(counters)
    samples = scrape(metrics)
    name = "kmodgate_decision_seconds"
    assert [value(samples, f"{name}_bucket", le=le) for le in ("4e-06", "1.6e-05", "6.4e-05", "+Inf")] == [
        12, 17, 17, 18,
    ]  # fmt: skip
    assert value(samples, f"{name}_count") == 18
    assert value(samples, f"{name}_sum") == 0.25
    assert value(samples, "kmodgate_hold_seconds_count") == 0


def test_statistics(metrics: AgentMetrics, counters: Any) -> None:
    counters.lost_counts = {"event_ring": 5}
    counters.error_counts = {"loaded_unseen": 1}
    metrics.attach(counters)
    metrics.attach_event_log(FakeLog())
    samples = scrape(metrics)
    assert value(samples, "kmodgate_module_load_attempts_total") == 100
    assert value(samples, "kmodgate_module_loads_undecided_total") == 7
    assert value(samples, "kmodgate_program_misses_total") == 2
    lost = {kind: value(samples, "kmodgate_events_lost_total", kind=kind) for kind in (
        "event_ring", "question_ring", "log_queue", "log_write",
    )}  # fmt: skip
    assert lost == {"event_ring": 5, "question_ring": 0, "log_queue": 3, "log_write": 4}
    assert value(samples, "kmodgate_kernel_errors_total", kind="loaded_unseen") == 1
    assert value(samples, "kmodgate_kernel_errors_total", kind="read_failed") == 0
    assert value(samples, "kmodgate_events_suppressed_total", verdict="deny", reason="unsigned") == 12


def test_status(metrics: AgentMetrics, status: AgentStatus, enforce: EffectivePolicy) -> None:
    nothing_yet = scrape(metrics)
    assert value(nothing_yet, "kmodgate_enforcing") == 0
    assert value(nothing_yet, "kmodgate_backend_info", backend="none") == 1
    assert value(nothing_yet, "kmodgate_config_last_reload_successful") is None
    status.set_policy(enforce)
    status.set_backend(Backend.BPF_LSM)
    status.set_enforcing(True)
    status.reload_succeeded(1_700_000_000.5)
    status.reload_failed("node.yaml:3: no such policy")
    status.set_trust_anchors([TrustAnchorValidity("AB:" * 31 + "AB", datetime(2030, 1, 1, tzinfo=UTC))])
    status.set_loaded_modules({LoadedSignature.TRUSTED_SIGNATURE: 80, LoadedSignature.UNSIGNED: 2})
    samples = scrape(metrics)
    assert value(samples, "kmodgate_enforcing") == 1
    assert value(samples, "kmodgate_backend_info", backend="bpf-lsm") == 1
    assert value(samples, "kmodgate_config_last_reload_successful") == 0
    assert value(samples, "kmodgate_config_last_reload_success_timestamp_seconds") == 1_700_000_000.5
    assert value(samples, "kmodgate_trust_anchors") == 1
    name = "kmodgate_trust_anchor_not_after_timestamp_seconds"
    assert value(samples, name, anchor="ab" * 8) == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    assert value(samples, "kmodgate_loaded_modules", signature="trusted_signature") == 80
    assert value(samples, "kmodgate_loaded_modules", signature="unknown") == 0
    info = {
        "policy": "ENFORCE_SIGNED_MODULES",
        "mode": "enforce",
        "load_pin": "true",
        "pinned_root_exempt": "false",
        "failure_policy": "Fail",
    }
    assert value(samples, "kmodgate_policy_info", **info) == 1
    assert status.snapshot().reload_error == "node.yaml:3: no such policy"


def test_agent_counts(metrics: AgentMetrics) -> None:
    for seconds in (0.0004, 0.001, 0.003, 99.0):
        metrics.observe_verify(seconds)
    metrics.count_question(QuestionOutcome.TRUSTED)
    samples = scrape(metrics)
    assert value(samples, "kmodgate_verify_seconds_bucket", le="0.001") == 2
    assert value(samples, "kmodgate_verify_seconds_bucket", le="0.005") == 3
    assert value(samples, "kmodgate_verify_seconds_count") == 4
    assert value(samples, "kmodgate_questions_total", outcome="trusted") == 1
    assert value(samples, "kmodgate_questions_total", outcome="gone") == 0


@pytest.mark.parametrize("part", ["loads", "histogram", "attempts"])
def test_one_broken_source_is_counted_and_the_rest_exported(
    metrics: AgentMetrics, counters: Any, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.attach(counters)
    metrics.attach_event_log(FakeLog())
    counters.load_counts = [(Verdict.DENY, Reason.UNSIGNED, Api.FINIT_MODULE, By.KMODGATE, 3)]
    complete = {name for name, _ in scrape(metrics)}
    counters.broken = {part}
    gone = {
        "loads": ["kmodgate_module_loads_total"],
        "histogram": [
            f"kmodgate_{h}_seconds_{s}" for h in ("decision", "hold") for s in ("bucket", "count", "sum")
        ],
        "attempts": [
            "kmodgate_module_load_attempts_total",
            "kmodgate_module_loads_undecided_total",
            "kmodgate_program_misses_total",
            "kmodgate_kernel_errors_total",
            "kmodgate_events_lost_total",
        ],
    }[part]
    source = {"loads": "loads", "histogram": "histograms", "attempts": "statistics"}[part]
    with caplog.at_level(logging.ERROR):
        samples = read(parse_text(generate_latest(metrics.registry).decode()))
        generate_latest(metrics.registry)
    assert {name for name, _ in samples} == complete - set(gone)
    assert value(samples, "kmodgate_scrape_errors_total", source=source) == 1
    assert len(caplog.records) == 1, "said once, not at every scrape"
    counters.broken = set()
    samples = scrape(metrics)
    assert {name for name, _ in samples} == complete
    assert value(samples, "kmodgate_scrape_errors_total", source=source) == 2


def test_hostile_strings_never_become_labels(metrics: AgentMetrics, counters: Any) -> None:
    hostile = ['evil"} 1\n', "/lib/modules/x.ko", "\u202e", "pod-a", "", "x" * 5000]
    counters.lost_counts = dict.fromkeys(hostile, 1)
    counters.error_counts = dict.fromkeys(hostile, 2)
    counters.load_counts = [(Verdict.PENDING, Reason.NONE, Api.FINIT_MODULE, By.KMODGATE, 9)]
    metrics.attach(counters)
    samples = scrape(metrics)
    assert value(samples, "kmodgate_kernel_errors_total", kind=OTHER) == 2 * len(hostile)
    assert value(samples, "kmodgate_events_lost_total", kind=OTHER) == len(hostile)
    allowed = {
        label.name: {*label.values, OTHER} for metric in TABLE for label in metric.labels if label.values
    }
    for name, labels in samples:
        for label, content in labels:
            if label in allowed and not name.endswith("_info"):
                assert any(
                    content in {*known.values, OTHER}
                    for metric in TABLE
                    for known in metric.labels
                    if known.name == label and metric.name == name
                ), (name, label, content)


def test_a_node_with_everything_counted_stays_small(
    metrics: AgentMetrics, status: AgentStatus, counters: Any, enforce: EffectivePolicy
) -> None:
    status.set_policy(enforce)
    status.set_trust_anchors(
        TrustAnchorValidity(f"{n:064x}"[::-1], datetime(2030, 1, 1, tzinfo=UTC)) for n in range(500)
    )
    counters.histograms["decision"] = KernelHistogram(
        (*((2**n * 1e-6, 1) for n in range(23)), (math.inf, 1)), 1.0
    )
    metrics.attach(counters)
    metrics.attach_event_log(FakeLog(), sinks)
    metrics.attach_cluster(FakeCluster())
    samples = scrape(metrics)
    anchors = [k for k in samples if k[0].startswith("kmodgate_trust_anchor_not_after")]
    assert len(anchors) == 64
    assert value(samples, "kmodgate_trust_anchors") == 500
    assert len(samples) - len(anchors) < 200


class FakeCluster:
    joined = True
    node = "node-a"

    def watches(self) -> dict[str, bool]:
        return {"node": True, "pods": False}

    def notices(self) -> dict[str, int]:
        return {"sent": 3, "dropped": 0, "refused": 1}


def test_the_cluster_and_the_node_pool(
    metrics: AgentMetrics, status: AgentStatus, enforce: EffectivePolicy
) -> None:
    status.set_policy(enforce, "gpu")
    samples = scrape(metrics)
    assert value(samples, "kmodgate_node_pool_info", pool="gpu", node="") == 1
    assert not [name for name, _ in samples if name.startswith("kmodgate_kubernetes")]
    metrics.attach_cluster(FakeCluster())
    samples = scrape(metrics)
    assert value(samples, "kmodgate_kubernetes_watch_current", resource="node") == 1
    assert value(samples, "kmodgate_kubernetes_watch_current", resource="pods") == 0
    assert value(samples, "kmodgate_kubernetes_events_total", outcome="sent") == 3
    assert value(samples, "kmodgate_kubernetes_events_total", outcome="refused") == 1
    status.set_policy(enforce, None)
    assert value(scrape(metrics), "kmodgate_node_pool_info", pool="", node="node-a") == 1


def test_the_words_for_notices_are_those_of_kube() -> None:
    assert [str(word) for word in NoticeOutcome] == [str(word) for word in Outcome]


def test_everything_exported_is_in_the_table_and_the_other_way_round(
    metrics: AgentMetrics, status: AgentStatus, counters: Any, enforce: EffectivePolicy
) -> None:
    status.set_policy(enforce)
    status.reload_succeeded(1.0)
    status.set_gap(enforcement=0.0, agent=2.5)
    status.set_pins(ROOT, current=True, verity=0)
    status.set_hold_limit(0.25)
    metrics.attach(counters)
    metrics.attach_event_log(FakeLog(), sinks)
    metrics.attach_guard(dict)
    metrics.attach_cluster(FakeCluster())
    exported = {family.name: family.documentation for family in metrics.registry.collect()}
    assert exported == {metric.family: metric.help for metric in TABLE}


def test_pinned_file_systems(metrics: AgentMetrics, status: AgentStatus) -> None:
    assert value(scrape(metrics), "kmodgate_pinned_root_current") is None
    status.set_pins(ROOT, current=True, verity=2)
    samples = scrape(metrics)
    labels = {"protection": "writable", "fstype": "ext4", "device": "254:1"}
    assert value(samples, "kmodgate_pinned_root_info", **labels) == 1
    assert value(samples, "kmodgate_pinned_root_current") == 1
    assert value(samples, "kmodgate_pinned_verity_filesystems") == 2
    status.set_pins(replace(ROOT, device_read_only=True, fs_type="a b\n"), current=False, verity=0)
    samples = scrape(metrics)
    labels = {"protection": "read_only_device", "fstype": OTHER, "device": "254:1"}
    assert value(samples, "kmodgate_pinned_root_info", **labels) == 1
    assert value(samples, "kmodgate_pinned_root_current") == 0


def test_registry_is_injected_and_a_second_agent_on_it_is_refused(status: AgentStatus) -> None:
    registry = CollectorRegistry()
    assert AgentMetrics(status, registry=registry).registry is registry
    with pytest.raises(ValueError, match="Duplicated"):
        AgentMetrics(status, registry=registry)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_metrics(status: AgentStatus) -> None:
    assert (value(scrape(AgentMetrics(status)), "process_resident_memory_bytes") or 0) > 0


def test_bad_fingerprint_is_refused(status: AgentStatus) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        status.set_trust_anchors([TrustAnchorValidity("CN=evil", datetime(2030, 1, 1, tzinfo=UTC))])


def test_heartbeat(clock: Any) -> None:
    heart = Heartbeat(5.0, now=clock)
    assert heart.problem() == "the agent's loop has not started"
    heart.beat()
    clock.time += 5
    assert heart.problem() is None
    clock.time += 1.5
    assert heart.problem() == "the agent's loop has not come round for 6.5 s (limit 5 s)"


def test_attach_waits_for_a_scrape_that_still_reads(metrics: AgentMetrics, counters: Any) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow_loads() -> list[Any]:
        reading.set()
        assert go_on.wait(5)
        return []

    counters.loads = slow_loads
    metrics.attach(counters)
    scraping = threading.Thread(target=lambda: generate_latest(metrics.registry))
    detaching = threading.Thread(target=lambda: metrics.attach(None))
    scraping.start()
    assert reading.wait(5)
    detaching.start()
    detaching.join(0.05)
    assert detaching.is_alive()
    go_on.set()
    detaching.join(5)
    scraping.join(5)
    assert not detaching.is_alive()
    assert "kmodgate_module_load_attempts_total" not in {name for name, _ in scrape(metrics)}
