# SPDX-License-Identifier: Apache-2.0
"""A synthetic fleet: 200 nodes in one process, each with the agent's real exporter.

Names, counts and troubles are made up; what is served is what an agent serves: ``AgentMetrics`` over
``TelemetryServer``, an event log beside it. Only the kernel's counters are replaced. Some nodes are in
trouble, each in another one, so that every alert has something to fire for.

Run as a program it serves until it is stopped:
``python -m tests.monitoring.fleet prometheus.yml events.json``.
"""

from __future__ import annotations

import io
import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from kmodgate.hooks import abi
from kmodgate.model import (
    Api,
    Backend,
    By,
    EffectivePolicy,
    FailurePolicy,
    KernelHistogram,
    LoadEvent,
    Mode,
    Policy,
    Reason,
    Verdict,
)
from kmodgate.node import PinnedRoot
from kmodgate.telemetry.collector import AgentMetrics
from kmodgate.telemetry.events import EventLog
from kmodgate.telemetry.http import TelemetryServer
from kmodgate.telemetry.lines import Loss
from kmodgate.telemetry.metrics import LoadedSignature, OffSwitch, QuestionOutcome
from kmodgate.telemetry.sink import SinkCounts
from kmodgate.telemetry.sinkmetrics import EventSink
from kmodgate.telemetry.status import AgentStatus, TrustAnchorValidity
from kmodgate.workload import Pod

POOLS = {"general": 120, "gpu": 50, "edge": 20, "batch": 10}
NODES = sum(POOLS.values())
DAY = timedelta(days=1)
ROOT = PinnedRoot(27, 254, 1, "/", "ext4", "/dev/vda1", mount_read_only=False, superblock_read_only=False)
_HOLD = 250_000_000

Load = tuple[Verdict, Reason, Api, By]
UNSIGNED: Load = (Verdict.DENY, Reason.UNSIGNED, Api.FINIT_MODULE, By.KMODGATE)
BUILT_IN: Load = (Verdict.ALLOW, Reason.TRUSTED_SIGNATURE, Api.FINIT_MODULE, By.KERNEL)


@dataclass
class SyntheticCounters:
    """What a kernel would count."""

    counts: Counter[Load] = field(default_factory=Counter)
    histograms: dict[str, list[int]] = field(
        default_factory=lambda: {name: [0] * abi.HISTOGRAM_BUCKETS for name in ("decision", "hold")}
    )
    sums: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)

    def loads(self) -> Iterator[tuple[Verdict, Reason, Api, By, int]]:
        for (verdict, reason, api, by), count in list(self.counts.items()):
            yield verdict, reason, api, by, count

    def histogram(self, name: str) -> KernelHistogram:
        last = abi.HISTOGRAM_BUCKETS - 1
        bounds = (math.inf if n == last else 2**n * 1e-6 for n in range(abi.HISTOGRAM_BUCKETS))
        return KernelHistogram(tuple(zip(bounds, self.histograms[name], strict=True)), self.sums[name] / 1e9)

    def attempts(self) -> int:
        return sum(self.counts.values())

    def undecided(self) -> int:
        return 0

    def misses(self) -> int:
        return 0

    def lost(self) -> Mapping[str, int]:
        return {"event_ring": 0, "question_ring": 0} | self.losses

    def errors(self) -> Mapping[str, int]:
        return self.failures

    def observe(self, name: str, nanoseconds: int) -> None:
        bucket = min(max(0, math.ceil(math.log2(max(1, nanoseconds) / 1000))), abi.HISTOGRAM_BUCKETS - 1)
        self.histograms[name][bucket] += 1
        self.sums[name] += nanoseconds


class Node:
    """One synthetic node.

    Attributes:
        name: of the node, which says that it is none.
        pool: its pool.
        trouble: what goes wrong there at each step, or None.
    """

    def __init__(self, name: str, pool: str, trouble: Callable[[Node], None] | None, log: io.FileIO) -> None:
        self.name, self.pool, self.trouble = name, pool, trouble
        self.random = random.Random(name)
        self.dropped = 0
        self.kernel = SyntheticCounters()
        self.status = AgentStatus()
        # One process has one set of process_* metrics: it stands for each node.
        self.metrics = AgentMetrics(self.status, process=True)
        self.log = EventLog(log, node=name)
        self.metrics.attach(self.kernel)
        self.metrics.attach_event_log(self.log)
        self.policy = EffectivePolicy(
            Policy.DO_NOT_ENFORCE if pool == "general" else Policy.ENFORCE,
            Mode.AUDIT if pool in {"edge", "batch"} else Mode.ENFORCE,
            load_pin=True,
            failure_policy=FailurePolicy.FAIL,
        )
        now = datetime.now(UTC)
        self.status.set_policy(self.policy)
        self.status.set_backend(Backend.BPF_FMOD_RET if pool == "edge" else Backend.BPF_LSM)
        self.status.set_enforcing(enforcing=self.policy.mode is Mode.ENFORCE)
        self.status.reload_succeeded(now.timestamp())
        self.status.set_gap(enforcement=0.0, agent=0.3)
        self.status.set_hold_limit(_HOLD / 1e9)
        self.status.set_counts_since(now.timestamp())
        self.status.set_pins(ROOT, current=True, verity=0)
        self.status.set_preverified({})
        self.status.set_loaded_modules({LoadedSignature.TRUSTED_SIGNATURE: 94})
        known: dict[str, list[float]] = {"gpu": [400, 20], "edge": [5], "batch": [0.5]}
        self.status.set_trust_anchors(
            TrustAnchorValidity(f"{number + 1:x}" * 16 + pool.encode().hex(), now + days * DAY)
            for number, days in enumerate(known.get(pool, [400]))
        )

    def load(self, load: Load, *, hold: int = 0) -> None:
        """One load, told and counted as an agent does."""
        verdict, reason, api, by = load
        decision = hold + self.random.randint(2_000, 60_000)
        self.kernel.counts[load] += 1
        self.kernel.observe("decision", decision)
        if hold:
            self.kernel.observe("hold", hold)
            self.metrics.observe_verify(hold / 2e9)
            trusted = verdict is Verdict.ALLOW
            self.metrics.count_question(QuestionOutcome.TRUSTED if trusted else QuestionOutcome.REFUSED)
        self.log.write(
            LoadEvent(
                time=datetime.now(UTC),
                verdict=verdict,
                reason=reason,
                by=by,
                mode=self.policy.mode,
                policy=self.policy.policy,
                api=api,
                module="synthetic_driver",
                path="/var/lib/synthetic/synthetic_driver.ko",
                exe="/usr/bin/kmod",
                uid=0,
                pod=Pod("0d3b1c52-0000-4000-8000-000000000001", "synthetic", f"loader-of-{self.name}"),
                node=self.name,
                hold_ns=hold,
                decision_ns=decision,
            )
        )

    def step(self) -> None:
        """A second passes."""
        if self.random.random() < 0.1:
            self.load(BUILT_IN)
        if self.pool == "gpu" and self.random.random() < 0.1:
            hold = self.random.randint(3, 20) * 1_000_000
            self.load((Verdict.ALLOW, Reason.TRUSTED_SIGNATURE, Api.FINIT_MODULE, By.KMODGATE), hold=hold)
        if self.trouble is not None:
            self.trouble(self)


def _loads(load: Load, *, hold: int = 0) -> Callable[[Node], None]:
    def trouble(node: Node) -> None:
        if node.random.random() < 0.3:
            node.load(load, hold=hold)

    return trouble


def _in_audit(reason: Reason) -> Load:
    return (Verdict.WOULD_DENY, reason, Api.FINIT_MODULE, By.KMODGATE)


def _denied(reason: Reason) -> Load:
    return (Verdict.DENY, reason, Api.FINIT_MODULE, By.KMODGATE)


def _unseen(node: Node) -> None:
    """A module a second gets in without a decision, and the sink for OTLP drops an event."""
    node.kernel.failures.update(loaded_unseen=1)
    node.dropped += 1
    counts = {EventSink.OTLP: SinkCounts(0, {Loss.WRITE_FAILED: node.dropped, Loss.QUEUE_FULL: 0})}
    node.metrics.attach_event_log(node.log, lambda: counts)


def _slow(node: Node) -> None:
    node.load(
        (Verdict.ALLOW, Reason.TRUSTED_SIGNATURE, Api.FINIT_MODULE, By.KMODGATE), hold=_HOLD - 10_000_000
    )


TROUBLES: dict[str, Callable[[Node], None]] = {
    "synthetic-gpu-003": _loads(UNSIGNED, hold=4_000_000),
    "synthetic-gpu-004": _loads(_denied(Reason.UNTRUSTED_SIGNER), hold=5_000_000),
    "synthetic-gpu-005": _loads(_denied(Reason.REVOKED)),
    "synthetic-gpu-006": _loads(_denied(Reason.HOLD_TIMEOUT), hold=_HOLD),
    "synthetic-gpu-007": _slow,
    "synthetic-gpu-008": _unseen,
    "synthetic-gpu-009": lambda node: node.metrics.count_off_switch(OffSwitch.FTRACE),
    "synthetic-gpu-010": lambda node: node.kernel.losses.update(event_ring=1),
    "synthetic-gpu-011": lambda node: node.status.set_enforcing(enforcing=False),
    "synthetic-gpu-012": lambda node: node.status.reload_failed("synthetic"),
    "synthetic-gpu-013": lambda node: node.status.set_loaded_modules(
        {LoadedSignature.TRUSTED_SIGNATURE: 94, LoadedSignature.UNSIGNED: 1}
    ),
    "synthetic-general-003": _loads(_denied(Reason.OUTSIDE_PINNED_ROOT)),
    "synthetic-edge-003": _loads(_in_audit(Reason.UNSIGNED)),
    "synthetic-edge-004": _loads(_in_audit(Reason.BAD_SIGNATURE)),
}
AWAY = "synthetic-general-009"
"""A node whose agent does not answer."""
WITHOUT = "synthetic-general-999"
"""A node of the cluster that has no agent."""


@dataclass(frozen=True)
class Target:
    """Where Prometheus finds a node."""

    name: str
    pool: str
    port: int


def nodes(log: io.FileIO) -> list[Node]:
    """The whole fleet."""
    return [
        Node(name, pool, TROUBLES.get(name), log)
        for pool, count in POOLS.items()
        for name in (f"synthetic-{pool}-{number:03}" for number in range(count))
    ]


def cluster(names: Iterable[str]) -> CollectorRegistry:
    """What kube-state-metrics would say of these nodes."""
    registry = CollectorRegistry()
    gauge = Gauge("kube_node_info", "Synthetic.", ["node"], registry=registry)
    for name in names:
        gauge.labels(name).set(1)
    return registry


@contextmanager
def running(log: Path) -> Iterator[tuple[list[Target], int]]:
    """The fleet, served on loopback: the targets, and the port of what says which nodes there are."""
    with ExitStack() as stack:
        stream = stack.enter_context(log.open("wb", buffering=0))
        fleet = nodes(stream)
        targets = []
        for node in fleet:
            stack.callback(node.log.close)
            server = TelemetryServer("127.0.0.1", 0, registry=node.metrics.registry)
            targets.append(Target(node.name, node.pool, server.port))
            if node.name == AWAY:
                server.stop()
            else:
                stack.enter_context(server)
        names = cluster([*(node.name for node in fleet), WITHOUT])
        kube = stack.enter_context(TelemetryServer("127.0.0.1", 0, registry=names))
        over = threading.Event()

        def live() -> None:
            while not over.wait(1.0):
                for node in fleet:
                    node.step()

        thread = threading.Thread(target=live, name="synthetic-fleet")
        thread.start()
        stack.callback(thread.join)
        stack.callback(over.set)
        yield targets, kube.port


def scrape_config(
    targets: Iterable[Target], kube: int, *, interval: str, rules: str, alertmanager: int | None
) -> str:
    """A config for Prometheus, with the target labels of docs/monitoring.md."""
    lines = [
        "global:",
        f"  scrape_interval: {interval}",
        f"  evaluation_interval: {interval}",
        "rule_files:",
        f"  - {rules}",
    ]
    if alertmanager is not None:
        lines += [
            "alerting:",
            "  alertmanagers:",
            f"    - static_configs: [{{targets: ['127.0.0.1:{alertmanager}']}}]",
        ]
    lines += ["scrape_configs:", "  - job_name: kmodgate", "    static_configs:"]
    lines += [
        f"      - {{targets: ['127.0.0.1:{target.port}'], "
        f"labels: {{instance: {target.name}, pool: {target.pool}}}}}"
        for target in targets
    ]
    lines += ["  - job_name: kube-state-metrics", f"    static_configs: [{{targets: ['127.0.0.1:{kube}']}}]"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Serve until stopped; the files that are named get a config for Prometheus, and the event log."""
    rules = Path(__file__).resolve().parents[2] / "helm/kmodgate/rules/*.yaml"
    with running(Path(sys.argv[2])) as (targets, kube):
        Path(sys.argv[1]).write_text(
            scrape_config(targets, kube, interval="15s", rules=str(rules), alertmanager=None)
        )
        print(f"{len(targets)} synthetic nodes; prometheus --config.file={sys.argv[1]}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
