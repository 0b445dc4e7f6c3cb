# SPDX-License-Identifier: Apache-2.0
"""A certificate in the words of reports, and what an operator should know about it.

This module decides no trust: it also describes certificates that no kernel would load.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from kmodgate.errors import InputError

from .names import escape

WEAK_RSA_BITS: Final = 2048
"""An RSA key below this is weak (NIST SP 800-131A)."""
SOON: Final = timedelta(days=30)

_SIGNATURES: dict[str, str] = {
    "1.2.840.113549.1.1.5": "rsa with sha1",
    "1.2.840.113549.1.1.11": "rsa with sha256",
    "1.2.840.113549.1.1.12": "rsa with sha384",
    "1.2.840.113549.1.1.13": "rsa with sha512",
    "1.2.840.113549.1.1.14": "rsa with sha224",
    "1.2.840.10045.4.1": "ecdsa with sha1",
    "1.2.840.10045.4.3.1": "ecdsa with sha224",
    "1.2.840.10045.4.3.2": "ecdsa with sha256",
    "1.2.840.10045.4.3.3": "ecdsa with sha384",
    "1.2.840.10045.4.3.4": "ecdsa with sha512",
    "2.16.840.1.101.3.4.3.17": "mldsa44",
    "2.16.840.1.101.3.4.3.18": "mldsa65",
    "2.16.840.1.101.3.4.3.19": "mldsa87",
}
_PROBLEMS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class Description:
    """What stands in a certificate.

    Attributes:
        subject: RFC 4514, control characters escaped.
        issuer: the same.
        serial: lower-case hexadecimal.
        skid: SubjectKeyIdentifier in hexadecimal, or None.
        key: for example ``rsa 2048``, ``ecdsa secp256r1``, ``mldsa65``; ``unknown`` when it is no known key.
        rsa_bits: of an RSA key, else None.
        signed_with: for example ``rsa with sha256``; an unknown algorithm by its number.
        self_issued: subject and issuer are one.
        ca: it may issue other certificates.
        not_before: start of validity, UTC.
        not_after: end of validity, UTC.
        sha256: of the certificate, lower-case hexadecimal.
        tbs_sha256: of its signed part, as a revocation ``tbs:`` names it.
    """

    subject: str
    issuer: str
    serial: str
    skid: str | None
    key: str
    rsa_bits: int | None
    signed_with: str
    self_issued: bool
    ca: bool
    not_before: datetime
    not_after: datetime
    sha256: str
    tbs_sha256: str

    def days_left(self, now: datetime) -> int:
        """Whole days until the end of validity; negative when it is over."""
        return (self.not_after - now) // timedelta(days=1)

    def warnings(self, now: datetime) -> tuple[str, ...]:
        """What makes it a poor signer, one sentence each. Kernels accept all of it."""
        found = []
        if self.not_after < now:
            found.append(f"expired on {self.not_after:%Y-%m-%d}; only requireValidity refuses it")
        elif self.not_after < now + SOON:
            found.append(f"expires on {self.not_after:%Y-%m-%d}")
        if self.not_before > now:
            found.append(f"not valid before {self.not_before:%Y-%m-%d}; only requireValidity refuses it")
        if self.rsa_bits is not None and self.rsa_bits < WEAK_RSA_BITS:
            found.append(f"its RSA key of {self.rsa_bits} bits is weak; use {WEAK_RSA_BITS} or more")
        if self.signed_with.endswith("sha1"):
            found.append("signed with SHA-1, which can be forged; issue it anew")
        return tuple(found)


def describe(certificate: x509.Certificate) -> Description:
    """Describe a parsed certificate.

    Raises:
        InputError: names or times in it cannot be read.
    """
    try:
        der = certificate.public_bytes(Encoding.DER)
        oid = certificate.signature_algorithm_oid.dotted_string
        key, rsa_bits = _key(certificate)
        return Description(
            subject=escape(certificate.subject.rfc4514_string()),
            issuer=escape(certificate.issuer.rfc4514_string()),
            serial=f"{certificate.serial_number:x}",
            skid=_skid(certificate),
            key=key,
            rsa_bits=rsa_bits,
            signed_with=_SIGNATURES.get(oid, oid),
            self_issued=certificate.subject == certificate.issuer,
            ca=_is_ca(certificate),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            sha256=hashlib.sha256(der).hexdigest(),
            tbs_sha256=hashlib.sha256(certificate.tbs_certificate_bytes).hexdigest(),
        )
    except _PROBLEMS as error:
        raise InputError(f"a certificate cannot be read ({error})") from error


def describe_der(der: bytes) -> Description:
    """Describe one certificate.

    Raises:
        InputError: it does not parse.
    """
    try:
        return describe(x509.load_der_x509_certificate(der))
    except ValueError as error:
        raise InputError(f"a certificate does not parse ({error})") from error


def to_pem(der: bytes, facts: Description) -> str:
    """One certificate as PEM, behind lines that people read: subject, validity, SHA-256."""
    return (
        f"# subject: {facts.subject}\n"
        f"# valid: {facts.not_before:%Y-%m-%d} to {facts.not_after:%Y-%m-%d}\n"
        f"# sha256: {facts.sha256}\n"
        f"{x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode('ascii')}"
    )


def _key(certificate: x509.Certificate) -> tuple[str, int | None]:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "unknown", None
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa {key.key_size}", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ecdsa {key.curve.name}", None
    oid = certificate.public_key_algorithm_oid.dotted_string
    return _SIGNATURES.get(oid, "unknown"), None


def _skid(certificate: x509.Certificate) -> str | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except (x509.ExtensionNotFound, *_PROBLEMS):
        return None


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *_PROBLEMS):
        return False
