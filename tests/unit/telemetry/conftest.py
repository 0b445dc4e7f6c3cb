# SPDX-License-Identifier: Apache-2.0
"""Events, clocks and counters that the telemetry tests share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from kmodgate.model import (
    Api,
    By,
    EffectivePolicy,
    KernelHistogram,
    LoadEvent,
    Mode,
    Origin,
    Policy,
    Reason,
    SignatureStatus,
    Signer,
    Verdict,
)
from kmodgate.workload import Owner, Pod, Workload

DENIAL = LoadEvent(
    time=datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC),
    verdict=Verdict.DENY,
    reason=Reason.UNTRUSTED_SIGNER,
    by=By.KMODGATE,
    mode=Mode.ENFORCE,
    policy=Policy.ENFORCE,
    api=Api.FINIT_MODULE,
    origin=Origin.OTHER_FILESYSTEM,
    errno=129,
    result=-129,
    path="/tmp/evil.ko",  # a name in a record
    file_system="tmpfs",
    device=(0, 42),
    inode=2**63 + 5,
    size=123456,
    sha256="ab" * 32,
    module="evil",
    signer=Signer(issuer="CN=Somebody", serial="0a", skid="cd" * 20, subject=None),
    signature_status=SignatureStatus.UNTRUSTED_SIGNER,
    signature_detail="signed by CN=Somebody, which is no trust anchor",
    pid=4711,
    tid=4712,
    ppid=1,
    comm="insmod",
    exe="/usr/bin/kmod",
    uid=0,
    container_id="c" * 64,
    workload=Workload.POD,
    pod=Pod(
        "0d3b1c52-0000-4000-8000-000000000001",
        "default",
        "loader-0",
        "loader",
        "registry.example/loader:1",
        Owner("StatefulSet", "loader"),
        "drivers",
    ),
    node="node-a",
    pool="gpu",
    hold_ns=1_234_567,
    decision_ns=2_000_999,
)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@dataclass
class FakeCounters:
    """Counters of a kernel that is not there; ``broken`` methods raise."""

    load_counts: list[tuple[Verdict, Reason, Api, By, int]] = field(default_factory=list)
    lost_counts: dict[str, int] = field(default_factory=dict)
    error_counts: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, KernelHistogram] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def _check(self, name: str) -> None:
        if name in self.broken:
            raise OSError(5, "map cannot be read")

    def loads(self) -> Iterable[tuple[Verdict, Reason, Api, By, int]]:
        yield from self.load_counts
        self._check("loads")

    def histogram(self, name: str) -> KernelHistogram:
        self._check("histogram")
        return self.histograms.get(name, KernelHistogram(((math.inf, 0),), 0.0))

    def attempts(self) -> int:
        self._check("attempts")
        return 100

    def undecided(self) -> int:
        return 7

    def misses(self) -> int:
        return 2

    def lost(self) -> Mapping[str, int]:
        return self.lost_counts

    def errors(self) -> Mapping[str, int]:
        return self.error_counts


ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)


@pytest.fixture
def denial() -> LoadEvent:
    return DENIAL


@pytest.fixture
def change() -> Callable[..., LoadEvent]:
    """The denial with other values."""

    def changed(**values: Any) -> LoadEvent:
        return replace(DENIAL, **values)

    return changed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counters() -> FakeCounters:
    return FakeCounters()


@pytest.fixture
def enforce() -> EffectivePolicy:
    return ENFORCE
