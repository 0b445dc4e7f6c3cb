# SPDX-License-Identifier: Apache-2.0
"""What the self-probe proves: enforcement is claimed because it was just seen to work. Pure."""

from __future__ import annotations

import errno
from typing import Final

from .hooks.bpf import ProbeResult
from .model import Api, EffectivePolicy, LoadFacts, Origin, Verdict, Verification
from .policy import evaluate

_PROBE: Final = (Api.INIT_MODULE, Origin.MEMORY)


def probe_problem(policy: EffectivePolicy, probe: ProbeResult, *, sig_enforce: bool) -> str | None:
    """What a self-probe says against enforcement under this policy, or None.

    The probe is an ``init_module`` of bytes that are unsigned and no ELF file.
    """
    api, origin = _PROBE
    first = evaluate(policy, LoadFacts(api, origin, Verification.NOT_YET))
    if not probe.first_hook:
        return (
            "the self-probe passed kernel_load_data unseen; is kernel.ftrace_enabled 0, or were the "
            "programs detached?"
        )
    decision = first
    if first.verdict is not Verdict.DENY and not sig_enforce:
        if not probe.signature:
            return "the self-probe passed locked_down unseen, or its bytes were not noted"
        if first.verdict is Verdict.PENDING:
            decision = evaluate(policy, LoadFacts(api, origin, Verification.UNSIGNED))
    expected = decision.errno if decision.verdict is Verdict.DENY else errno.ENOEXEC
    if first.verdict is not Verdict.DENY and sig_enforce:
        expected = errno.EKEYREJECTED
    if probe.errno != expected:
        got, wanted = errno.errorcode.get(probe.errno, "0"), errno.errorcode[expected]
        return f"the self-probe was answered {got} where the policy says {wanted}"
    if not probe.ended:
        return "the end of the self-probe's system call was not seen: loads would not be counted"
    return None
