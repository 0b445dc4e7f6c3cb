# SPDX-License-Identifier: Apache-2.0
"""The verdict on one module's appended signature, as a kernel with the same anchors gives it.

This module does no I/O, reads no clock (``now`` is injected), decompresses nothing and
looks at no ELF structure. ``MODULE_INIT_IGNORE_*`` flags are the caller's matter: with
one set the kernel takes any module for unsigned.

The steps (``kernel/module/signing.c``, ``certs/system_keyring.c``,
``crypto/asymmetric_keys/pkcs7_{parser,verify,trust}.c``; revocation is stricter):

1. A revoked digest of the whole file refuses, signed or not.
2. Take the file apart: payload, message, trailer.
3. A revoked digest of the payload refuses.
4. Decode the message; what the kernel's parser refuses is fatal.
5. A revoked signer or embedded certificate refuses, whatever stands beside it.
6. Every algorithm must be one that the kernel's parser knows.
7. The content must be detached, plain data, without signed attributes; nothing in the
   message may be left unlooked at (stricter than kernels).
8. Each SignerInfo whose signer is found must verify; one that fails is fatal; one whose
   signer is not found is not checked at all.
9. One trusted signer is enough; none is a refusal. Certificates inside must be anchors,
   too: one that a kernel cannot use spoils the message there (stricter than kernels).
10. Validity dates are reported, and required only when asked.

ENODATA, ENOPKG and ENOKEY become EKEYREJECTED, as under ``sig_enforce``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kmodgate.errors import SignatureError
from kmodgate.model import ModuleInfo, SignatureReport, SignatureStatus, Signer

from . import cms
from .algorithms import DIGESTS, SIGNATURES, DigestAlgorithm, PublicKey, SignatureAlgorithm
from .names import rfc4514
from .trailer import AppendedSignature, BytesLike, split
from .trust import KeyId, TrustAnchor, TrustStore, certificate_key_id, key_id

_REJECTED = "EKEYREJECTED"


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """Proof that a module is trusted; only ``verify`` makes one.

    Attributes:
        anchor: the trust anchor that signed.
        hash_algorithm: the kernel's name, for example ``"sha256"``.
        signature_algorithm: ``"rsa"`` or ``"ecdsa"``.
        detail: one sentence for people; names an anchor outside its validity.
    """

    anchor: TrustAnchor
    hash_algorithm: str
    signature_algorithm: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Signature:
    """One SignerInfo after step 6."""

    identity: KeyId
    signature: bytes
    digest: DigestAlgorithm
    algorithm: SignatureAlgorithm


class _Examination:
    """One file on its way through the steps; keeps what was learned for the report."""

    __slots__ = ("_data", "_payload_sha256", "_trust", "digests", "message", "parts", "signatures")

    def __init__(self, data: BytesLike, trust: TrustStore) -> None:
        self._data = data
        self._trust = trust
        self._payload_sha256: hashlib._Hash | None = None
        self.digests: dict[str, bytes] = {}
        self.parts: AppendedSignature | None = None
        self.message: cms.Message | None = None
        self.signatures: tuple[_Signature, ...] = ()

    def run(self, now: datetime | None, *, require_validity: bool) -> VerifiedSignature:
        """Steps 1 to 10."""
        revocations = self._trust.revocations
        # 1. The whole file.
        if revocations.files and hashlib.sha256(self._data).digest() in revocations.files:
            raise _revoked("the SHA-256 of the file is revoked")
        # 2. Payload, message, trailer.
        parts = self.parts = split(self._data)
        # 3. The payload alone, so that another signature does not bring it back.
        if revocations.files and self._digest("sha256", parts.payload) in revocations.files:
            raise _revoked("the SHA-256 of the payload is revoked")
        # 4. Structure.
        message = self.message = cms.parse(parts.cms)
        # 5. Revoked signers.
        if revocations:
            self._refuse_revoked(message)
        # 6. Algorithms.
        self.signatures = tuple(_with_algorithms(signer) for signer in message.signers)
        # 7. What may be signed.
        _check_content(message)
        cms.check_strict(message)
        # 8. Every signer that is known.
        trusted, unsupported = self._check_signers(message, parts.payload)
        # 9. One is enough.
        if not trusted:
            raise self._untrusted(message, unsupported)
        if not all(certificate in self._trust.certificates for certificate in message.certificates):
            raise SignatureError(
                SignatureStatus.UNTRUSTED_SIGNER,
                _REJECTED,
                "the message carries certificates that are no trust anchors, and a kernel may refuse it "
                "for one of them; sign with -nocerts",
            )
        # 10. Validity.
        return _choose_valid(trusted, now, require_validity=require_validity)

    def file_sha256(self) -> str:
        """Hex SHA-256 of the whole file, in one pass with the payload's where possible."""
        if self._payload_sha256 is None or self.parts is None:
            return hashlib.sha256(self._data).hexdigest()
        whole = self._payload_sha256.copy()
        whole.update(self.parts.tail)
        return whole.hexdigest()

    def _digest(self, name: str, payload: memoryview) -> bytes:
        digest = self.digests.get(name)
        if digest is None:
            hasher = hashlib.new(name, payload)
            if name == "sha256":
                self._payload_sha256 = hasher
            digest = self.digests[name] = hasher.digest()
        return digest

    def _refuse_revoked(self, message: cms.Message) -> None:
        for signer in message.signers:
            if self._trust.is_revoked(key_id(signer)):
                raise _revoked("a signer of the module is revoked")
        for certificate in message.certificates:
            if self._trust.revocations.revokes(certificate, _skid(certificate)):
                raise _revoked("a certificate inside the signature is revoked")

    def _check_signers(
        self, message: cms.Message, payload: memoryview
    ) -> tuple[list[tuple[TrustAnchor, _Signature]], bool]:
        """Returns the anchors that verified, and whether a SignerInfo had to be skipped."""
        embedded = {certificate_key_id(certificate): certificate for certificate in message.certificates}
        trusted: list[tuple[TrustAnchor, _Signature]] = []
        unsupported = False
        for signature in self.signatures:
            if signature.digest.prehashed is None:
                unsupported = True
                continue
            anchors = self._trust.find(signature.identity)
            keys = {anchor.key_der: anchor.public_key for anchor in anchors}
            own = embedded.get(signature.identity) if isinstance(signature.identity, tuple) else None
            if own is not None:
                key = _usable_key(own)
                if key is None:
                    unsupported = True
                    continue
                self._check(signature, key, payload, "its embedded certificate")
            # Two keys under one id: the kernel takes either, so both must agree.
            for key in keys.values():
                self._check(signature, key, payload, "the trust anchor that it names")
            if anchors:
                trusted.append((anchors[0], signature))
        return trusted, unsupported

    def _check(self, signature: _Signature, key: PublicKey, payload: memoryview, whose: str) -> None:
        prehashed = signature.digest.prehashed
        assert prehashed is not None  # noqa: S101  # skipped by the only caller
        digest = self._digest(signature.digest.name, payload)
        try:
            signature.algorithm.check(key, signature.signature, digest, prehashed)
        except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
            raise SignatureError(
                SignatureStatus.BAD_SIGNATURE,
                _REJECTED,
                f"the signature does not match the module under the key of {whose}: "
                "module or signature was changed after signing",
            ) from error

    def _untrusted(self, message: cms.Message, unsupported: bool) -> SignatureError:
        if unsupported:
            return _unsupported(
                "a digest or key of the signature is not supported, and no other signer is trusted"
            )
        signer = self.signer()
        who = "" if signer is None else f" ({signer.issuer or 'SKID ' + str(signer.skid)})"
        detail = f"the signer{who} is not among the {len(self._trust)} trust anchors (ENOKEY)"
        if message.certificates:
            detail += "; certificates inside the message are not followed to an anchor"
        return SignatureError(SignatureStatus.UNTRUSTED_SIGNER, _REJECTED, detail)

    def signer(self) -> Signer | None:
        """The first signer that the message names, completed from its anchor."""
        if self.message is None:
            return None
        info = self.message.signers[0]
        anchors = self._trust.find(key_id(info))
        if anchors:
            return anchors[0].signer
        if isinstance(info.sid, bytes):
            return Signer(skid=info.sid.hex())
        return Signer(issuer=rfc4514(info.sid.issuer), serial=f"{info.sid.serial_number:x}")

    def algorithm_names(self) -> tuple[str | None, str | None]:
        """Digest and signature algorithm of the first SignerInfo, as far as known."""
        if self.message is None:
            return None, None
        info = self.message.signers[0]
        digest = DIGESTS.get(info.digest_algorithm.algorithm)
        algorithm = SIGNATURES.get(info.signature_algorithm.algorithm)
        return digest.name if digest else None, algorithm.name if algorithm else None


def _revoked(detail: str) -> SignatureError:
    return SignatureError(SignatureStatus.REVOKED, _REJECTED, detail)


def _unsupported(detail: str) -> SignatureError:
    return SignatureError(SignatureStatus.UNSUPPORTED_SIGNATURE, _REJECTED, detail)


def _skid(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _usable_key(certificate: x509.Certificate) -> PublicKey | None:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else None


def _with_algorithms(signer: cms.SignerInfo) -> _Signature:
    digest_oid = signer.digest_algorithm.algorithm
    signature_oid = signer.signature_algorithm.algorithm
    digest = DIGESTS.get(digest_oid)
    algorithm = SIGNATURES.get(signature_oid)
    if digest is None:
        raise _unsupported(f"digest algorithm {digest_oid.dotted_string} is not supported (ENOPKG)")
    if algorithm is None:
        raise _unsupported(f"signature algorithm {signature_oid.dotted_string} is not supported (ENOPKG)")
    return _Signature(key_id(signer), signer.signature, digest, algorithm)


def _check_content(message: cms.Message) -> None:
    """``verify_pkcs7_message_sig()``, then ``pkcs7_verify()`` for module signatures."""
    if message.has_content:
        raise SignatureError(
            SignatureStatus.MALFORMED_SIGNATURE,
            "EBADMSG",
            "PKCS#7 message: content is embedded; a module signature must be detached",
        )
    if message.content_type != cms.OID_DATA:
        raise _unsupported("the content type is Microsoft's indirect data, not pkcs7-data")
    if message.has_signed_attributes:
        raise _unsupported("signed attributes are not accepted in a module signature; sign with -noattr")


def _choose_valid(
    trusted: list[tuple[TrustAnchor, _Signature]], now: datetime | None, *, require_validity: bool
) -> VerifiedSignature:
    """Prefer a signer inside its validity; refuse without one only when asked."""
    if require_validity and now is None:
        raise ValueError("require_validity needs the time")
    problem = ""
    for anchor, signature in trusted:
        if now is None or anchor.not_before <= now <= anchor.not_after:
            return _verified(anchor, signature, "")
        problem = problem or (
            f"expired on {anchor.not_after:%Y-%m-%d}"
            if now > anchor.not_after
            else f"is not valid before {anchor.not_before:%Y-%m-%d}"
        )
    if require_validity:
        raise SignatureError(
            SignatureStatus.UNTRUSTED_SIGNER,
            _REJECTED,
            f"the signer's certificate {problem}; the kernel would not mind, but validity is required here",
        )
    anchor, signature = trusted[0]
    return _verified(anchor, signature, f"; its certificate {problem}, which the kernel ignores")


def _verified(anchor: TrustAnchor, signature: _Signature, note: str) -> VerifiedSignature:
    return VerifiedSignature(
        anchor=anchor,
        hash_algorithm=signature.digest.name,
        signature_algorithm=signature.algorithm.name,
        detail=f"signed by {anchor.signer.subject}{note}",
    )


def verify(
    data: BytesLike, trust: TrustStore, *, now: datetime | None = None, require_validity: bool = False
) -> VerifiedSignature:
    """Verify a decompressed module file, or raise.

    Args:
        data: the whole file: payload, message, trailer. Never copied.
        trust: anchors and revocations; an empty store trusts nothing.
        now: the time (aware, UTC) for validity notes; None leaves validity unlooked at.
        require_validity: refuse an anchor outside its validity; needs ``now``.

    Raises:
        SignatureError: with status, the kernel's errno under ``sig_enforce``, and detail.
    """
    return _Examination(data, trust).run(now, require_validity=require_validity)


def report(
    data: BytesLike,
    trust: TrustStore,
    *,
    module: ModuleInfo | None = None,
    note: str = "",
    now: datetime | None = None,
    require_validity: bool = False,
) -> SignatureReport:
    """Verify like ``verify``, and say everything there is to say instead of raising.

    Args:
        data: as for ``verify``.
        trust: as for ``verify``.
        module: the module's own strings, put into the report as they are.
        note: a sentence about the file that is added to ``detail``.
        now: as for ``verify``.
        require_validity: as for ``verify``.
    """
    examination = _Examination(data, trust)
    suffix = f"; {note}" if note else ""
    try:
        verified = examination.run(now, require_validity=require_validity)
    except SignatureError as error:
        hash_algorithm, signature_algorithm = examination.algorithm_names()
        return SignatureReport(
            status=error.status,
            errno=error.errno_name,
            signer=examination.signer(),
            hash_algorithm=hash_algorithm,
            signature_algorithm=signature_algorithm,
            sha256=examination.file_sha256(),
            module=module,
            detail=error.detail + suffix,
        )
    return SignatureReport(
        status=SignatureStatus.TRUSTED_SIGNATURE,
        errno=None,
        trusted_by=verified.anchor.label,
        signer=verified.anchor.signer,
        hash_algorithm=verified.hash_algorithm,
        signature_algorithm=verified.signature_algorithm,
        sha256=examination.file_sha256(),
        module=module,
        detail=verified.detail + suffix,
    )
