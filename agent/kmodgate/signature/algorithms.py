# SPDX-License-Identifier: Apache-2.0
"""The algorithms that may stand in a module's SignerInfo: two tables.

This module decides no trust. An OID that is in no table is unsupported, never a default.
The sets follow ``pkcs7_sig_note_digest_algo()`` and ``pkcs7_sig_note_pkey_algo()``
(``crypto/asymmetric_keys/pkcs7_parser.c``): what that parser does not know makes the
whole message ENOPKG; what it knows but this build cannot compute skips one SignerInfo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509 import ObjectIdentifier

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class DigestAlgorithm:
    """One digest.

    Attributes:
        oid: dotted object identifier.
        name: the kernel's name, which is also ``hashlib``'s.
        prehashed: marker for ``cryptography``; None for a digest that the kernel's parser
            knows and kmodgate does not trust.
    """

    oid: str
    name: str
    prehashed: Prehashed | None


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """One signature scheme.

    Attributes:
        oid: dotted object identifier.
        name: ``"rsa"`` (PKCS#1 v1.5) or ``"ecdsa"``, the kernel's ``pkey_algo``.
        check: ``check(key, signature, digest, prehashed)``; raises InvalidSignature,
            also for a key of another kind.
    """

    oid: str
    name: str
    check: Callable[[PublicKey, bytes, bytes, Prehashed], None]


_PKCS1V15 = padding.PKCS1v15()


def _check_rsa(key: PublicKey, signature: bytes, digest: bytes, prehashed: Prehashed) -> None:
    if not isinstance(key, rsa.RSAPublicKey):
        raise InvalidSignature("the signer's key is no RSA key")
    key.verify(signature, digest, _PKCS1V15, prehashed)


def _check_ecdsa(key: PublicKey, signature: bytes, digest: bytes, prehashed: Prehashed) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidSignature("the signer's key is no elliptic-curve key")
    key.verify(signature, digest, ec.ECDSA(prehashed))


DIGESTS: dict[ObjectIdentifier, DigestAlgorithm] = {
    ObjectIdentifier(algorithm.oid): algorithm
    for algorithm in (
        DigestAlgorithm("2.16.840.1.101.3.4.2.1", "sha256", Prehashed(hashes.SHA256())),
        DigestAlgorithm("2.16.840.1.101.3.4.2.2", "sha384", Prehashed(hashes.SHA384())),
        DigestAlgorithm("2.16.840.1.101.3.4.2.3", "sha512", Prehashed(hashes.SHA512())),
        DigestAlgorithm("1.3.14.3.2.26", "sha1", None),
        DigestAlgorithm("2.16.840.1.101.3.4.2.4", "sha224", None),
    )
}

# The OID names the scheme alone: the kernel takes the digest from digestAlgorithm, even
# beside ecdsa-with-SHA256. sha256WithRSAEncryption and its like are not in its table.
SIGNATURES: dict[ObjectIdentifier, SignatureAlgorithm] = {
    ObjectIdentifier(algorithm.oid): algorithm
    for algorithm in (
        SignatureAlgorithm("1.2.840.113549.1.1.1", "rsa", _check_rsa),
        SignatureAlgorithm("1.2.840.10045.4.1", "ecdsa", _check_ecdsa),
        SignatureAlgorithm("1.2.840.10045.4.3.1", "ecdsa", _check_ecdsa),
        SignatureAlgorithm("1.2.840.10045.4.3.2", "ecdsa", _check_ecdsa),
        SignatureAlgorithm("1.2.840.10045.4.3.3", "ecdsa", _check_ecdsa),
        SignatureAlgorithm("1.2.840.10045.4.3.4", "ecdsa", _check_ecdsa),
    )
}

# Curves of crypto/ecdsa.c: P-256 and P-384 since 5.13, P-521 since 6.10.
CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})

# What x509_note_sig_algo() reads in a certificate; anything else is not loaded (ENOPKG).
CERTIFICATE_SIGNATURES = frozenset(
    {
        "1.2.840.113549.1.1.5",
        "1.2.840.113549.1.1.11",
        "1.2.840.113549.1.1.12",
        "1.2.840.113549.1.1.13",
        "1.2.840.113549.1.1.14",
        "1.2.840.10045.4.1",
        "1.2.840.10045.4.3.1",
        "1.2.840.10045.4.3.2",
        "1.2.840.10045.4.3.3",
        "1.2.840.10045.4.3.4",
    }
)
