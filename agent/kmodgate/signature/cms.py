# SPDX-License-Identifier: Apache-2.0
"""PKCS#7 / CMS SignedData as strict DER: what a message must be, on top of what kernels ask.

Kernels overlook bytes after the message, indefinite lengths, wrong constructed bits and more
(``signature.kernel`` is a model of that). Here the ASN.1 is declared and decoded by
``cryptography``, which overlooks none of it. This module computes no digest, looks up no signer
and decides no trust.

Sources: RFC 5652 section 5, RFC 3370, RFC 5754, RFC 9882.
"""

from __future__ import annotations

from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1

from kmodgate.errors import SignatureError
from kmodgate.model import SignatureStatus

from .names import CERTIFICATE_PROBLEMS

_SEQUENCE_TAG = b"\x30"
_MLDSA_ARC = "2.16.840.1.101.3.4.3."
# ecdsa-with-SHA2 and -SHA3 (RFC 5758, RFC 8702) and the digest each names. Kernels go by the
# digestAlgorithm alone.
_ECDSA = {
    x509.ObjectIdentifier(signature): x509.ObjectIdentifier(digest)
    for signature, digest in {
        "1.2.840.10045.4.1": "1.3.14.3.2.26",
        "1.2.840.10045.4.3.1": "2.16.840.1.101.3.4.2.4",
        "1.2.840.10045.4.3.2": "2.16.840.1.101.3.4.2.1",
        "1.2.840.10045.4.3.3": "2.16.840.1.101.3.4.2.2",
        "1.2.840.10045.4.3.4": "2.16.840.1.101.3.4.2.3",
        "2.16.840.1.101.3.4.3.10": "2.16.840.1.101.3.4.2.8",
        "2.16.840.1.101.3.4.3.11": "2.16.840.1.101.3.4.2.9",
        "2.16.840.1.101.3.4.3.12": "2.16.840.1.101.3.4.2.10",
    }.items()
}
_MLDSA = frozenset(x509.ObjectIdentifier(f"{_MLDSA_ARC}{number}") for number in (17, 18, 19))


@asn1.sequence
class AlgorithmIdentifier:
    """RFC 5280 section 4.1.1.2; the parameters may be anything, so that the OID decides first."""

    algorithm: x509.ObjectIdentifier
    parameters: asn1.Null | asn1.TLV | None


@asn1.sequence
class IssuerAndSerialNumber:
    """RFC 5652 section 10.2.4. The issuer stays DER: the kernel compares its bytes."""

    issuer: asn1.TLV
    serial_number: int


@asn1.sequence
class SignerInfo:
    """RFC 5652 section 5.3."""

    version: int
    sid: IssuerAndSerialNumber | Annotated[bytes, asn1.Implicit(0)]
    digest_algorithm: AlgorithmIdentifier
    signed_attrs: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(0)]
    signature_algorithm: AlgorithmIdentifier
    signature: bytes
    unsigned_attrs: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(1)]


@asn1.sequence
class EncapsulatedContentInfo:
    """RFC 5652 section 5.2; the content must be absent (detached)."""

    content_type: x509.ObjectIdentifier
    content: Annotated[bytes | None, asn1.Explicit(0)]


@asn1.sequence
class SignedData:
    """RFC 5652 section 5.1. CRLs are left out: the kernel refuses them with EBADMSG."""

    version: int
    digest_algorithms: asn1.SetOf[AlgorithmIdentifier]
    encap_content_info: EncapsulatedContentInfo
    certificates: Annotated[asn1.SetOf[x509.Certificate] | None, asn1.Implicit(0)]
    signer_infos: asn1.SetOf[SignerInfo]


@asn1.sequence
class ContentInfo:
    """RFC 5652 section 3, holding SignedData."""

    content_type: x509.ObjectIdentifier
    content: Annotated[SignedData, asn1.Explicit(0)]


def overlooked(detail: str) -> SignatureError:
    """The error for what every kernel lets pass: it cannot be told from tampering."""
    return SignatureError(
        SignatureStatus.MALFORMED_SIGNATURE,
        "EBADMSG",
        f"PKCS#7 message: {detail} (kernels overlook that, kmodgate does not)",
    )


def check_strict(der: bytes) -> None:
    """Refuse what kernels overlook and no signing tool writes.

    The message must be DER to its last byte. Parameters of its algorithms must be NULL or
    absent, each SignerInfo's digest must be announced and the one that its signature algorithm
    names, and signed attributes stand beside ML-DSA only: no byte is left that could be changed
    without notice, but for unsigned attributes and for what belongs to signers that are not
    looked up.

    Args:
        der: a message that the kernel's parser has taken.

    Raises:
        SignatureError: ``malformed_signature`` EBADMSG.
    """
    try:
        data = asn1.decode_der(ContentInfo, der).content
    except CERTIFICATE_PROBLEMS as error:
        reason = str(error).removeprefix("error parsing asn1 value: ")
        raise overlooked(f"not the DER of SignedData ({reason})") from error
    announced = {identifier.algorithm for identifier in data.digest_algorithms.as_list()}
    identifiers = list(data.digest_algorithms.as_list())
    for signer in data.signer_infos.as_list():
        identifiers += (signer.digest_algorithm, signer.signature_algorithm)
        if signer.digest_algorithm.algorithm not in announced:
            raise overlooked("a SignerInfo's digest is not announced")
        signature, digest = signer.signature_algorithm.algorithm, signer.digest_algorithm.algorithm
        if _ECDSA.get(signature, digest) != digest:
            raise overlooked("the signature algorithm names another digest than the SignerInfo's")
        if signer.signed_attrs is not None and signature not in _MLDSA:
            raise overlooked("signed attributes beside a signature that is not ML-DSA")
        if isinstance(signer.sid, IssuerAndSerialNumber) and signer.sid.issuer.tag_bytes != _SEQUENCE_TAG:
            raise overlooked("an issuer that is no Name")
    if any(isinstance(identifier.parameters, asn1.TLV) for identifier in identifiers):
        raise overlooked("an algorithm has parameters")
