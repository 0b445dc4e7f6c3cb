# SPDX-License-Identifier: Apache-2.0
"""What a self-probe proves under each policy."""

from __future__ import annotations

import errno

import pytest

from kmodgate.hooks.bpf import ProbeResult
from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.selfprobe import probe_problem

ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
AUDIT = EffectivePolicy(Policy.ENFORCE, Mode.AUDIT, load_pin=True)
LOADPIN = EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=True)
OPEN = EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=False)

WHOLE = (True, True, True)


REJECTED = errno.EKEYREJECTED


@pytest.mark.parametrize(
    ("policy", "number", "seen"),
    [
        (ENFORCE, REJECTED, WHOLE),
        (AUDIT, REJECTED, WHOLE),
        (LOADPIN, errno.EPERM, (True, False, True)),
        (OPEN, REJECTED, WHOLE),
    ],
)
def test_working_enforcement(policy: EffectivePolicy, number: int, seen: tuple[bool, bool, bool]) -> None:
    assert probe_problem(policy, ProbeResult(number, *seen), kernel_refuses=False) is None


@pytest.mark.parametrize(
    ("policy", "number", "seen", "words"),
    [
        (ENFORCE, errno.ENOEXEC, (False, False, False), "kernel_load_data"),
        (ENFORCE, errno.ENOEXEC, (True, False, True), "locked_down"),
        (ENFORCE, errno.ENOEXEC, WHOLE, "ENOEXEC"),
        (ENFORCE, errno.EPERM, WHOLE, "EPERM"),
        (ENFORCE, REJECTED, (True, True, False), "not be counted"),
        (LOADPIN, errno.ENOEXEC, WHOLE, "EPERM"),
        (LOADPIN, REJECTED, WHOLE, "EPERM"),
        (OPEN, errno.ENOEXEC, WHOLE, "ENOEXEC"),
        (AUDIT, errno.ENOEXEC, WHOLE, "ENOEXEC"),
    ],
)
def test_anything_else_is_a_problem(
    policy: EffectivePolicy, number: int, seen: tuple[bool, bool, bool], words: str
) -> None:
    problem = probe_problem(policy, ProbeResult(number, *seen), kernel_refuses=False)
    assert problem is not None
    assert words in problem


def test_where_the_kernel_refuses_by_itself_the_probe_ends_at_the_first_hook() -> None:
    unseen = (True, False, True)
    for policy in (ENFORCE, AUDIT, OPEN):
        probe = ProbeResult(REJECTED, *unseen)
        assert probe_problem(policy, probe, kernel_refuses=True) is None
        assert probe_problem(policy, probe, kernel_refuses=False) is not None
        assert probe_problem(policy, ProbeResult(errno.ENOEXEC, *unseen), kernel_refuses=True) is not None
    assert probe_problem(LOADPIN, ProbeResult(REJECTED, *unseen), kernel_refuses=True) is not None
    assert probe_problem(LOADPIN, ProbeResult(errno.EPERM, *unseen), kernel_refuses=True) is None
