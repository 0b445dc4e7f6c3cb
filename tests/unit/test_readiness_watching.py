# SPDX-License-Identifier: Apache-2.0
"""Ready on a rung that only watches."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from kmodgate.hooks.bpf import ProbeResult
from kmodgate.hooks.rung import RungBackend
from kmodgate.model import Backend, EffectivePolicy, Mode, Policy
from kmodgate.node import NodePaths
from kmodgate.readiness import Readiness
from kmodgate.rungs import Terms
from kmodgate.selfprobe import kernel_enforces, watch_problem
from kmodgate.telemetry.status import AgentStatus

ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
AUDIT = replace(ENFORCE, mode=Mode.AUDIT)
PINNED = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=True)
FREE = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=False)
BY_KERNEL = Terms(by_kernel=True)
OBSERVE = Terms(may_observe=True)


def seen(number: int, *, told: bool = True, ended: bool = True) -> ProbeResult:
    return ProbeResult(number, first_hook=told, signature=True, ended=ended)


@dataclass
class Watcher:
    """A backend, as far as readiness asks."""

    result: ProbeResult
    backend: Backend = Backend.TRACEFS
    root_pinned: bool = True

    def probe(self) -> ProbeResult:
        return self.result


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    paths = NodePaths(proc=tmp_path / "proc", sys=tmp_path / "sys")
    (paths.sys / "module/module/parameters").mkdir(parents=True)
    (paths.sys / "module/module/parameters/sig_enforce").write_text("N\n")
    return paths


def probe(
    paths: NodePaths, policy: EffectivePolicy, result: ProbeResult, terms: Terms
) -> tuple[str | None, bool]:
    status = AgentStatus()
    readiness = Readiness(status, paths)
    readiness.terms = terms
    readiness.probe(cast("RungBackend", Watcher(result)), policy)
    return readiness.problem, status.snapshot().enforcing


def test_the_kernel_enforces_where_its_switch_was_set_and_the_probe_says_so(paths: NodePaths) -> None:
    assert probe(paths, ENFORCE, seen(errno.EKEYREJECTED), BY_KERNEL) == (None, True)
    assert (paths.sys / "module/module/parameters/sig_enforce").read_text().startswith("1")


def test_a_switch_that_is_set_and_does_nothing_is_a_problem(paths: NodePaths) -> None:
    problem, enforcing = probe(paths, ENFORCE, seen(errno.ENOEXEC), BY_KERNEL)
    assert problem is not None
    assert "answered ENOEXEC" in problem
    assert "cannotEnforce: observe" in problem
    assert not enforcing


def test_a_switch_that_cannot_be_set_is_a_problem_with_its_remedy(paths: NodePaths) -> None:
    problem, enforcing = probe(paths, PINNED, seen(errno.EPERM), BY_KERNEL)
    assert problem is not None
    assert "no LoadPin of its own" in problem
    assert not enforcing


@pytest.mark.parametrize(
    ("policy", "terms"),
    [(ENFORCE, OBSERVE), (PINNED, replace(BY_KERNEL, may_observe=True)), (AUDIT, BY_KERNEL)],
)
def test_where_that_is_put_up_with_it_is_ready_and_claims_nothing(
    paths: NodePaths, policy: EffectivePolicy, terms: Terms
) -> None:
    assert probe(paths, policy, seen(errno.ENOEXEC), terms) == (None, False)
    assert (paths.sys / "module/module/parameters/sig_enforce").read_text() == "N\n"


def test_nothing_to_refuse_is_enforced(paths: NodePaths) -> None:
    assert probe(paths, FREE, seen(errno.ENOEXEC), BY_KERNEL) == (None, True)


@pytest.mark.parametrize(("told", "ended"), [(False, False), (True, False)])
def test_a_rung_that_does_not_see_is_not_ready(paths: NodePaths, told: bool, ended: bool) -> None:
    result = seen(errno.EKEYREJECTED, told=told, ended=ended)
    problem, enforcing = probe(paths, ENFORCE, result, BY_KERNEL)
    assert problem == watch_problem(result)
    assert not enforcing


def test_failures_in_a_row_are_counted(paths: NodePaths) -> None:
    readiness = Readiness(AgentStatus(), paths)
    for _ in range(3):
        readiness.probe(cast("RungBackend", Watcher(seen(0, told=False))), AUDIT)
    assert readiness.failures == 3
    readiness.probe(cast("RungBackend", Watcher(seen(errno.ENOEXEC))), AUDIT)
    assert readiness.failures == 0


@pytest.mark.parametrize(
    ("policy", "number", "enforced"),
    [
        (ENFORCE, errno.EKEYREJECTED, True),
        (ENFORCE, errno.EPERM, True),  # lockdown, or the kernel's own LoadPin before
        (ENFORCE, errno.ENOEXEC, False),
        (PINNED, errno.EPERM, True),
        (PINNED, errno.EKEYREJECTED, False),
        (FREE, errno.ENOEXEC, True),
        (FREE, errno.EKEYREJECTED, True),
    ],
)
def test_what_a_probe_proves_of_the_kernel(policy: EffectivePolicy, number: int, enforced: bool) -> None:
    assert kernel_enforces(policy, seen(number)) is enforced


def test_what_stays_is_said_at_the_end(paths: NodePaths) -> None:
    readiness = Readiness(AgentStatus(), paths)
    readiness.terms = BY_KERNEL
    assert "no longer enforces" in readiness.leave(Backend.BPF_LSM, keep=False)
    assert "no switch of the kernel was set" in readiness.leave(Backend.TRACEFS, keep=True)
    readiness.probe(cast("RungBackend", Watcher(seen(errno.EKEYREJECTED))), ENFORCE)
    assert "module.sig_enforce stays 1" in readiness.leave(Backend.TRACEFS, keep=True)
    assert "until the next boot" in readiness.leave(Backend.TRACEFS, keep=False)
