# SPDX-License-Identifier: Apache-2.0
"""Trust anchors and revocations.

This module reads no files and verifies no message: it turns the bytes of certificate
files into anchors, and gives the keyring of a kernel that trusts them. An empty store
trusts nothing, so an empty store means deny.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from kmodgate.errors import ConfigError
from kmodgate.model import Signer

from .kernel import Keyring, Refusal
from .kernel.certificate import Certificate, parse_certificate
from .kernel.keys import check_key
from .names import CERTIFICATE_PROBLEMS, escape, hexadecimal, render, subject_of
from .profile import LATEST, KernelProfile
from .revocation import Revocations

MldsaPublicKey: TypeAlias = mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | MldsaPublicKey


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """One certificate that may sign modules.

    Attributes:
        label: where it came from, usually a file name.
        certificate: the certificate itself.
        public_key: RSA, ECDSA on P-256, P-384 or P-521, or ML-DSA.
        parsed: the same as the kernel reads it.
        identity: serial number and issuer, the kernel's first id of it.
        skid: SubjectKeyIdentifier, the second, or None where the certificate has none.
        signer: the same for people.
        not_before: start of validity, UTC.
        not_after: end of validity, UTC.
    """

    label: str
    certificate: x509.Certificate
    public_key: PublicKey
    parsed: Certificate
    signer: Signer
    not_before: datetime
    not_after: datetime

    @property
    def identity(self) -> bytes:
        """Serial number and issuer."""
        return self.parsed.identity

    @property
    def skid(self) -> bytes | None:
        """SubjectKeyIdentifier."""
        return self.parsed.skid

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER in lower-case hexadecimal."""
        return self.certificate.fingerprint(SHA256()).hex()


def signer_of(certificate: Certificate) -> Signer:
    """Name a certificate for people."""
    return Signer(
        issuer=render(certificate.issuer),
        serial=serial_of(certificate.identity[: len(certificate.identity) - len(certificate.issuer)]),
        skid=None if certificate.skid is None else hexadecimal(certificate.skid),
        subject=render(certificate.subject),
    )


def serial_of(contents: bytes) -> str:
    """Contents of an INTEGER in lower-case hexadecimal, without leading zeros."""
    return escape(f"{int.from_bytes(contents, 'big', signed=True):x}")


class TrustStore:
    """A fixed set of anchors and revocations; safe to share between threads.

    Args:
        anchors: from ``load_certificates``; none at all means that nothing is trusted.
        revocations: win over every anchor.
    """

    def __init__(self, anchors: Iterable[TrustAnchor] = (), revocations: Revocations | None = None) -> None:
        self.anchors: tuple[TrustAnchor, ...] = tuple(anchors)
        self.revocations = Revocations() if revocations is None else revocations
        self._keyrings: dict[KernelProfile, Keyring] = {}
        self._revoked = frozenset(
            identity
            for anchor in self.anchors
            if self.revocations.revokes(anchor.certificate, anchor.skid)
            for identity in (anchor.identity, anchor.skid)
            if identity is not None
        )

    def __len__(self) -> int:
        return len(self.anchors)

    def keyring(self, profile: KernelProfile) -> Keyring:
        """The keyring of a kernel that trusts these anchors; revoked ones are in it."""
        keyring = self._keyrings.get(profile)
        if keyring is None:
            keyring = Keyring((anchor.parsed.der for anchor in self.anchors), profile)
            self._keyrings[profile] = keyring
        return keyring

    def find(self, identity: bytes) -> tuple[TrustAnchor, ...]:
        """Anchors with this id, revoked ones too; empty when there is none."""
        return tuple(anchor for anchor in self.anchors if identity in {anchor.identity, anchor.skid})

    def is_revoked(self, identity: bytes) -> bool:
        """True when one of the kernel's ids belongs to a revoked anchor or is itself revoked."""
        return identity in self._revoked or self.revocations.names(identity)


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
    except CERTIFICATE_PROBLEMS as error:
        hint = "check it with `openssl x509 -noout -text`"
        raise ConfigError(f"a certificate does not parse ({error}); {hint}", source=label) from error
    return tuple(_anchor(certificate, label) for certificate in certificates)


def _anchor(certificate: x509.Certificate, label: str) -> TrustAnchor:
    subject = subject_of(certificate)
    try:
        parsed = parse_certificate(certificate.public_bytes(Encoding.DER), LATEST)
        check_key(parsed.key, LATEST)
        public_key = certificate.public_key()
        not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Refusal as refusal:
        raise ConfigError(
            f"certificate {subject!r} is one that no kernel loads ({refusal.detail}); issue it for RSA of at "
            "most 4096 bits, ECDSA on P-256, P-384 or P-521, or ML-DSA, and sign it with SHA-256 or better",
            source=label,
        ) from refusal
    except CERTIFICATE_PROBLEMS as error:
        raise ConfigError(f"a certificate cannot be used ({error})", source=label) from error
    assert isinstance(public_key, PublicKey)  # noqa: S101  # check_key let it pass
    return TrustAnchor(label, certificate, public_key, parsed, signer_of(parsed), not_before, not_after)
