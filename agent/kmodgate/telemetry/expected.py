# SPDX-License-Identifier: Apache-2.0
"""The load counters that a policy can move, so that they are there at 0 before it does.

This module does no I/O. ``increase()`` over a series that begins at 1 is 0: without the
zeros the first refusal on a node, which may be the only one, would never raise an alert.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmodgate.model import Api, By, EffectivePolicy, LoadFacts, Origin, Reason, Verdict, Verification
from kmodgate.policy import evaluate

LoadKey = tuple[Verdict, Reason, Api, By]

# What the kernel refuses on its own, whatever the policy; tampered and malformed signatures
# are fatal in every mode (kernel/module/signing.c).
_KERNEL_REFUSALS = (
    Reason.BAD_SIGNATURE,
    Reason.MALFORMED_SIGNATURE,
    Reason.KERNEL_SIG_ENFORCE,
    Reason.KERNEL_LOCKDOWN,
    Reason.OTHER_SECURITY_MODULE,
)


def expected_loads(policy: EffectivePolicy) -> frozenset[LoadKey]:
    """Every decision that this policy can come to, and the kernel's own refusals."""
    return frozenset([*_decided(policy), *_refused_by_kernel()])


def _decided(policy: EffectivePolicy) -> Iterator[LoadKey]:
    for api in Api:
        for origin in Origin:
            if api is Api.INIT_MODULE and origin is not Origin.MEMORY:
                continue  # init_module(2) has no file
            for verification in Verification:
                decision = evaluate(policy, LoadFacts(api, origin, verification))
                if decision.verdict is Verdict.PENDING:
                    continue
                by = By.KERNEL if decision.reason is Reason.TRUSTED_SIGNATURE else By.KMODGATE
                yield decision.verdict, decision.reason, api, by
                if by is By.KERNEL:
                    yield decision.verdict, decision.reason, api, By.KMODGATE


def _refused_by_kernel() -> Iterator[LoadKey]:
    for api in Api:
        for reason in _KERNEL_REFUSALS:
            yield Verdict.DENY, reason, api, By.KERNEL
