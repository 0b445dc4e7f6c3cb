# SPDX-License-Identifier: Apache-2.0
"""The verdict on one module's appended signature, as a kernel with the same anchors gives it.

This module does no I/O, reads no clock (``now`` is injected), decompresses nothing and
looks at no ELF structure. ``MODULE_INIT_IGNORE_*`` flags are the caller's matter: with
one set the kernel takes any module for unsigned.

The steps. What the kernel would refuse is refused with its errno; nothing is trusted that
it would refuse; some things are refused that it lets pass.

1. A revoked digest of the whole file refuses, signed or not.
2. Take the file apart: payload, message, trailer.
3. A revoked digest of the payload refuses.
4. Parse the message as the kernel does.
5. A revoked signer, embedded certificate or issuer of one refuses, whatever stands beside it.
6. Signatures, chains and keyring as the kernel checks them (``signature.kernel``).
7. Stricter than kernels: revoked anchors, weak digests, DER, RFC 5280 on the way to the anchor.
8. Validity dates are reported, and required only when asked.

ENODATA, ENOPKG and ENOKEY become EKEYREJECTED, as under ``sig_enforce``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from kmodgate.errors import SignatureError
from kmodgate.model import ModuleInfo, SignatureReport, SignatureStatus, Signer

from .chain import check_chain
from .cms import check_strict, overlooked
from .kernel import Acceptance, Refusal, examine
from .kernel.certificate import Certificate
from .kernel.message import Message, SignedInfo, parse_message
from .names import hexadecimal, render
from .profile import LATEST, KernelProfile
from .signedfile import SignedFile
from .trailer import BytesLike
from .trust import TrustAnchor, TrustStore, serial_of, signer_of

_REJECTED = "EKEYREJECTED"
_SOFT = frozenset({"ENODATA", "ENOPKG", "ENOKEY"})
_WEAK = frozenset({"ecdsa-nist-p192", "md4", "md5", "sm3", "streebog256", "streebog512"})
_OLD = frozenset({"sha1"})


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """Proof that a module is trusted; only ``verify`` makes one.

    Attributes:
        anchor: the trust anchor that signed, or that the signer's certificate leads to.
        signer: who signed.
        hash_algorithm: the kernel's name, for example ``"sha256"``.
        signature_algorithm: ``"rsa"``, ``"ecdsa"`` or ``"mldsa44"`` and its like.
        detail: one sentence for people; names a certificate outside its validity.
    """

    anchor: TrustAnchor
    signer: Signer
    hash_algorithm: str
    signature_algorithm: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Trusted:
    """One SignerInfo after step 7."""

    info: SignedInfo
    anchor: TrustAnchor
    path: tuple[x509.Certificate, ...]

    def outside_validity(self, now: datetime) -> str:
        """What is wrong with the dates; empty when nothing is."""
        dates = [(self.anchor.not_before, self.anchor.not_after)]
        dates += [(one.not_valid_before_utc, one.not_valid_after_utc) for one in self.path]
        for first, last in dates:
            if now > last:
                return f"expired on {last:%Y-%m-%d}"
            if now < first:
                return f"is not valid before {first:%Y-%m-%d}"
        return ""


class _Examination:
    """One file on its way through the steps; keeps what was learned for the report."""

    __slots__ = ("_file", "_profile", "_trust", "message")

    def __init__(self, file: SignedFile, trust: TrustStore, profile: KernelProfile) -> None:
        self._file = file
        self._trust = trust
        self._profile = profile
        self.message: Message | None = None

    def run(self, now: datetime | None, *, require_validity: bool) -> VerifiedSignature:
        """Steps 1 to 8."""
        revocations = self._trust.revocations
        # 1. The whole file.
        if revocations.files and self._file.sha256() in revocations.files:
            raise _revoked("the SHA-256 of the file is revoked")
        # 2. Payload, message, trailer.
        cms = self._file.cms()
        # 3. The payload alone, so that another signature does not bring it back.
        if revocations.files and self._file.digest("sha256") in revocations.files:
            raise _revoked("the SHA-256 of the payload is revoked")
        try:
            # 4. Structure and algorithms.
            message = self.message = parse_message(cms, self._profile)
            # 5. Revoked signers.
            if revocations:
                self._refuse_revoked(message)
            # 6. The kernel's answer.
            keyring = self._trust.keyring(self._profile)
            accepted = examine(message, self._file.payload, keyring, self._file.digest)
        except Refusal as refusal:
            raise self._as_error(refusal) from refusal
        # 7. More than the kernel asks.
        trusted = self._check_strict(cms, accepted)
        # 8. Validity.
        return _choose_valid(trusted, now, require_validity=require_validity)

    def look_at_signer(self) -> None:
        """Parse a message that nobody asked for, because the verdict was clear without it."""
        if self.message is None:
            with suppress(SignatureError, Refusal):
                self.message = parse_message(self._file.cms(), self._profile)

    def _refuse_revoked(self, message: Message) -> None:
        trust = self._trust
        for info in message.signers:
            if trust.is_revoked(info.identity):
                raise _revoked("a signer of the module is revoked")
        for certificate in message.certificates:
            if _is_revoked(certificate, trust):
                raise _revoked("a certificate inside the signature is revoked")
            if any(identity is not None and trust.is_revoked(identity) for identity in certificate.authority):
                raise _revoked("the issuer of a certificate inside the signature is revoked")

    def _check_strict(self, cms: bytes, accepted: Sequence[Acceptance]) -> list[_Trusted]:
        check_strict(cms)
        self._check_certificates()
        trusted = []
        for acceptance in accepted:
            info, anchor = acceptance.signer, self._trust.anchors[acceptance.key.index]
            # The keyring is asked by two ids; a revoked anchor counts by its certificate as well.
            if _is_revoked(anchor.parsed, self._trust):
                raise _revoked("the trust anchor of a signer is revoked")
            keys = {anchor.parsed.key.algorithm, *(one.key.algorithm for one in acceptance.path)}
            weak = sorted(_WEAK & {info.digest_name, *keys})
            if weak:
                detail = f"{weak[0]} is too weak to be trusted, whatever kernels make of it"
                raise SignatureError(SignatureStatus.UNSUPPORTED_SIGNATURE, _REJECTED, detail)
            if acceptance.copy is not None and acceptance.copy.der != anchor.parsed.der:
                raise overlooked("a certificate inside has the ids of a trust anchor and is not the same")
            _check_value(info)
            path = check_chain([one.der for one in acceptance.path], anchor.certificate)
            trusted.append(_Trusted(info, anchor, path))
        return trusted

    def _check_certificates(self) -> None:
        """Each certificate inside is an anchor or has a part in some signer's path."""
        assert self.message is not None  # noqa: S101  # step 4
        used: set[int] = set()
        for info in self.message.signers:
            certificate = info.signer
            while certificate is not None and id(certificate) not in used:
                used.add(id(certificate))
                certificate = certificate.parent
        anchors = {anchor.parsed.der for anchor in self._trust.anchors}
        for certificate in self.message.certificates:
            if id(certificate) not in used and certificate.der not in anchors:
                raise overlooked("a certificate inside has no part in any signer's path")

    def _as_error(self, refusal: Refusal) -> SignatureError:
        """The kernel's refusal in kmodgate's words."""
        status, detail = refusal.status, refusal.detail
        errno_name = _REJECTED if refusal.errno_name in _SOFT else refusal.errno_name
        if status is SignatureStatus.MALFORMED_SIGNATURE:
            detail = f"PKCS#7 message: {detail}"
        elif status is SignatureStatus.BAD_SIGNATURE:
            detail += "; module or signature was changed after signing"
        elif refusal.errno_name == "ENOKEY":
            detail = self._why_untrusted()
        elif refusal.errno_name == "ENOPKG":
            detail += " (ENOPKG)"
        return SignatureError(status, errno_name, detail)

    def _why_untrusted(self) -> str:
        signer = self.signer()
        who = "" if signer is None else f" ({signer.subject or signer.issuer or f'SKID {signer.skid}'})"
        detail = f"the signer{who} is not among the {len(self._trust)} trust anchors (ENOKEY)"
        if self.message is not None and self.message.certificates:
            detail += "; the certificates inside the message lead to none of them either"
        return detail

    def signer(self) -> Signer | None:
        """The first signer that the message names, completed from its certificate."""
        if self.message is None:
            return None
        info = self.message.signers[0]
        if info.signer is not None:
            return signer_of(info.signer)
        anchors = self._trust.find(info.identity)
        if anchors:
            return anchors[0].signer
        if info.by_skid:
            return Signer(skid=hexadecimal(info.identity))
        return Signer(issuer=render(info.issuer), serial=serial_of(info.serial))

    def algorithm_names(self) -> tuple[str | None, str | None]:
        """Digest and signature algorithm of the first SignerInfo, as far as known."""
        if self.message is None or not self.message.signers:
            return None, None
        info = self.message.signers[0]
        return info.digest_name or None, info.signature.family or None


def _is_revoked(certificate: Certificate, trust: TrustStore) -> bool:
    if trust.is_revoked(certificate.identity):
        return True
    if certificate.skid is not None and trust.is_revoked(certificate.skid):
        return True
    return trust.revocations.revokes_tbs(certificate.tbs)


def _check_value(info: SignedInfo) -> None:
    """Numbers of an ECDSA signature must be DER."""
    if info.signature.family != "ecdsa":
        return
    value = info.signature.value
    try:
        strict = encode_dss_signature(*decode_dss_signature(value)) == value
    except ValueError:
        strict = False
    if not strict:
        raise overlooked("an ECDSA signature that is not DER")


def _revoked(detail: str) -> SignatureError:
    return SignatureError(SignatureStatus.REVOKED, _REJECTED, detail)


def _choose_valid(
    trusted: Sequence[_Trusted], now: datetime | None, *, require_validity: bool
) -> VerifiedSignature:
    """Prefer a signer inside its validity; refuse without one only when asked."""
    if require_validity and now is None:
        raise ValueError("require_validity needs the time")
    problem = ""
    for one in trusted:
        found = "" if now is None else one.outside_validity(now)
        if not found:
            return _verified(one, "")
        problem = problem or found
    if require_validity:
        raise SignatureError(
            SignatureStatus.UNTRUSTED_SIGNER,
            _REJECTED,
            f"the signer's certificate {problem}; the kernel would not mind, but validity is required here",
        )
    return _verified(trusted[0], f"; its certificate {problem}, which the kernel ignores")


def _verified(trusted: _Trusted, note: str) -> VerifiedSignature:
    info, anchor = trusted.info, trusted.anchor
    signer = anchor.signer if info.signer is None else signer_of(info.signer)
    if trusted.path:
        note = f", certified by {anchor.signer.subject}{note}"
    if info.digest_name in _OLD:
        note += f"; {info.digest_name} is weak, sign with SHA-256 or better"
    return VerifiedSignature(
        anchor=anchor,
        signer=signer,
        hash_algorithm=info.digest_name,
        signature_algorithm=info.signature.family,
        detail=f"signed by {signer.subject}{note}",
    )


def let_go(file: SignedFile, profile: KernelProfile) -> bool:
    """Have a file forget its payload, if verification can do without; its verdict stays the same.

    Args:
        file: to be verified later, with whatever anchors and revocations.
        profile: the one it will be verified with.

    Returns:
        False when the payload itself is needed and kept: for ML-DSA, and for digests that
        cannot be computed here.
    """
    digests = {"sha256"}  # revocations are by that
    try:
        for info in parse_message(file.cms(), profile).signers:
            if info.signature.takes_data:
                return False
            digests.add(info.digest_name)
    except (SignatureError, Refusal):
        pass  # refused by the same when it is verified, before any other digest
    try:
        file.let_go(digests)
    except Refusal:
        return False
    return True


def verify(
    data: BytesLike,
    trust: TrustStore,
    *,
    now: datetime | None = None,
    require_validity: bool = False,
    profile: KernelProfile = LATEST,
) -> VerifiedSignature:
    """Verify a decompressed module file, or raise.

    Args:
        data: the whole file: payload, message, trailer. Never copied.
        trust: anchors and revocations; an empty store trusts nothing.
        now: the time (aware, UTC) for validity notes; None leaves validity unlooked at.
        require_validity: refuse a path outside its validity; needs ``now``.
        profile: the kernel whose answer is asked for.

    Raises:
        SignatureError: with status, the kernel's errno under ``sig_enforce``, and detail.
    """
    return _Examination(SignedFile(data), trust, profile).run(now, require_validity=require_validity)


def report(
    data: BytesLike | SignedFile,
    trust: TrustStore,
    *,
    module: ModuleInfo | None = None,
    note: str = "",
    now: datetime | None = None,
    require_validity: bool = False,
    profile: KernelProfile = LATEST,
) -> SignatureReport:
    """Verify like ``verify``, and say everything there is to say instead of raising.

    Args:
        data: as for ``verify``, or a file that was opened before.
        trust: as for ``verify``.
        module: the module's own strings, put into the report as they are.
        note: a sentence about the file that is added to ``detail``.
        now: as for ``verify``.
        require_validity: as for ``verify``.
        profile: as for ``verify``.
    """
    file = data if isinstance(data, SignedFile) else SignedFile(data)
    examination = _Examination(file, trust, profile)
    suffix = f"; {note}" if note else ""
    try:
        verified = examination.run(now, require_validity=require_validity)
    except SignatureError as error:
        if error.status is SignatureStatus.REVOKED:
            examination.look_at_signer()
        hash_algorithm, signature_algorithm = examination.algorithm_names()
        return SignatureReport(
            status=error.status,
            errno=error.errno_name,
            signer=examination.signer(),
            hash_algorithm=hash_algorithm,
            signature_algorithm=signature_algorithm,
            sha256=file.sha256().hex(),
            module=module,
            detail=error.detail + suffix,
        )
    return SignatureReport(
        status=SignatureStatus.TRUSTED_SIGNATURE,
        errno=None,
        trusted_by=verified.anchor.label,
        signer=verified.signer,
        hash_algorithm=verified.hash_algorithm,
        signature_algorithm=verified.signature_algorithm,
        sha256=file.sha256().hex(),
        module=module,
        detail=verified.detail + suffix,
    )
