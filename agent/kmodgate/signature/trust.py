# SPDX-License-Identifier: Apache-2.0
"""Trust anchors and revocations.

This module reads no files and verifies no message: it turns the bytes of certificate
files into anchors, and finds anchors by the two ids that a SignerInfo may carry. An
empty store finds nothing, so an empty store means deny.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmodgate.errors import ConfigError
from kmodgate.model import Signer

from .algorithms import CERTIFICATE_SIGNATURES, CURVES, PublicKey
from .cms import AlgorithmIdentifier, SignerInfo
from .names import rfc4514
from .revocation import Revocations


@asn1.sequence
class _TbsCertificate:
    """RFC 5280 section 4.1, for the issuer's and the serial number's exact DER."""

    version: Annotated[int, asn1.Explicit(0), asn1.Default(0)]
    serial_number: int
    signature: AlgorithmIdentifier
    issuer: asn1.TLV
    validity: asn1.TLV
    subject: asn1.TLV
    subject_public_key_info: asn1.TLV
    issuer_unique_id: Annotated[asn1.BitString | None, asn1.Implicit(1)]
    subject_unique_id: Annotated[asn1.BitString | None, asn1.Implicit(2)]
    extensions: Annotated[list[asn1.TLV] | None, asn1.Explicit(3)]


# Issuer (content of its DER) and serial number, or a SubjectKeyIdentifier alone.
KeyId = tuple[bytes, int] | bytes


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """One certificate that may sign modules, with its key ready for use.

    Attributes:
        label: where it came from, usually a file name.
        certificate: the certificate itself.
        public_key: RSA, or ECDSA on P-256, P-384 or P-521.
        key_der: its SubjectPublicKeyInfo, to tell the same key twice from two keys.
        issuer_and_serial: the first of its two ids.
        skid: SubjectKeyIdentifier, or None where the certificate has none.
        signer: the same for people.
        not_before: start of validity, UTC.
        not_after: end of validity, UTC.
    """

    label: str
    certificate: x509.Certificate
    public_key: PublicKey
    key_der: bytes
    issuer_and_serial: tuple[bytes, int]
    skid: bytes | None
    signer: Signer
    not_before: datetime
    not_after: datetime

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER in lower-case hexadecimal."""
        return self.certificate.fingerprint(SHA256()).hex()


def key_id(signer: SignerInfo) -> KeyId:
    """The id by which a SignerInfo names its signer."""
    sid = signer.sid
    if isinstance(sid, bytes):
        return sid
    return bytes(sid.issuer.data), sid.serial_number


def certificate_key_id(certificate: x509.Certificate) -> tuple[bytes, int]:
    """Issuer and serial number of a certificate, in the shape of ``key_id``."""
    tbs = asn1.decode_der(_TbsCertificate, certificate.tbs_certificate_bytes)
    return bytes(tbs.issuer.data), tbs.serial_number


class TrustStore:
    """A fixed set of anchors and revocations; safe to share between threads.

    Args:
        anchors: from ``load_certificates``; none at all means that nothing is trusted.
        revocations: win over every anchor.
    """

    def __init__(self, anchors: Iterable[TrustAnchor] = (), revocations: Revocations | None = None) -> None:
        self.anchors: tuple[TrustAnchor, ...] = tuple(anchors)
        self.certificates = frozenset(anchor.certificate for anchor in self.anchors)
        self.revocations = Revocations() if revocations is None else revocations
        self._by_id: dict[KeyId, list[TrustAnchor]] = {}
        self._revoked: frozenset[int] = frozenset(
            index
            for index, anchor in enumerate(self.anchors)
            if self.revocations.revokes(anchor.certificate, anchor.skid)
        )
        revoked_ids: set[KeyId] = set()
        for index, anchor in enumerate(self.anchors):
            ids: list[KeyId] = [anchor.issuer_and_serial]
            if anchor.skid is not None:
                ids.append(anchor.skid)
            for one in ids:
                self._by_id.setdefault(one, []).append(anchor)
                if index in self._revoked:
                    revoked_ids.add(one)
        self._revoked_ids = frozenset(revoked_ids)

    def __len__(self) -> int:
        return len(self.anchors)

    def find(self, identity: KeyId) -> Sequence[TrustAnchor]:
        """Anchors with this id, revoked ones too; empty when there is none."""
        return self._by_id.get(identity, ())

    def is_revoked(self, identity: KeyId) -> bool:
        """True when the id belongs to a revoked anchor or is itself revoked."""
        if identity in self._revoked_ids:
            return True
        return isinstance(identity, bytes) and identity in self.revocations.key_ids


_PEM_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def load_certificates(data: bytes, label: str) -> tuple[TrustAnchor, ...]:
    """Read trust anchors from one file's bytes: PEM with one or more, or DER with one.

    Args:
        data: the file's bytes.
        label: names the file in ``trusted_by`` and in errors.

    Raises:
        ConfigError: no certificate in it, one that does not parse, or one that no kernel
            would load (key or signature algorithm, broken self-signature).
    """
    if _PEM_CERTIFICATE not in data and not data.startswith(b"\x30"):
        if _PRIVATE_KEY.search(data):
            problem = "holds a private key; give the certificate, and keep the key off the node"
        else:
            problem = "holds no X.509 certificate; give PEM (BEGIN CERTIFICATE) or DER"
        raise ConfigError(problem, source=label)
    try:
        if _PEM_CERTIFICATE in data:
            certificates = x509.load_pem_x509_certificates(data)
        else:
            certificates = [x509.load_der_x509_certificate(data)]
    except ValueError as error:
        hint = "check it with `openssl x509 -noout -text`"
        raise ConfigError(f"a certificate does not parse ({error}); {hint}", source=label) from error
    return tuple(_anchor(certificate, label) for certificate in certificates)


def _anchor(certificate: x509.Certificate, label: str) -> TrustAnchor:
    try:
        tbs = asn1.decode_der(_TbsCertificate, certificate.tbs_certificate_bytes)
        public_key = certificate.public_key()
        skid = _extension_skid(certificate)
        not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise ConfigError(f"a certificate cannot be used ({error})", source=label) from error
    subject = rfc4514(tbs.subject)
    if not isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) or (
        isinstance(public_key, ec.EllipticCurvePublicKey) and public_key.curve.name not in CURVES
    ):
        raise ConfigError(
            f"certificate {subject!r} has a key that module signatures cannot use; "
            "use RSA, or ECDSA on P-256, P-384 or P-521",
            source=label,
        )
    algorithm = certificate.signature_algorithm_oid.dotted_string
    if algorithm not in CERTIFICATE_SIGNATURES:
        raise ConfigError(
            f"certificate {subject!r} is itself signed with {algorithm}, which no kernel loads; "
            "issue it with SHA-256 and RSA PKCS#1 v1.5 or ECDSA",
            source=label,
        )
    _check_self_signature(certificate, skid, subject, label)
    return TrustAnchor(
        label=label,
        certificate=certificate,
        public_key=public_key,
        key_der=public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        issuer_and_serial=(bytes(tbs.issuer.data), tbs.serial_number),
        skid=skid,
        signer=Signer(
            issuer=rfc4514(tbs.issuer),
            serial=f"{tbs.serial_number:x}",
            skid=None if skid is None else skid.hex(),
            subject=subject,
        ),
        not_before=not_before,
        not_after=not_after,
    )


def _extension_skid(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _check_self_signature(
    certificate: x509.Certificate, skid: bytes | None, subject: str, label: str
) -> None:
    """``x509_check_for_self_signed()``: a self-signed certificate must verify itself."""
    if certificate.issuer != certificate.subject:
        return
    try:
        aki = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        aki = None
    if aki is not None and aki != skid:
        return
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(
            f"certificate {subject!r} names itself as issuer and its own signature does not match; "
            "export it again",
            source=label,
        ) from error
    except UnsupportedAlgorithm:
        # An old digest on the certificate itself: the kernel keeps such a certificate, too.
        return
