# SPDX-License-Identifier: Apache-2.0
"""A load judged when it is over, on a rung that only watches. Pure.

The policy's answer comes from the table that ``policy.compile_table`` makes, as on every rung. Here
it comes too late to refuse anything. So ``deny`` stands for what the kernel refused by itself, with
``by="kernel"``; what the policy would refuse and nothing stopped is ``would_deny``, in audit mode
or not; and a load that failed on its own, of which too little is known, is not decided at all.

Steps (the numbers stand again beside the code):

1. Did the call fail before anybody is asked for a verdict?
2. What is known of the signature: the kernel's own word first, then what the bytes show.
3. What does the policy say? Where it depends on an origin that is not known, nothing.
4. Did the kernel refuse, and not only for the signature of what an audited policy would have refused
   before, by where it lies?
5. Did it fail on its own, of an unknown signature?
6. Otherwise the policy's answer stands.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from kmodgate.model import Api, By, Decision, LoadFacts, Origin, Reason, Verdict, Verification
from kmodgate.policy import table_index

TAINT_UNSIGNED: Final = 1 << 13
"""``TAINT_UNSIGNED_MODULE`` (include/linux/panic.h): the kernel found no signature that it trusts."""

# include/uapi/linux/module.h
IGNORE_FLAGS: Final = 1 | 2
COMPRESSED: Final = 4
_FLAGS: Final = IGNORE_FLAGS | COMPRESSED

_BEFORE_ANY_HOOK: Final = frozenset({errno.EBADF, errno.ETXTBSY})
_REFUSED: Final = frozenset({Verdict.DENY, Verdict.WOULD_DENY})
_BY_ORIGIN: Final = frozenset({Reason.OUTSIDE_PINNED_ROOT, Reason.NO_FILE})
_BY_SIGNATURE: Final = frozenset({errno.EKEYREJECTED, errno.EBADMSG, errno.EMSGSIZE})
_FILES: Final = (Origin.PINNED_ROOT, Origin.OTHER_FILESYSTEM)
_PENDING: Final = Decision(Verdict.PENDING, Reason.NONE)


class Outcome(Enum):
    """What became of a load, before the verdict."""

    EARLY = "early"
    """It failed before the kernel asks anybody: no attempt."""
    UNDECIDED = "undecided"
    DECIDED = "decided"


@dataclass(frozen=True, slots=True)
class KernelChecks:
    """What the kernel refuses by itself, and whether it can tell a trusted signature."""

    signatures_built: bool = False
    sig_enforce: bool = False
    lockdown: bool = False
    load_pin: bool = False


@dataclass(frozen=True, slots=True)
class SeenLoad:
    """One load, seen from outside.

    Attributes:
        result: what the system call returned.
        got_in: ``module_load`` was seen.
        taints: of the module, as that event has them; None where it was not seen.
        flags: of ``finit_module``.
        origin: None when the file could not be looked at.
        found: what its bytes show; None when they could not be read.
        privileged: the caller had CAP_SYS_MODULE; None when it had gone.
    """

    api: Api
    result: int
    got_in: bool = False
    taints: int | None = None
    flags: int = 0
    origin: Origin | None = None
    found: Verification | None = None
    privileged: bool | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is told and counted of a load; the last three only where it was decided."""

    outcome: Outcome
    decision: Decision = _PENDING
    by: By = By.KMODGATE
    verification: Verification = Verification.NOT_YET


_EARLY: Final = Judgement(Outcome.EARLY)
_UNDECIDED: Final = Judgement(Outcome.UNDECIDED)


def judge(load: SeenLoad, table: Sequence[Decision], kernel: KernelChecks) -> Judgement:
    """What to tell of a load that is over.

    Args:
        load: what was seen of it.
        table: the compiled policy.
        kernel: the kernel's own checks, as they were then.
    """
    # Step 1.
    if _failed_early(load, kernel):
        return _EARLY
    # Steps 2 and 3.
    verification, decision = _policy_says(load, table, kernel)
    # Step 4.
    refusal = (
        None
        if load.got_in or _spoke_first(decision, -load.result)
        else _kernel_refusal(load, decision, kernel)
    )
    if refusal is not None:
        denied = Decision(Verdict.DENY, refusal, -load.result)
        return Judgement(Outcome.DECIDED, denied, By.KERNEL, verification)
    # Step 5.
    if decision.reason is Reason.UNREADABLE and load.result and not load.got_in:
        return _UNDECIDED
    # Step 6.
    if decision.verdict in _REFUSED:
        decision = Decision(Verdict.WOULD_DENY, decision.reason, decision.errno)
    vouched = verification is Verification.KERNEL_TRUSTED and decision.reason is Reason.TRUSTED_SIGNATURE
    return Judgement(Outcome.DECIDED, decision, By.KERNEL if vouched else By.KMODGATE, verification)


def _spoke_first(policy: Decision, number: int) -> bool:
    """An audited LoadPin says its word before the signature is looked at, as the programs do elsewhere."""
    audited = policy.verdict is Verdict.WOULD_DENY and policy.reason in _BY_ORIGIN
    return audited and number in _BY_SIGNATURE


def _failed_early(load: SeenLoad, kernel: KernelChecks) -> bool:
    number = -load.result
    if load.got_in or not number:
        return False
    if number in _BEFORE_ANY_HOOK:
        return True
    if number == errno.EINVAL and load.api is Api.FINIT_MODULE and load.flags & ~_FLAGS:
        return True
    if number != errno.EPERM or load.privileged:
        return False
    # A caller of whom nothing is known: EPERM is what everybody without the capability gets.
    return load.privileged is False or not (kernel.lockdown or kernel.load_pin)


def _policy_says(
    load: SeenLoad, table: Sequence[Decision], kernel: KernelChecks
) -> tuple[Verification, Decision]:
    shown = load.found if load.found is not None else Verification.UNREADABLE
    if load.flags & IGNORE_FLAGS and load.found is not Verification.REVOKED:
        shown = Verification.IGNORE_FLAGS
    vouched = (
        load.got_in
        and kernel.signatures_built
        and load.taints is not None
        and not load.taints & TAINT_UNSIGNED
    )
    if vouched and shown is not Verification.REVOKED:
        decision = _look_up(load, Verification.KERNEL_TRUSTED, table)
        # A policy that does not trust the kernel's keyrings may still trust the signer.
        if decision.verdict is Verdict.ALLOW or shown is not Verification.TRUSTED:
            return Verification.KERNEL_TRUSTED, decision
    return shown, _look_up(load, shown, table)


def _look_up(load: SeenLoad, verification: Verification, table: Sequence[Decision]) -> Decision:
    if load.api is Api.INIT_MODULE:
        origins: tuple[Origin, ...] = (Origin.MEMORY,)
    else:
        origins = _FILES if load.origin is None else (load.origin,)
    answers = {table[table_index(LoadFacts(load.api, origin, verification))] for origin in origins}
    if len(answers) == 1:
        return answers.pop()
    return Decision(Verdict.DENY, Reason.UNREADABLE, errno.EPERM)


def _kernel_refusal(load: SeenLoad, policy: Decision, kernel: KernelChecks) -> Reason | None:
    """Why the kernel refused, in the policy's words where the bytes explain it; None where it did not."""
    number = -load.result
    explained = (
        policy.verdict in _REFUSED and policy.errno == number and policy.reason is not Reason.UNREADABLE
    )
    if number == errno.EKEYREJECTED:
        if not kernel.sig_enforce:  # unsigned and unknown would have been let in
            return Reason.BAD_SIGNATURE
        return policy.reason if explained else Reason.KERNEL_SIG_ENFORCE
    if number in {errno.EBADMSG, errno.EMSGSIZE}:
        return Reason.MALFORMED_SIGNATURE
    if number == errno.EINVAL and load.found is Verification.MALFORMED_EINVAL:
        return Reason.MALFORMED_SIGNATURE
    if number == errno.EACCES:
        return Reason.OTHER_SECURITY_MODULE
    if number != errno.EPERM:
        return None
    if kernel.load_pin and load.origin is not Origin.PINNED_ROOT:
        return Reason.NO_FILE if load.api is Api.INIT_MODULE else Reason.OUTSIDE_PINNED_ROOT
    return Reason.KERNEL_LOCKDOWN if kernel.lockdown else Reason.OTHER_SECURITY_MODULE
