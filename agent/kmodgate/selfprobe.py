# SPDX-License-Identifier: Apache-2.0
"""What the self-probe proves: enforcement is claimed because it was just seen to work. Pure."""

from __future__ import annotations

import errno
from typing import Final

from .hooks.bpf import ProbeResult
from .model import Api, EffectivePolicy, LoadFacts, Origin, Stage, Verdict, Verification
from .policy import evaluate

_PROBE: Final = (Api.INIT_MODULE, Origin.MEMORY)


def probe_problem(policy: EffectivePolicy, probe: ProbeResult, *, kernel_refuses: bool) -> str | None:
    """What a self-probe says against enforcement under this policy, or None.

    The probe is an ``init_module`` of bytes that are unsigned and no ELF file. The programs
    refuse it in any case, with the number that the policy would give an unsigned module.

    Args:
        policy: the policy in force.
        probe: what was seen.
        kernel_refuses: under ``module.sig_enforce`` or lockdown the kernel refuses before it asks
            anybody, and the probe ends at the first hook.
    """
    if not probe.first_hook:
        return (
            "the self-probe passed kernel_load_data unseen; is kernel.ftrace_enabled 0, or were the "
            "programs detached?"
        )
    first = evaluate(policy, LoadFacts(*_PROBE, Verification.NOT_YET))
    refused_first = first.verdict is Verdict.DENY
    if not refused_first and not kernel_refuses and not probe.signature:
        return "the self-probe passed locked_down unseen, or its bytes were not noted"
    judged = evaluate(policy, LoadFacts(*_PROBE, Verification.NOT_YET, Stage.BYTES))
    if judged.verdict is Verdict.PENDING and not kernel_refuses and not probe.bytes_read:
        return "the self-probe passed kernel_post_load_data unseen, where every load is to be looked up"
    expected = first.errno if refused_first else errno.EKEYREJECTED
    if not probe.only_watches and probe.errno != expected:
        got, wanted = errno.errorcode.get(probe.errno, "0"), errno.errorcode[expected]
        return f"the self-probe was answered {got} where the policy says {wanted}"
    if not probe.ended:
        return "the end of the self-probe's system call was not seen: loads would not be counted"
    return None


def watch_problem(probe: ProbeResult) -> str | None:
    """What a self-probe says against a rung that only watches, or None."""
    if not probe.first_hook:
        return (
            "the trace instance did not tell the self-probe; is this the host's PID namespace, and does the "
            "instance still record?"
        )
    if not probe.ended:
        return "the trace instance did not tell the end of the self-probe"
    return None


def kernel_enforces(policy: EffectivePolicy, probe: ProbeResult) -> bool:
    """Whether the kernel by itself refused the self-probe where this policy does.

    A kernel that refuses more than the policy asks for does enforce it.
    """
    expected = evaluate(policy, LoadFacts(*_PROBE, Verification.UNSIGNED))
    if expected.verdict is not Verdict.DENY:
        return True
    # LoadPin and lockdown answer EPERM before or instead of sig_enforce.
    return probe.errno in {expected.errno, errno.EPERM}
