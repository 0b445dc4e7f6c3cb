# SPDX-License-Identifier: Apache-2.0
"""What would end an allow. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from kmodgate.model import Origin, Policy, Reason
from kmodgate.signature import Revocations, TrustStore

from .case import Attempt, Candidates, Case, Outcome, payload_of


def _tampering(case: Case, found: Outcome) -> Iterator[Attempt]:
    if found.decision.reason is not Reason.TRUSTED_SIGNATURE:
        return
    payload = payload_of(case.data)
    place = len(payload) // 2  # anywhere: the signature covers all of it
    changed = bytearray(case.data)
    changed[place] ^= 1
    yield Attempt(
        "tamper", "strip or change the file after it was signed", replace(case, data=bytes(changed))
    )


def _distrusting(case: Case, found: Outcome) -> Iterator[Attempt]:
    label = found.signature.trusted_by
    if label is None or found.decision.reason is not Reason.TRUSTED_SIGNATURE:
        return
    anchors = [anchor for anchor in case.trust.anchors if anchor.label != label]
    yield Attempt(
        "distrust",
        f"remove {label} from kmodgate.trust.certificates",
        replace(case, trust=TrustStore(anchors, case.trust.revocations)),
    )


def _revoking(case: Case, found: Outcome) -> Iterator[Attempt]:
    if found.decision.reason is not Reason.TRUSTED_SIGNATURE:
        return
    revocations = case.trust.revocations
    signer, digest = found.signature.signer, found.signature.sha256
    if signer is not None and signer.skid is not None:
        more = Revocations.merge([revocations, Revocations(key_ids=frozenset({bytes.fromhex(signer.skid)}))])
        yield Attempt(
            "revoke-signer",
            f"revoke its signer: id:{signer.skid} in a file of kmodgate.trust.revoked",
            replace(case, trust=TrustStore(case.trust.anchors, more)),
        )
    if digest is not None:
        more = Revocations.merge([revocations, Revocations(files=frozenset({bytes.fromhex(digest)}))])
        yield Attempt(
            "revoke-file",
            f"revoke this file: bin:{digest} in a file of kmodgate.trust.revoked",
            replace(case, trust=TrustStore(case.trust.anchors, more)),
        )


def _forcing(case: Case, found: Outcome) -> Iterator[Attempt]:
    del found
    if not case.forced:
        yield Attempt("force", "load it with modprobe --force", replace(case, forced=True))


def _stricter(case: Case, found: Outcome) -> Iterator[Attempt]:
    del found
    policy = case.policy
    if policy.policy is not Policy.ENFORCE:
        yield Attempt(
            "policy",
            f"set the policy to {Policy.ENFORCE}",
            replace(case, policy=replace(policy, policy=Policy.ENFORCE)),
        )
        if not policy.load_pin:
            yield Attempt(
                "loadpin-on",
                "set kmodgate.loadPin: on",
                replace(case, policy=replace(policy, load_pin=True)),
            )
    elif policy.pinned_root_exempt:
        yield Attempt(
            "no-pinned-root-exempt",
            "set kmodgate.pinnedRootExempt: false",
            replace(case, policy=replace(policy, pinned_root_exempt=False)),
        )
    if not case.require_validity and case.now is not None:
        yield Attempt(
            "require-validity",
            "set kmodgate.trust.requireValidity: true",
            replace(case, require_validity=True),
        )


def _elsewhere(case: Case, found: Outcome) -> Iterator[Attempt]:
    del found
    if case.origin is Origin.PINNED_ROOT:
        yield Attempt(
            "other-file-system",
            "load it from another file system than the root",
            replace(case, origin=Origin.OTHER_FILESYSTEM),
        )
    if case.origin is not Origin.MEMORY:
        yield Attempt(
            "memory",
            "load it without a file (init_module)",
            replace(case, origin=Origin.MEMORY),
        )


AWAY_FROM_ALLOW: Final[tuple[Candidates, ...]] = (
    _tampering,
    _distrusting,
    _revoking,
    _forcing,
    _elsewhere,
    _stricter,
)
