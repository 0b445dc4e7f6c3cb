# SPDX-License-Identifier: Apache-2.0
"""PKCS#7 / CMS SignedData, as much of it as a module signature may hold.

This module decodes and checks structure. It computes no digest, looks up no signer and
decides no trust. The ASN.1 is declared and decoded as strict DER by ``cryptography``;
where the kernel's BER decoder takes more (trailing bytes, indefinite lengths, PKCS#7's
SEQUENCE variants), kmodgate refuses with EBADMSG.

Sources: RFC 5652 section 5.1; ``crypto/asymmetric_keys/pkcs7.asn1`` and
``pkcs7_parser.c`` for the errno of each defect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1

from kmodgate.errors import SignatureError
from kmodgate.model import SignatureStatus

# Version numbers say how a signer is named (RFC 5652 section 5.3).
_BY_ISSUER, _BY_SKID = 1, 3
_SEQUENCE_TAG = b"\x30"

OID_SIGNED_DATA = x509.ObjectIdentifier("1.2.840.113549.1.7.2")
OID_DATA = x509.ObjectIdentifier("1.2.840.113549.1.7.1")
OID_MS_INDIRECT_DATA = x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.4")


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
    content: Annotated[SignedData | None, asn1.Explicit(0)]


@asn1.sequence
class _AnyContentInfo:
    """RFC 5652 section 3, whatever it holds: tells a foreign type from broken DER."""

    content_type: x509.ObjectIdentifier
    content: asn1.TLV


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded message whose structure the kernel's parser would take.

    Attributes:
        signers: at least one.
        digest_algorithms: what the message announces; the kernel does not look at it.
        certificates: the embedded ones, in the order of the message; trusted by nothing.
        content_type: pkcs7-data, or Microsoft's indirect data.
        has_content: True when the content is embedded instead of detached.
        has_signed_attributes: True when every SignerInfo has them, False when none has.
    """

    signers: tuple[SignerInfo, ...]
    digest_algorithms: tuple[AlgorithmIdentifier, ...]
    certificates: tuple[x509.Certificate, ...]
    content_type: x509.ObjectIdentifier
    has_content: bool
    has_signed_attributes: bool


def _malformed(errno_name: str, detail: str) -> SignatureError:
    return SignatureError(SignatureStatus.MALFORMED_SIGNATURE, errno_name, f"PKCS#7 message: {detail}")


def _decode(der: bytes) -> ContentInfo:
    try:
        return asn1.decode_der(ContentInfo, der)
    except ValueError as error:
        try:
            outer = asn1.decode_der(_AnyContentInfo, der)
        except ValueError:
            outer = None
        if outer is not None and outer.content_type != OID_SIGNED_DATA:
            raise _wrong_type(outer.content_type) from error
        reason = str(error).removeprefix("error parsing asn1 value: ")
        raise _malformed("EBADMSG", f"not the DER of SignedData ({reason})") from error


def _wrong_type(content_type: x509.ObjectIdentifier) -> SignatureError:
    return _malformed("EINVAL", f"its type is {content_type.dotted_string}, not signedData")


def check_strict(message: Message) -> None:
    """Refuse what every kernel overlooks and no signing tool writes.

    Parameters of the algorithms must be NULL or absent (RFC 3370, RFC 5754), and each
    SignerInfo's digest must be announced (RFC 5652 section 5.1): no byte of a message is
    left that could be changed without notice.

    Raises:
        SignatureError: ``malformed_signature`` EBADMSG.
    """
    announced = {identifier.algorithm for identifier in message.digest_algorithms}
    identifiers = list(message.digest_algorithms)
    for signer in message.signers:
        identifiers += (signer.digest_algorithm, signer.signature_algorithm)
        if signer.digest_algorithm.algorithm not in announced:
            raise _malformed("EBADMSG", f"a SignerInfo's digest is not announced{_OVERLOOKED}")
    if any(isinstance(identifier.parameters, asn1.TLV) for identifier in identifiers):
        raise _malformed("EBADMSG", f"an algorithm has parameters{_OVERLOOKED}")


_OVERLOOKED = " (kernels overlook that, kmodgate does not)"


def _check_signer(data: SignedData, signer: SignerInfo) -> None:
    """The version rules of ``pkcs7_note_signerinfo_version()``, stricter than RFC 5652."""
    sid = signer.sid
    if isinstance(sid, IssuerAndSerialNumber) and sid.issuer.tag_bytes != _SEQUENCE_TAG:
        raise _malformed("EBADMSG", "the issuer is no Name")
    if signer.version not in {_BY_ISSUER, _BY_SKID}:
        raise _malformed("EINVAL", f"SignerInfo version {signer.version} is not 1 or 3")
    if (signer.version == _BY_ISSUER) != (data.version == _BY_ISSUER):
        raise _malformed(
            "EBADMSG", f"a version {signer.version} SignerInfo in version {data.version} SignedData"
        )
    by_skid = isinstance(sid, bytes)
    # The kernel takes the key id from the field that the version promises, finds it empty,
    # and its keyring search refuses an empty id.
    if by_skid != (signer.version == _BY_SKID) or sid == b"":
        raise _malformed("EINVAL", "the signer id is empty or not of the kind that the version promises")


def parse(der: bytes) -> Message:
    """Decode a message and check what the kernel's parser checks.

    Raises:
        SignatureError: ``malformed_signature`` with EBADMSG (not DER, not this structure,
            CRLs, mixed versions) or EINVAL (outer type, content type, versions, no signer,
            signed attributes on some signers only, a signer id that cannot be).
    """
    outer = _decode(der)
    if outer.content_type != OID_SIGNED_DATA:
        raise _wrong_type(outer.content_type)
    data = outer.content
    if data is None:
        raise _malformed("EINVAL", "it holds no SignedData")
    if data.version not in {_BY_ISSUER, _BY_SKID}:
        raise _malformed("EINVAL", f"SignedData version {data.version} is not 1 or 3")
    content = data.encap_content_info
    if content.content_type not in {OID_DATA, OID_MS_INDIRECT_DATA}:
        raise _malformed(
            "EINVAL", f"the content type is {content.content_type.dotted_string}, not pkcs7-data"
        )
    signers = tuple(data.signer_infos.as_list())
    for signer in signers:
        _check_signer(data, signer)
    with_attributes = sum(signer.signed_attrs is not None for signer in signers)
    if not signers or with_attributes not in {0, len(signers)}:
        raise _malformed("EINVAL", "no SignerInfo, or signed attributes on some of them only")
    return Message(
        signers=signers,
        digest_algorithms=tuple(data.digest_algorithms.as_list()),
        certificates=() if data.certificates is None else tuple(data.certificates.as_list()),
        content_type=content.content_type,
        has_content=content.content is not None,
        has_signed_attributes=with_attributes > 0,
    )
