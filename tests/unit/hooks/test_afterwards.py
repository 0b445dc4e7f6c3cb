# SPDX-License-Identifier: Apache-2.0
"""Verdicts of a rung that watches: the policy's answer, the kernel's refusals, and no more than is known."""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodgate.hooks.afterwards import TAINT_UNSIGNED, KernelChecks, Outcome, SeenLoad, judge
from kmodgate.model import (
    Api,
    By,
    Decision,
    EffectivePolicy,
    LoadFacts,
    Mode,
    Origin,
    Policy,
    Reason,
    Verdict,
    Verification,
)
from kmodgate.policy import compile_table, evaluate

ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
PINNED = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=True)
FREE = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=False)
OPEN = KernelChecks(signatures_built=True)
STRICT = KernelChecks(signatures_built=True, sig_enforce=True)
FINIT, INIT = Api.FINIT_MODULE, Api.INIT_MODULE
ROOT, OTHER, MEMORY = Origin.PINNED_ROOT, Origin.OTHER_FILESYSTEM, Origin.MEMORY
V = Verification
ALLOW, DENY, WOULD = Verdict.ALLOW, Verdict.DENY, Verdict.WOULD_DENY
REJECTED = errno.EKEYREJECTED


def got_in(api: Api = FINIT, taints: int | None = 0, **more: object) -> SeenLoad:
    return SeenLoad(api, 0, got_in=True, taints=taints, privileged=True, **more)  # type: ignore[arg-type]


def failed(number: int, api: Api = FINIT, **more: object) -> SeenLoad:
    return SeenLoad(api, -number, **{"privileged": True, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "kernel", "load", "expected"),
    [
        # What got in.
        (ENFORCE, OPEN, got_in(), (ALLOW, Reason.TRUSTED_SIGNATURE, 0, By.KERNEL)),
        (ENFORCE, OPEN, got_in(INIT), (ALLOW, Reason.TRUSTED_SIGNATURE, 0, By.KERNEL)),
        (
            ENFORCE,
            OPEN,
            got_in(taints=TAINT_UNSIGNED, found=V.UNSIGNED, origin=OTHER),
            (WOULD, Reason.UNSIGNED, REJECTED, By.KMODGATE),
        ),
        (
            ENFORCE,
            OPEN,
            got_in(taints=TAINT_UNSIGNED, found=V.UNTRUSTED_SIGNER, origin=OTHER),
            (WOULD, Reason.UNTRUSTED_SIGNER, REJECTED, By.KMODGATE),
        ),
        (
            ENFORCE,
            OPEN,
            got_in(taints=TAINT_UNSIGNED, found=V.TRUSTED, origin=OTHER),
            (ALLOW, Reason.TRUSTED_SIGNATURE, 0, By.KMODGATE),
        ),
        # Of whose bytes nothing is known: the kernel marked it, so it was not its keyrings' own.
        (
            ENFORCE,
            OPEN,
            got_in(taints=TAINT_UNSIGNED),
            (WOULD, Reason.UNREADABLE, REJECTED, By.KMODGATE),
        ),
        # A kernel that checks no signatures marks nothing.
        (ENFORCE, KernelChecks(), got_in(), (WOULD, Reason.UNREADABLE, REJECTED, By.KMODGATE)),
        (
            ENFORCE,
            OPEN,
            got_in(taints=TAINT_UNSIGNED, found=V.TRUSTED, flags=2),
            (WOULD, Reason.UNSIGNED, REJECTED, By.KMODGATE),
        ),
        (PINNED, OPEN, got_in(origin=ROOT), (ALLOW, Reason.PINNED_ROOT, 0, By.KMODGATE)),
        (
            PINNED,
            OPEN,
            got_in(origin=OTHER),
            (WOULD, Reason.OUTSIDE_PINNED_ROOT, errno.EPERM, By.KMODGATE),
        ),
        (PINNED, OPEN, got_in(INIT), (WOULD, Reason.NO_FILE, errno.EPERM, By.KMODGATE)),
        (PINNED, OPEN, got_in(), (WOULD, Reason.UNREADABLE, errno.EPERM, By.KMODGATE)),
        (FREE, OPEN, got_in(), (ALLOW, Reason.NOT_RESTRICTED, 0, By.KMODGATE)),
        # What the kernel refused.
        (
            ENFORCE,
            STRICT,
            failed(REJECTED, found=V.UNSIGNED, origin=OTHER),
            (DENY, Reason.UNSIGNED, REJECTED, By.KERNEL),
        ),
        (ENFORCE, STRICT, failed(REJECTED), (DENY, Reason.KERNEL_SIG_ENFORCE, REJECTED, By.KERNEL)),
        (ENFORCE, OPEN, failed(REJECTED), (DENY, Reason.BAD_SIGNATURE, REJECTED, By.KERNEL)),
        # Without sig_enforce only a signature that does not match is refused, whatever the agent makes of it.
        (
            ENFORCE,
            OPEN,
            failed(REJECTED, found=V.UNTRUSTED_SIGNER, origin=OTHER),
            (DENY, Reason.BAD_SIGNATURE, REJECTED, By.KERNEL),
        ),
        (FREE, STRICT, failed(REJECTED), (DENY, Reason.KERNEL_SIG_ENFORCE, REJECTED, By.KERNEL)),
        (
            ENFORCE,
            OPEN,
            failed(errno.EBADMSG),
            (DENY, Reason.MALFORMED_SIGNATURE, errno.EBADMSG, By.KERNEL),
        ),
        (
            ENFORCE,
            OPEN,
            failed(errno.EINVAL, found=V.MALFORMED_EINVAL),
            (DENY, Reason.MALFORMED_SIGNATURE, errno.EINVAL, By.KERNEL),
        ),
        (
            PINNED,
            KernelChecks(load_pin=True),
            failed(errno.EPERM, origin=OTHER),
            (DENY, Reason.OUTSIDE_PINNED_ROOT, errno.EPERM, By.KERNEL),
        ),
        (
            PINNED,
            KernelChecks(load_pin=True),
            failed(errno.EPERM, INIT),
            (DENY, Reason.NO_FILE, errno.EPERM, By.KERNEL),
        ),
        (
            ENFORCE,
            KernelChecks(lockdown=True),
            failed(errno.EPERM),
            (DENY, Reason.KERNEL_LOCKDOWN, errno.EPERM, By.KERNEL),
        ),
        (ENFORCE, OPEN, failed(errno.EPERM), (DENY, Reason.OTHER_SECURITY_MODULE, errno.EPERM, By.KERNEL)),
        (ENFORCE, OPEN, failed(errno.EACCES), (DENY, Reason.OTHER_SECURITY_MODULE, errno.EACCES, By.KERNEL)),
        # What failed on its own, and would have been refused.
        (
            ENFORCE,
            OPEN,
            failed(errno.EEXIST, found=V.UNSIGNED, origin=OTHER),
            (WOULD, Reason.UNSIGNED, REJECTED, By.KMODGATE),
        ),
        (PINNED, OPEN, failed(errno.ENOEXEC, INIT), (WOULD, Reason.NO_FILE, errno.EPERM, By.KMODGATE)),
    ],
)
def test_verdicts(
    policy: EffectivePolicy, kernel: KernelChecks, load: SeenLoad, expected: tuple[object, ...]
) -> None:
    found = judge(load, compile_table(policy), kernel)
    decision = found.decision
    assert found.outcome is Outcome.DECIDED
    assert (decision.verdict, decision.reason, decision.errno, found.by) == expected


@pytest.mark.parametrize(
    ("load", "kernel", "outcome"),
    [
        (failed(errno.EBADF), OPEN, Outcome.EARLY),
        (failed(errno.ETXTBSY), OPEN, Outcome.EARLY),
        (failed(errno.EINVAL, flags=8), OPEN, Outcome.EARLY),
        (failed(errno.EPERM, privileged=False), KernelChecks(lockdown=True), Outcome.EARLY),
        (failed(errno.EPERM, privileged=None), OPEN, Outcome.EARLY),
        (failed(errno.EPERM, privileged=None), KernelChecks(lockdown=True), Outcome.DECIDED),
        (failed(errno.ENOEXEC), OPEN, Outcome.UNDECIDED),
        (failed(errno.EEXIST), OPEN, Outcome.UNDECIDED),
        (failed(errno.EINVAL), OPEN, Outcome.UNDECIDED),
        (failed(errno.ENOEXEC, found=V.UNSIGNED), OPEN, Outcome.DECIDED),
    ],
)
def test_loads_without_a_verdict(load: SeenLoad, kernel: KernelChecks, outcome: Outcome) -> None:
    assert judge(load, compile_table(ENFORCE), kernel).outcome is outcome


def test_an_audited_load_pin_speaks_before_the_signature_is_looked_at() -> None:
    """As on the rungs with programs; what is enforced there would have been refused before, too."""
    table = compile_table(replace(PINNED, mode=Mode.AUDIT))
    load = failed(REJECTED, found=V.BAD_SIGNATURE, origin=OTHER)
    found = judge(load, table, OPEN)
    assert (found.decision, found.by) == (
        Decision(WOULD, Reason.OUTSIDE_PINNED_ROOT, errno.EPERM),
        By.KMODGATE,
    )
    found = judge(failed(REJECTED, found=V.BAD_SIGNATURE, origin=ROOT), table, OPEN)
    assert (found.decision.reason, found.by) == (Reason.BAD_SIGNATURE, By.KERNEL)
    by_kernel = judge(
        failed(errno.EPERM, found=V.UNSIGNED, origin=OTHER), table, replace(OPEN, load_pin=True)
    )
    assert (by_kernel.decision.verdict, by_kernel.by) == (DENY, By.KERNEL)
    enforced = judge(load, compile_table(PINNED), OPEN)
    assert (enforced.decision.verdict, enforced.by) == (DENY, By.KERNEL)


def test_revocation_wins_over_the_kernels_own_word() -> None:
    policy = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True, revocations=True)
    found = judge(got_in(found=V.REVOKED, origin=ROOT), compile_table(policy), OPEN)
    assert found.decision == Decision(WOULD, Reason.REVOKED, REJECTED)


def test_a_policy_that_does_not_trust_the_kernels_keyrings() -> None:
    policy = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True, kernel_keyrings=False)
    table = compile_table(policy)
    assert judge(got_in(found=V.TRUSTED, origin=ROOT), table, OPEN).decision.verdict is ALLOW
    assert judge(got_in(found=V.UNSIGNED, origin=ROOT), table, OPEN).decision.verdict is WOULD


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("word", Policy)
@pytest.mark.parametrize("load_pin", [False, True])
def test_the_policys_answer_is_the_policys(word: Policy, mode: Mode, load_pin: bool) -> None:
    """For every fact that can be known of a load that got in, ``evaluate`` is what decides."""
    policy = EffectivePolicy(word, mode, load_pin)
    table = compile_table(policy)
    for verification, origin in product(
        (V.UNSIGNED, V.UNTRUSTED_SIGNER, V.TRUSTED, V.UNSUPPORTED, V.REVOKED), (ROOT, OTHER)
    ):
        load = got_in(taints=TAINT_UNSIGNED, found=verification, origin=origin)
        wanted = evaluate(policy, LoadFacts(FINIT, origin, verification))
        found = judge(load, table, OPEN).decision
        assert (found.reason, found.errno) == (wanted.reason, wanted.errno)
        assert found.verdict is (ALLOW if wanted.verdict is ALLOW else WOULD)


LOADS = st.builds(
    SeenLoad,
    api=st.sampled_from(Api),
    result=st.one_of(st.just(0), st.integers(-200, -1)),
    got_in=st.booleans(),
    taints=st.one_of(st.none(), st.integers(0, 2**20)),
    flags=st.integers(0, 15),
    origin=st.one_of(st.none(), st.sampled_from([ROOT, OTHER])),
    found=st.one_of(st.none(), st.sampled_from([V.UNSIGNED, V.TRUSTED, V.REVOKED, V.MALFORMED_EINVAL])),
    privileged=st.one_of(st.none(), st.booleans()),
)
POLICIES = st.builds(
    EffectivePolicy,
    policy=st.sampled_from(Policy),
    mode=st.sampled_from(Mode),
    load_pin=st.booleans(),
    revocations=st.booleans(),
    kernel_keyrings=st.booleans(),
)
KERNELS = st.builds(KernelChecks, *[st.booleans()] * 4)


@settings(deadline=None)  # a busy machine takes its time
@given(LOADS, POLICIES, KERNELS)
def test_nothing_is_claimed_that_was_not_seen(
    load: SeenLoad, policy: EffectivePolicy, kernel: KernelChecks
) -> None:
    """``deny`` is the kernel's own and only of what did not get in; what got in is always decided."""
    found = judge(load, compile_table(policy), kernel)
    verdict = found.decision.verdict
    if load.got_in or not load.result:
        assert found.outcome is Outcome.DECIDED
    if verdict is DENY:
        assert found.by is By.KERNEL
        assert not load.got_in
        assert found.decision.errno == -load.result > 0
    if found.outcome is Outcome.DECIDED:
        assert verdict in {ALLOW, DENY, WOULD}
    else:
        assert verdict is Verdict.PENDING
    if verdict is ALLOW and policy.policy is Policy.ENFORCE:
        assert found.verification in {V.KERNEL_TRUSTED, V.TRUSTED}
