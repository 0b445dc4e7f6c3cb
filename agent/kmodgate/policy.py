# SPDX-License-Identifier: Apache-2.0
"""The policy, once: ``evaluate`` decides one load, ``compile_table`` decides them all.

This module does no I/O, keeps no state and knows nothing of signatures or hooks: it maps
facts to a decision. The kernel side holds no policy of its own; it looks up the table that
``compile_table`` makes by calling ``evaluate`` for every combination of the facts that a
program can see. ``explain`` and the agent call ``evaluate`` too, so they cannot disagree.

Order of the questions asked (the numbers stand again beside the code):

1. Was the load revoked? Revocation wins over every policy.
2. Does the origin decide? It does where the policy asks for no signatures (LoadPin), and where
   the pinned root is exempt from them.
3. Before the origin lets a load in: if anything is revoked, it must be known not to be this.
4. Are the kernel's keyrings still to be asked, and are they trusted? Then what is known not to be
   revoked goes on to them.
5. What is known of the signature?
6. Enforce or audit: an audit turns every refusal into ``WOULD_DENY``, reason unchanged.
"""

from __future__ import annotations

import errno
from itertools import product
from typing import Final

from .model import (
    Api,
    Decision,
    EffectivePolicy,
    FailurePolicy,
    LoadFacts,
    Mode,
    Origin,
    Policy,
    Reason,
    SignatureReport,
    SignatureStatus,
    Stage,
    Verdict,
    Verification,
)

VERIFICATION_SLOTS: Final = 32
"""Slots per (stage, api, origin) in the table: a power of two above the last ``Verification``."""

TABLE_SIZE: Final = len(Stage) * len(Api) * len(Origin) * VERIFICATION_SLOTS
"""Entries of one compiled table. Twin: ``KMG_TABLE_SIZE``."""

_PENDING: Final = Decision(Verdict.PENDING, Reason.NONE)


def _allow(reason: Reason) -> Decision:
    return Decision(Verdict.ALLOW, reason)


def _deny(reason: Reason, number: int) -> Decision:
    return Decision(Verdict.DENY, reason, number)


# What ENFORCE answers once the state of the signature is known. The errno is the kernel's:
# under sig_enforce ENODATA, ENOPKG and ENOKEY become EKEYREJECTED, everything else comes
# back as it is (kernel/module/signing.c, module_sig_check).
_ENFORCE: Final[dict[Verification, Decision]] = {
    Verification.NOT_YET: _PENDING,
    Verification.KERNEL_TRUSTED: _allow(Reason.TRUSTED_SIGNATURE),
    Verification.TRUSTED: _allow(Reason.TRUSTED_SIGNATURE),
    Verification.UNSIGNED: _deny(Reason.UNSIGNED, errno.EKEYREJECTED),
    Verification.UNTRUSTED_SIGNER: _deny(Reason.UNTRUSTED_SIGNER, errno.EKEYREJECTED),
    Verification.BAD_SIGNATURE: _deny(Reason.BAD_SIGNATURE, errno.EKEYREJECTED),
    Verification.MALFORMED_EBADMSG: _deny(Reason.MALFORMED_SIGNATURE, errno.EBADMSG),
    Verification.MALFORMED_EINVAL: _deny(Reason.MALFORMED_SIGNATURE, errno.EINVAL),
    Verification.MALFORMED_EMSGSIZE: _deny(Reason.MALFORMED_SIGNATURE, errno.EMSGSIZE),
    Verification.UNSUPPORTED: _deny(Reason.UNSUPPORTED_SIGNATURE, errno.EKEYREJECTED),
    # MODULE_INIT_IGNORE_{MODVERSIONS,VERMAGIC}: the kernel treats the module as unsigned.
    Verification.IGNORE_FLAGS: _deny(Reason.UNSIGNED, errno.EKEYREJECTED),
    Verification.TOO_LARGE: _deny(Reason.TOO_LARGE, errno.EKEYREJECTED),
    Verification.UNREADABLE: _deny(Reason.UNREADABLE, errno.EKEYREJECTED),
    Verification.STATE_MISSING: _deny(Reason.STATE_MISSING, errno.EKEYREJECTED),
}

# Whoever signed could be read and is not revoked; whether he is trusted is another question.
_NOT_REVOKED: Final = frozenset(
    {Verification.TRUSTED, Verification.UNTRUSTED_SIGNER, Verification.BAD_SIGNATURE}
)

# Nothing is known of the bytes, and no answer will come.
_BLIND: Final = frozenset({Verification.TOO_LARGE, Verification.UNREADABLE, Verification.STATE_MISSING})

# The agent did not answer: failurePolicy decides.
_NO_ANSWER: Final[dict[Verification, Reason]] = {
    Verification.AGENT_AWAY: Reason.AGENT_UNAVAILABLE,
    Verification.TIMED_OUT: Reason.HOLD_TIMEOUT,
}


def evaluate(policy: EffectivePolicy, facts: LoadFacts) -> Decision:
    """Decide one load.

    Args:
        policy: the policy in force.
        facts: what is known of the load so far.

    Returns:
        The decision. ``Verdict.PENDING`` only while ``facts.verification`` is ``NOT_YET``
        and the policy needs to know more.
    """
    decision = _enforcing(policy, facts)
    # Step 6.
    if decision.verdict is Verdict.DENY and policy.mode is Mode.AUDIT:
        return Decision(Verdict.WOULD_DENY, decision.reason, decision.errno)
    return decision


def _enforcing(policy: EffectivePolicy, facts: LoadFacts) -> Decision:
    verification = facts.verification
    # Step 1.
    if verification is Verification.REVOKED:
        return _deny(Reason.REVOKED, errno.EKEYREJECTED)
    # Step 2.
    by_origin = _by_origin(policy, facts)
    if by_origin is not None:
        # Step 3.
        if by_origin.verdict is Verdict.ALLOW and policy.revocations:
            return _unless_unknown(policy, verification, by_origin)
        return by_origin
    # Step 4.
    if facts.stage is Stage.BYTES and policy.kernel_keyrings:
        if not policy.revocations or verification in _NOT_REVOKED:
            verification = Verification.KERNEL_TRUSTED
    elif verification is Verification.KERNEL_TRUSTED and not policy.kernel_keyrings:
        verification = Verification.UNTRUSTED_SIGNER
    # Step 5.
    if verification in _NO_ANSWER:
        return _no_answer(policy, verification)
    return _ENFORCE[verification]


def _by_origin(policy: EffectivePolicy, facts: LoadFacts) -> Decision | None:
    """What the origin alone decides; None where it is a matter of signatures."""
    if policy.policy is not Policy.ENFORCE:
        return _load_pin(policy, facts)
    if policy.pinned_root_exempt and facts.origin is Origin.PINNED_ROOT:
        return _allow(Reason.PINNED_ROOT)
    return None


def _unless_unknown(policy: EffectivePolicy, verification: Verification, otherwise: Decision) -> Decision:
    """``otherwise``, if enough is known to say that the load is not revoked."""
    if verification in _NO_ANSWER:
        return _no_answer(policy, verification)
    if verification is Verification.NOT_YET or verification in _BLIND:
        return _ENFORCE[verification]
    return otherwise


def _no_answer(policy: EffectivePolicy, verification: Verification) -> Decision:
    if policy.failure_policy is FailurePolicy.IGNORE:
        return _allow(Reason.FAILURE_POLICY_IGNORE)
    return _deny(_NO_ANSWER[verification], errno.EKEYREJECTED)


def _load_pin(policy: EffectivePolicy, facts: LoadFacts) -> Decision:
    """LoadPin's answer (security/loadpin/loadpin.c): the file system decides, or its absence."""
    if not policy.load_pin:
        return _allow(Reason.NOT_RESTRICTED)
    if facts.api is Api.INIT_MODULE or facts.origin is Origin.MEMORY:
        return _deny(Reason.NO_FILE, errno.EPERM)
    if facts.origin is Origin.PINNED_ROOT:
        return _allow(Reason.PINNED_ROOT)
    return _deny(Reason.OUTSIDE_PINNED_ROOT, errno.EPERM)


def table_index(facts: LoadFacts) -> int:
    """Position of a combination of facts in the table. Twin: ``kmg_table_index()``."""
    row = (int(facts.stage) * len(Api) + int(facts.api)) * len(Origin) + int(facts.origin)
    return row * VERIFICATION_SLOTS + int(facts.verification)


def compile_table(policy: EffectivePolicy) -> tuple[Decision, ...]:
    """Decide every combination of facts that a program can see.

    Returns:
        ``TABLE_SIZE`` decisions, in the order of ``table_index``. Slots that stand for no
        combination deny with ``STATE_MISSING``: an index that should not exist must not
        let a module in.
    """
    missing = LoadFacts(Api.INIT_MODULE, Origin.MEMORY, Verification.STATE_MISSING)
    fallback = evaluate(policy, missing)
    if fallback.verdict is Verdict.ALLOW:  # no restriction at all: nothing to guard
        fallback = _deny(Reason.STATE_MISSING, errno.EPERM)
    table = [fallback] * TABLE_SIZE
    for stage, api, origin, verification in product(Stage, Api, Origin, Verification):
        facts = LoadFacts(api, origin, verification, stage)
        table[table_index(facts)] = evaluate(policy, facts)
    return tuple(table)


def judges_bytes(table: tuple[Decision, ...]) -> bool:
    """Whether a compiled table asks for the bytes of loads that the kernel has not checked yet."""
    return any(
        table[table_index(LoadFacts(api, origin, Verification.NOT_YET, Stage.BYTES))].verdict
        is Verdict.PENDING
        for api, origin in product(Api, Origin)
    )


def refuses(table: tuple[Decision, ...]) -> bool:
    """Whether any load would be denied by a table.

    Every table denies what is revoked. One that knows of revocations also denies what cannot be read.
    """
    return any(
        table[table_index(LoadFacts(*facts))].verdict is Verdict.DENY
        for facts in product(Api, Origin, set(Verification) - {Verification.REVOKED})
    )


_STATES: Final = {
    SignatureStatus.TRUSTED_SIGNATURE: Verification.TRUSTED,
    SignatureStatus.UNSIGNED: Verification.UNSIGNED,
    SignatureStatus.UNTRUSTED_SIGNER: Verification.UNTRUSTED_SIGNER,
    SignatureStatus.BAD_SIGNATURE: Verification.BAD_SIGNATURE,
    SignatureStatus.UNSUPPORTED_SIGNATURE: Verification.UNSUPPORTED,
    SignatureStatus.REVOKED: Verification.REVOKED,
    SignatureStatus.UNREADABLE: Verification.UNREADABLE,
}
_MALFORMED: Final = {
    "EBADMSG": Verification.MALFORMED_EBADMSG,
    "EINVAL": Verification.MALFORMED_EINVAL,
    "EMSGSIZE": Verification.MALFORMED_EMSGSIZE,
}


def verification_of(found: SignatureReport) -> Verification:
    """The state that the decision table knows, from what verification found."""
    if found.status is SignatureStatus.MALFORMED_SIGNATURE:
        return _MALFORMED.get(found.errno or "", Verification.MALFORMED_EBADMSG)
    return _STATES[found.status]
