# SPDX-License-Identifier: Apache-2.0
"""Ways out of a refusal, the safest first. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, TypeAlias

from kmodgate.model import Mode, Origin, Policy, SignatureStatus, Verification
from kmodgate.signature import PROFILES, Revocations, TrustStore

from .case import Attempt, Candidates, Case, Outcome, payload_of, report_on


def _unforced(case: Case, found: Outcome) -> Iterator[Attempt]:
    del found
    if case.forced:
        yield Attempt("no-force", "load it without --force", replace(case, forced=False))


def _signing(case: Case, found: Outcome) -> Iterator[Attempt]:
    if found.verification in {Verification.TRUSTED, Verification.UNREADABLE}:
        return
    anew = replace(case, data=payload_of(case.data), signed_anew=True)
    if case.trust.anchors or case.kernel_trust.anchors:
        yield Attempt(
            "sign",
            "sign the module anew with a key that the node trusts (kmodgate sign)",
            anew,
            "the key's certificate is among the trusted ones",
        )
    else:
        yield Attempt(
            "sign",
            "sign the module with a key of yours (kmodgate sign), and list its certificate in "
            "kmodgate.trust.certificates",
            anew,
            "the certificate is that of the key",
            "whatever that key signs will load: keep it off the nodes",
        )


def _certificates(case: Case, found: Outcome) -> Iterator[Attempt]:
    signer = found.signature.signer
    if found.verification is not Verification.UNTRUSTED_SIGNER or signer is None:
        return
    if case.require_validity:
        yield Attempt(
            "no-require-validity",
            "set kmodgate.trust.requireValidity: false",
            replace(case, require_validity=False),
            danger="certificates that have expired count again, for every module",
        )
        if report_on(replace(case, require_validity=False)).status is SignatureStatus.TRUSTED_SIGNATURE:
            return  # the certificate is there; it has only run out
    named = [
        f"{what} {value}"
        for what, value in (("issuer", signer.issuer), ("serial", signer.serial), ("key id", signer.skid))
        if value
    ]
    yield Attempt(
        "trust-certificate",
        f"add the signer's certificate ({', '.join(named)}) to kmodgate.trust.certificates",
        replace(case, signed_anew=True),
        "the signature matches under that certificate: kmodgate verify FILE --trust CERTIFICATE tells",
        "everything that this key has signed, or will sign, loads too",
    )


def _revocations(case: Case, found: Outcome) -> Iterator[Attempt]:
    if found.verification is not Verification.REVOKED:
        return
    entries = _entries(case.trust.revocations)
    guilty = _guilty(case, entries)
    rest = [entry for entry in entries if entry not in guilty]
    yield Attempt(
        "unrevoke",
        _unrevoking(guilty, found),
        replace(case, trust=TrustStore(case.trust.anchors, _revocations_of(rest))),
        danger="it was revoked for a reason: whatever it names loads again",
    )


def _unrevoking(guilty: list[_Entry], found: Outcome) -> str:
    """What to take out of which file; a certificate that is revoked itself stands in no list."""
    lines = ", ".join(f"{kind}:{value.hex()}" for kind, value in guilty if kind != _SIGNER)
    if all(kind != _SIGNER for kind, _ in guilty):
        return f"remove {lines} from the files of kmodgate.trust.revoked"
    signer = found.signature.signer
    name = "its signer's or issuer's certificate" if signer is None else signer.subject or signer.issuer
    also = f", and {lines} out of the files of kmodgate.trust.revoked where they stand" if lines else ""
    return f"take {name} out of kmodgate.trust.revokedCertificates{also}"


_Entry: TypeAlias = tuple[str, bytes]
_SIGNER: Final = "signer"


def _entries(revocations: Revocations) -> list[_Entry]:
    return [
        *(("tbs", value) for value in sorted(revocations.certificates)),
        *(("bin", value) for value in sorted(revocations.files)),
        *(("id", value) for value in sorted(revocations.key_ids)),
        *((_SIGNER, value) for value in sorted(revocations.signers)),
    ]


def _revocations_of(entries: list[_Entry]) -> Revocations:
    def values(kind: str) -> frozenset[bytes]:
        return frozenset(value for name, value in entries if name == kind)

    return Revocations(
        certificates=values("tbs"), files=values("bin"), key_ids=values("id"), signers=values(_SIGNER)
    )


def _guilty(case: Case, entries: list[_Entry]) -> list[_Entry]:
    """The entries that revoke this module, found by halves: each alone is enough."""
    only = replace(case, trust=TrustStore(case.trust.anchors, _revocations_of(entries)))
    if not entries or report_on(only).status is not SignatureStatus.REVOKED:
        return []
    if len(entries) == 1:
        return entries
    middle = len(entries) // 2
    return [*_guilty(case, entries[:middle]), *_guilty(case, entries[middle:])]


def _kernels(case: Case, found: Outcome) -> Iterator[Attempt]:
    if found.verification is not Verification.UNSUPPORTED:
        return
    for name in ("5.10", "6.1", "6.12", "7.2"):
        newer = replace(case, profile=PROFILES[name])
        if report_on(newer).status is SignatureStatus.TRUSTED_SIGNATURE:
            yield Attempt("kernel", f"boot a kernel that has the algorithm: Linux {name}, for one", newer)
            return


def _places(case: Case, found: Outcome) -> Iterator[Attempt]:
    del found
    if case.origin is not Origin.PINNED_ROOT:
        yield Attempt(
            "pinned-root",
            "load it from a file on the node's root file system",
            replace(case, origin=Origin.PINNED_ROOT),
            danger="a writable root vouches for nothing: whoever can write there can load modules"
            if case.policy.policy is not Policy.ENFORCE
            else None,
        )


def _settings(case: Case, found: Outcome) -> Iterator[Attempt]:
    del found
    policy = case.policy
    if policy.policy is not Policy.ENFORCE:
        yield Attempt(
            "policy",
            f"set the policy to {Policy.ENFORCE}",
            replace(case, policy=replace(policy, policy=Policy.ENFORCE)),
        )
        if policy.load_pin:
            yield Attempt(
                "loadpin-off",
                "set kmodgate.loadPin: off",
                replace(case, policy=replace(policy, load_pin=False)),
                danger="any module loads from anywhere, unsigned ones too",
            )
        return
    if not policy.pinned_root_exempt:
        yield Attempt(
            "pinned-root-exempt",
            "set kmodgate.pinnedRootExempt: true",
            replace(case, policy=replace(policy, pinned_root_exempt=True)),
            danger="whoever can write to the root file system can load any module, unsigned",
        )
    yield Attempt(
        "policy",
        f"set the policy to {Policy.DO_NOT_ENFORCE}",
        replace(case, policy=replace(policy, policy=Policy.DO_NOT_ENFORCE)),
        danger="no module needs a signature any more; "
        + ("only LoadPin is left" if policy.load_pin else "nothing restricts loads"),
    )


def _modes(case: Case, found: Outcome) -> Iterator[Attempt]:
    del found
    if case.policy.mode is Mode.AUDIT:
        yield Attempt(
            "mode-enforce",
            "set kmodgate.mode: enforce",
            replace(case, policy=replace(case.policy, mode=Mode.ENFORCE)),
        )
    else:
        yield Attempt(
            "mode-audit",
            "set kmodgate.mode: audit",
            replace(case, policy=replace(case.policy, mode=Mode.AUDIT)),
            danger="nothing is refused any more, whatever is loaded; refusals are only reported",
        )


TOWARDS_ALLOW: Final[tuple[Candidates, ...]] = (
    _unforced,
    _signing,
    _kernels,
    _certificates,
    _places,
    _settings,
    _revocations,
    _modes,
)
