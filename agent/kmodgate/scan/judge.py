# SPDX-License-Identifier: Apache-2.0
"""From a signature report to what ENFORCE would do, with the honesty that a scan needs. Pure.

The policy decides (``policy.evaluate``, as everywhere). One thing is added: a scan looks at
kernels from outside. A signer that is no anchor here may be trusted by keys that the scan
has not got (a machine owner key, a kernel image that it may not read). Such a module is
``unknown``: it is not called refused, and never trusted.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection
from dataclasses import dataclass

from kmodgate.model import (
    Api,
    EffectivePolicy,
    LoadFacts,
    Origin,
    SignatureReport,
    SignatureStatus,
    Signer,
    Verdict,
)
from kmodgate.node import KeyringCertificate
from kmodgate.policy import evaluate, verification_of

from .records import Outcome, ScanReason

# An attribute of an RFC 4514 name, up to the first comma that no backslash stands before.
_ATTRIBUTE = re.compile(r"(?:^|[,+])(CN|O)=((?:[^,+\\]|\\.)*)")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class KernelKeysAtHand:
    """What stands in for one kernel's own keyrings.

    Attributes:
        used: the kernel's keyrings count at all (``kmodgate.trust.kernelKeyrings``).
        verifiable: the certificates of its image are among the anchors.
        listed: what ``/proc/keys`` lists, names and ids only; None where it is not this
            kernel that runs, or where it lists no certificate.
    """

    used: bool
    verifiable: bool
    listed: Collection[KeyringCertificate] | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What ENFORCE would do with one file; see ``records.ScannedFile``."""

    outcome: Outcome
    reason: str
    errno: str | None = None


def judge(
    found: SignatureReport, policy: EffectivePolicy, origin: Origin, keys: KernelKeysAtHand
) -> Judgement:
    """Judge one file.

    Args:
        found: the report on its signature, over all anchors at hand.
        policy: ENFORCE in mode enforce, with the exemptions of the config.
        origin: whether it lies on the pinned root.
        keys: what is known of the kernel's own keys.
    """
    decision = evaluate(policy, LoadFacts(Api.FINIT_MODULE, origin, verification_of(found)))
    if decision.verdict is Verdict.ALLOW:
        return Judgement(Outcome.ACCEPTED, decision.reason.label)
    if found.status is SignatureStatus.UNTRUSTED_SIGNER and keys.used:
        if found.signer is not None and any(names(key, found.signer) for key in keys.listed or ()):
            return Judgement(Outcome.UNKNOWN, ScanReason.KERNEL_KEYRING_UNVERIFIED)
        if not keys.verifiable and keys.listed is None:
            return Judgement(Outcome.UNKNOWN, ScanReason.KERNEL_KEYS_MISSING)
    return Judgement(Outcome.REFUSED, decision.reason.label, errno.errorcode[decision.errno])


def names(key: KeyringCertificate, signer: Signer) -> bool:
    """Whether a line of ``/proc/keys`` may stand for this signer; a label, never a proof.

    The line ends in the SubjectKeyIdentifier, or in the serial number where the certificate
    has none, after the kernel's short form of the subject (``x509_fabricate_name()``,
    ``crypto/asymmetric_keys/x509_cert_parser.c``). A module's signature usually names the
    issuer instead, which is the subject itself for keys that signed themselves.
    """
    if key.skid is not None and key.skid in {signer.skid, signer.serial}:
        return True
    return signer.issuer is not None and key.subject in _short_forms(signer.issuer)


def _short_forms(name: str) -> set[str]:
    found = {kind: _ESCAPE.sub(r"\1", value) for kind, value in _ATTRIBUTE.findall(name)}
    common, organisation = found.get("CN"), found.get("O")
    if common is None:
        return set() if organisation is None else {organisation}
    return {common} if organisation is None else {common, f"{organisation}: {common}"}
