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


@pytest.mark.parametrize(
    ("policy", "number", "seen"),
    [
        (ENFORCE, errno.EKEYREJECTED, WHOLE),
        (AUDIT, errno.ENOEXEC, WHOLE),
        (LOADPIN, errno.EPERM, (True, False, True)),
        (OPEN, errno.ENOEXEC, WHOLE),
    ],
)
def test_working_enforcement(policy: EffectivePolicy, number: int, seen: tuple[bool, bool, bool]) -> None:
    assert probe_problem(policy, ProbeResult(number, *seen), sig_enforce=False) is None


@pytest.mark.parametrize(
    ("policy", "number", "seen", "words"),
    [
        (ENFORCE, errno.ENOEXEC, (False, False, False), "kernel_load_data"),
        (ENFORCE, errno.ENOEXEC, (True, False, True), "locked_down"),
        (ENFORCE, errno.ENOEXEC, WHOLE, "ENOEXEC"),
        (ENFORCE, errno.EPERM, WHOLE, "EPERM"),
        (ENFORCE, errno.EKEYREJECTED, (True, True, False), "not be counted"),
        (LOADPIN, errno.ENOEXEC, WHOLE, "EPERM"),
        (OPEN, errno.EPERM, WHOLE, "ENOEXEC"),
        (AUDIT, errno.EKEYREJECTED, WHOLE, "ENOEXEC"),
    ],
)
def test_anything_else_is_a_problem(
    policy: EffectivePolicy, number: int, seen: tuple[bool, bool, bool], words: str
) -> None:
    problem = probe_problem(policy, ProbeResult(number, *seen), sig_enforce=False)
    assert problem is not None
    assert words in problem


def test_under_sig_enforce_the_kernel_refuses_before_locked_down() -> None:
    probe = ProbeResult(errno.EKEYREJECTED, first_hook=True, signature=False, ended=True)
    assert probe_problem(ENFORCE, probe, sig_enforce=True) is None
    assert probe_problem(AUDIT, probe, sig_enforce=True) is None
    assert probe_problem(LOADPIN, probe, sig_enforce=True) is not None
