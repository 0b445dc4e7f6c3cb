# SPDX-License-Identifier: Apache-2.0
"""One load with all that decides it, and the verdict of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias

from kmodgate.errors import ModuleFormatError, SignatureError
from kmodgate.inspection import DEFAULT_MAX_SIZE, inspect
from kmodgate.model import (
    Api,
    Decision,
    EffectivePolicy,
    LoadFacts,
    Origin,
    SignatureReport,
    SignatureStatus,
    Verification,
)
from kmodgate.policy import evaluate, verification_of
from kmodgate.signature import LATEST, KernelProfile, TrustStore
from kmodgate.signature.trailer import split

_NO_TRUST: Final = TrustStore()


@dataclass(frozen=True, slots=True)
class Case:
    """One load, with all that decides it.

    Attributes:
        data: the file's bytes, decompressed if they could be.
        policy: the policy in force.
        trust: configured certificates and revocations.
        origin: where the bytes come from.
        kernel_trust: certificates in the kernel's own keyrings, as far as they were named.
        forced: loaded with ``MODULE_INIT_IGNORE_*`` flags, as ``modprobe --force`` does.
        now: the clock, UTC.
        require_validity: certificates outside their validity count for nothing.
        profile: the kernel that checks the signature.
        max_size: most bytes after decompression.
        signed_anew: assume a trusted signature over the same payload.
    """

    data: bytes
    policy: EffectivePolicy
    trust: TrustStore
    origin: Origin
    kernel_trust: TrustStore = _NO_TRUST
    forced: bool = False
    now: datetime | None = None
    require_validity: bool = False
    profile: KernelProfile = LATEST
    max_size: int = DEFAULT_MAX_SIZE
    signed_anew: bool = False

    @property
    def api(self) -> Api:
        """The system call: without a file it is ``init_module``."""
        return Api.INIT_MODULE if self.origin is Origin.MEMORY else Api.FINIT_MODULE


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a case."""

    signature: SignatureReport
    verification: Verification
    decision: Decision


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that would give another verdict.

    Attributes:
        kind: stable, lower-case with hyphens.
        change: what to do, as an imperative.
        decision: the verdict then.
        provided: what was assumed and not seen, or None.
        danger: what else it lets in, or None when it weakens nothing.
    """

    kind: str
    change: str
    decision: Decision
    provided: str | None = None
    danger: str | None = None


def judge(case: Case) -> Outcome:
    """The verdict of one case."""
    signature = report_on(case)
    verification = verification_of(signature)
    if case.signed_anew and verification is not Verification.REVOKED:
        verification = Verification.TRUSTED
    if case.forced and verification is not Verification.REVOKED:
        verification = Verification.IGNORE_FLAGS
    facts = LoadFacts(case.api, case.origin, verification)
    policy = replace(case.policy, revocations=bool(case.trust.revocations))
    return Outcome(signature, verification, evaluate(policy, facts))


def report_on(case: Case) -> SignatureReport:
    """The signature report of one case; a file that cannot be read has one, too."""
    trust = TrustStore((*case.trust.anchors, *case.kernel_trust.anchors), case.trust.revocations)
    try:
        return inspect(
            case.data,
            trust,
            max_size=case.max_size,
            now=case.now,
            require_validity=case.require_validity,
            profile=case.profile,
        )
    except ModuleFormatError as error:
        return SignatureReport(SignatureStatus.UNREADABLE, error.errno_name, detail=str(error))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A change before it was tried."""

    kind: str
    change: str
    case: Case
    provided: str | None = None
    danger: str | None = None


def payload_of(data: bytes) -> bytes:
    """What a new signature would cover; the bytes as they are where nothing is appended."""
    try:
        return bytes(split(data).payload)
    except SignatureError:
        return data


Candidates: TypeAlias = Callable[[Case, Outcome], Iterator[Attempt]]
"""What yields changes that are worth a try."""
