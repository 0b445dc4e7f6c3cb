# SPDX-License-Identifier: Apache-2.0
"""PKCS#7 messages as ``pkcs7_parse_message()`` reads them.

One pass in the order of the bytes: an unknown digest algorithm (ENOPKG) in the first SignerInfo
wins over broken DER (EBADMSG) in the second. What an action notes stays noted: a SignerInfo
that names its signer in the other way than its version says gets the name of the one before.

Sources: ``crypto/asymmetric_keys/pkcs7.asn1``, ``pkcs7_parser.c``.
"""

from __future__ import annotations

from datetime import datetime

from kmodgate.model import SignatureStatus
from kmodgate.signature.profile import KernelProfile

from . import oids
from .answer import Refusal
from .ber import anything, choice, compile_grammar, decode, group, leaf, many
from .certificate import Certificate, parse_certificate
from .keys import Signature
from .times import check_time

_SEQUENCE, _SET, _OID, _INTEGER, _OCTET_STRING = 0x30, 0x31, 0x06, 0x02, 0x04
_INDEFINITE = 0x80
# A message has room for hundreds, and each may cost a public-key operation. No tool writes more
# than a handful.
MAX_CERTIFICATES = 24
MAX_SIGNERS = 24


class SignedInfo:
    """One SignerInfo.

    Attributes:
        identity: serial number and issuer, or the SubjectKeyIdentifier: what the kernel
            compares with both ids of a certificate.
        by_skid: the version promises a SubjectKeyIdentifier.
        issuer: contents of the issuer's name, when it is named that way.
        serial: contents of its serial number.
        signature: algorithms and value.
        digest_name: of the digestAlgorithm, also where the signature takes the data.
        attributes: the signed attributes' whole element, or None.
        message_digest: contents of that attribute.
        signing_time: of that attribute.
        signer: the embedded certificate that made it.
        unsupported: the kernel lacks what it needs.
    """

    __slots__ = (
        "attributes",
        "attributes_seen",
        "by_skid",
        "digest_name",
        "identity",
        "issuer",
        "message_digest",
        "serial",
        "signature",
        "signer",
        "signing_time",
        "unsupported",
    )

    def __init__(self) -> None:
        self.identity = b""
        self.by_skid = False
        self.issuer = self.serial = b""
        self.signature = Signature("", "", "")
        self.digest_name = ""
        self.attributes: bytes | None = None
        self.attributes_seen: set[bytes] = set()
        self.message_digest: bytes | None = None
        self.signing_time: datetime | None = None
        self.signer: Certificate | None = None
        self.unsupported = False


class Message:
    """One parsed message, and what the actions note while the machine runs.

    Attributes:
        signers: the SignerInfos in order.
        certificates: the embedded certificates in order.
        content_type: object identifier, as the bytes in DER.
        has_content: content is embedded.
        has_attributes: the SignerInfos have signed attributes.
        attributes_waived: which is let pass, because all that have them are ML-DSA.
    """

    def __init__(self, data: bytes, profile: KernelProfile) -> None:
        self.data = data
        self.profile = profile
        self.signers: list[SignedInfo] = []
        self.certificates: list[Certificate] = []
        self.content_type = b""
        self.has_content = False
        self.has_attributes = False
        self.attributes_waived = False
        self.last_oid = b""
        self.version = 0
        self.expect_skid = False
        self.serial = self.issuer = self.skid = b""
        self.collected: list[Certificate] = []
        self.current = SignedInfo()


def _note_oid(message: Message, _header: int, _tag: int, start: int, length: int) -> None:
    message.last_oid = message.data[start : start + length]


def _note_type(message: Message, _header: int, _tag: int, start: int, length: int) -> None:
    message.last_oid = message.data[start : start + length]
    if message.last_oid != oids.SIGNED_DATA:
        raise Refusal("EINVAL", f"its type is {oids.dotted(message.last_oid)}, not signedData")


def _note_version(message: Message, _header: int, _tag: int, start: int, length: int) -> None:
    message.version = message.data[start] if length == 1 else 0
    if message.version not in {1, 3}:
        raise Refusal("EINVAL", "SignedData's version is not 1 or 3")


def _note_content_type(message: Message, *_where: int) -> None:
    if message.last_oid not in {oids.DATA, oids.MS_INDIRECT_DATA}:
        raise Refusal("EINVAL", f"the content type is {oids.dotted(message.last_oid)}, not pkcs7-data")
    message.content_type = message.last_oid


def _note_content(message: Message, *_where: int) -> None:
    message.has_content = True


def _note_certificate(message: Message, header: int, tag: int, start: int, length: int) -> None:
    if tag != _SEQUENCE:
        raise Refusal("EBADMSG", f"tag {tag:#04x} where a certificate belongs")
    data = message.data
    first = start - header
    # The end mark of an indefinite length lies behind what the decoder counted.
    end = start + length + (2 if data[first + 1] == _INDEFINITE else 0)
    if len(message.collected) >= MAX_CERTIFICATES:
        raise _too_many("certificates", MAX_CERTIFICATES)
    message.collected.append(parse_certificate(data[first:end], message.profile))


def _too_many(what: str, limit: int) -> Refusal:
    return Refusal(
        "EKEYREJECTED",
        f"more than {limit} {what} in one signature; kmodgate reads no further, whatever a kernel does",
        SignatureStatus.UNSUPPORTED_SIGNATURE,
    )


def _note_certificates(message: Message, *_where: int) -> None:
    message.certificates = [*message.certificates, *message.collected]
    message.collected = []


def _note_signer_version(message: Message, _header: int, _tag: int, start: int, length: int) -> None:
    version = message.data[start] if length == 1 else 0
    if version not in {1, 3}:
        raise Refusal("EINVAL", "a SignerInfo's version is not 1 or 3")
    if (version == 1) != (message.version == 1):
        raise Refusal("EBADMSG", f"a version {version} SignerInfo in version {message.version} SignedData")
    message.expect_skid = version == 3


def _note_issuer(message: Message, _header: int, _tag: int, start: int, length: int) -> None:
    message.issuer = message.data[start : start + length]


def _note_serial(message: Message, _header: int, _tag: int, start: int, length: int) -> None:
    message.serial = message.data[start : start + length]


def _note_skid(message: Message, _header: int, _tag: int, start: int, length: int) -> None:
    message.skid = message.data[start : start + length]


def _note_digest(message: Message, *_where: int) -> None:
    name = oids.DIGESTS.get(message.last_oid)
    if name is None or name not in message.profile.digests_known:
        raise Refusal(
            "ENOPKG", f"digest algorithm {oids.dotted(message.last_oid)} is not known to the kernel"
        )
    message.current.digest_name = name


def _note_signature_algorithm(message: Message, *_where: int) -> None:
    """``pkcs7_sig_note_pkey_algo()``; the digest comes from elsewhere, also beside ecdsa-with-SHA256."""
    oid, known = message.last_oid, message.profile.signatures_known
    digest = message.current.digest_name
    if oid == oids.RSA_ENCRYPTION:
        signature = Signature("rsa", "pkcs1", digest)
    elif (
        "ecdsa" in known
        and (with_digest := oids.ECDSA_WITH.get(oid))
        and (message.profile.ecdsa_sha3 or not with_digest.startswith("sha3-"))
    ):
        signature = Signature("ecdsa", "x962", digest)
    elif "ecrdsa" in known and oid in oids.GOST_KEYS:
        signature = Signature("ecrdsa", "raw", digest)
    elif "sm2" in known and oid == oids.SM2_WITH_SM3:
        signature = Signature("sm2", "raw", digest)
    elif "mldsa" in known and (name := oids.MLDSA.get(oid)):
        signature = Signature(name, "raw", digest, takes_data=True)
    else:
        raise Refusal("ENOPKG", f"signature algorithm {oids.dotted(oid)} is not known to the kernel")
    message.current.signature = signature


def _note_value(message: Message, _header: int, _tag: int, start: int, length: int) -> None:
    message.current.signature.value = message.data[start : start + length]


def _note_attribute(message: Message, header: int, tag: int, start: int, length: int) -> None:
    """``pkcs7_sig_note_authenticated_attr()``: once for each value of each attribute."""
    del header
    kind, info = message.last_oid, message.current
    value = message.data[start : start + length]
    if kind not in _ATTRIBUTES:
        return
    if kind in info.attributes_seen:
        raise _bad_attribute("a signed attribute comes twice or has two values")
    info.attributes_seen.add(kind)
    if kind == oids.CONTENT_TYPE:
        if value != message.content_type:
            raise Refusal("EBADMSG", "the signed content type is not the content's")
    elif kind == oids.SIGNING_TIME:
        info.signing_time = check_time(tag, value)
    elif kind == oids.MESSAGE_DIGEST:
        if tag != _OCTET_STRING:
            raise Refusal("EBADMSG", "the signed digest is no OCTET STRING")
        info.message_digest = value
    elif message.content_type != oids.MS_INDIRECT_DATA:
        raise _bad_attribute("a signed attribute that belongs to Authenticode or S/MIME")


_ATTRIBUTES = frozenset(
    {
        oids.CONTENT_TYPE,
        oids.SIGNING_TIME,
        oids.MESSAGE_DIGEST,
        oids.SMIME_CAPABILITIES,
        oids.MS_SP_OPUS_INFO,
        oids.MS_STATEMENT_TYPE,
    }
)


def _bad_attribute(detail: str) -> Refusal:
    return Refusal("EKEYREJECTED", detail, SignatureStatus.UNSUPPORTED_SIGNATURE)


def _note_attributes(message: Message, header: int, _tag: int, start: int, length: int) -> None:
    info = message.current
    if not {oids.CONTENT_TYPE, oids.MESSAGE_DIGEST} <= info.attributes_seen:
        raise Refusal("EBADMSG", "signed attributes without content type or digest")
    info.attributes = message.data[start - header : start + length]


def _note_signer(message: Message, *_where: int) -> None:
    """``pkcs7_note_signed_info()``."""
    info = message.current
    if message.content_type == oids.MS_INDIRECT_DATA and info.attributes is None:
        raise Refusal("EBADMSG", "Authenticode without signed attributes")
    info.by_skid = message.expect_skid
    if info.by_skid:
        info.identity = message.skid
    else:
        info.issuer, info.serial = message.issuer, message.serial
        info.identity = message.serial + message.issuer
    if len(message.signers) >= MAX_SIGNERS:
        raise _too_many("SignerInfos", MAX_SIGNERS)
    message.signers.append(info)
    message.current = SignedInfo()


_ALGORITHM = (leaf(_OID, _note_oid), anything(optional=True))
_ATTRIBUTE = group(_SEQUENCE, leaf(_OID, _note_oid), many(_SET, anything(_note_attribute)))
_UNSIGNED_ATTRIBUTE = group(_SEQUENCE, leaf(_OID), many(_SET, anything()))
_NAME_PART = many(_SET, group(_SEQUENCE, leaf(_OID, _note_oid), anything()))

_SIGNER_INFO = group(
    _SEQUENCE,
    leaf(_INTEGER, _note_signer_version),
    choice(
        group(_SEQUENCE, many(_SEQUENCE, _NAME_PART, after=_note_issuer), leaf(_INTEGER, _note_serial)),
        leaf(0x80, _note_skid),
    ),
    group(_SEQUENCE, *_ALGORITHM, after=_note_digest),
    choice(
        many(0xA0, _ATTRIBUTE, after=_note_attributes),
        group(0xA2, many(_SEQUENCE, _ATTRIBUTE)),
        optional=True,
    ),
    group(_SEQUENCE, *_ALGORITHM, after=_note_signature_algorithm),
    leaf(_OCTET_STRING, _note_value),
    choice(many(0xA1, _UNSIGNED_ATTRIBUTE), many(0xA3, _UNSIGNED_ATTRIBUTE), optional=True),
    action=_note_signer,
)
_CERTIFICATE = anything(_note_certificate)
# What the kernel calls a revocation list is a list of certificates, which it then forgets.
_REVOCATION_LIST = many(_SEQUENCE, _CERTIFICATE)

_SIGNED_DATA = group(
    _SEQUENCE,
    leaf(_INTEGER, _note_version),
    choice(many(_SET, group(_SEQUENCE, *_ALGORITHM)), many(_SEQUENCE, group(_SEQUENCE, *_ALGORITHM))),
    group(
        _SEQUENCE,
        leaf(_OID, _note_oid),
        group(0xA0, anything(_note_content), optional=True),
        after=_note_content_type,
    ),
    choice(
        many(0xA0, choice(_CERTIFICATE, _CERTIFICATE)),
        many(0xA2, _CERTIFICATE),
        optional=True,
        after=_note_certificates,
    ),
    choice(many(0xA1, _REVOCATION_LIST), many(0xA3, _REVOCATION_LIST), optional=True),
    choice(many(_SET, _SIGNER_INFO), many(_SEQUENCE, _SIGNER_INFO)),
)

_MESSAGE = compile_grammar(group(_SEQUENCE, leaf(_OID, _note_type), group(0xA0, _SIGNED_DATA, optional=True)))


def parse_message(der: bytes, profile: KernelProfile) -> Message:
    """``pkcs7_parse_message()``.

    Raises:
        Refusal: what the decoder or one of the actions refuses; EINVAL without a SignerInfo or
            with signed attributes on some of them only.
    """
    message = Message(der, profile)
    decode(_MESSAGE, message, der)
    _check_attributes(message)
    return message


def _check_attributes(message: Message) -> None:
    """``pkcs7_check_authattrs()``."""
    if not message.signers:
        raise Refusal("EINVAL", "no SignerInfo")
    first = message.signers[0]
    message.has_attributes = first.attributes is not None
    message.attributes_waived = message.profile.mldsa_attributes and (
        not message.has_attributes or first.signature.family.startswith("mldsa")
    )
    for info in message.signers:
        if (info.attributes is not None) != message.has_attributes:
            raise Refusal("EINVAL", "signed attributes on some SignerInfos only")
        if info.attributes is None and info.signature.takes_data:
            info.signature.digest = "none"
