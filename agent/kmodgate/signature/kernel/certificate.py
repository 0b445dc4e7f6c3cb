# SPDX-License-Identifier: Apache-2.0
"""X.509 certificates as ``x509_cert_parse()`` reads them.

No dates against the clock, no names compared element by element, no key usage: the kernel does
not look at them. A certificate whose own signature uses a digest that the kernel lacks is kept,
one whose algorithm the parser does not know is refused.

Sources: ``crypto/asymmetric_keys/x509.asn1``, ``x509_akid.asn1``, ``x509_cert_parser.c``,
``x509_public_key.c``.
"""

from __future__ import annotations

from datetime import datetime

from kmodgate.signature.profile import KernelProfile

from . import oids
from .answer import Refusal
from .ber import anything, choice, compile_grammar, decode, group, leaf, many
from .keys import PublicKey, Signature, check_signature
from .times import check_time

_SEQUENCE, _SET = 0x30, 0x31
_BIT_STRING, _OCTET_STRING, _BOOLEAN = 0x03, 0x04, 0x01


class Certificate:
    """One parsed certificate.

    Attributes:
        der: what was parsed; bytes after the certificate, if any, included.
        identity: serial number and issuer, contents of the one after those of the other:
            the kernel's first key id.
        skid: contents of the SubjectKeyIdentifier, the second; None without.
        issuer: contents of the issuer's name.
        subject: contents of the subject's name.
        authority: ``identity`` and ``skid`` of the issuer as the AuthorityKeyIdentifier gives
            them; each None when it does not.
        key: the subject's public key.
        signature: the certificate's own.
        tbs: the signed part.
        validity: first and last moment.
        self_signed: it verifies itself.
        unsupported_signature: the kernel lacks what the signature needs.
        parent: the embedded certificate whose key verified this one; itself when self-signed.
    """

    __slots__ = (
        "authority",
        "der",
        "identity",
        "issuer",
        "key",
        "parent",
        "self_signed",
        "signature",
        "skid",
        "subject",
        "tbs",
        "unsupported_signature",
        "validity",
    )

    def __init__(self, der: bytes, fields: _Fields) -> None:
        self.der = der
        self.issuer = fields.issuer
        self.subject = fields.subject
        self.identity = fields.serial + fields.issuer
        self.skid = fields.skid
        self.authority = (fields.authority_id, fields.authority_skid)
        self.key = fields.key
        self.signature = fields.signature
        self.tbs = fields.tbs
        self.validity = (fields.dates[0], fields.dates[1])
        self.self_signed = False
        self.unsupported_signature = False
        self.parent: Certificate | None = None


class _Fields:
    """What the actions note while the machine runs."""

    def __init__(self, data: bytes, profile: KernelProfile) -> None:
        self.data = data
        self.profile = profile
        self.last_oid = b""
        self.serial = self.issuer = self.subject = self.tbs = b""
        self.has_subject = False
        self.parameters = b""
        self.key = PublicKey("", b"")
        self.has_key = False
        self.signature_oid = b""
        self.signature = Signature("", "", "")
        self.skid: bytes | None = None
        self.dates: list[datetime] = []
        self.authority: bytes | None = None
        self.authority_issuer: bytes | None = None
        self.authority_id: bytes | None = None
        self.authority_skid: bytes | None = None


def _note_oid(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    fields.last_oid = fields.data[start : start + length]


def _note_serial(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    fields.serial = fields.data[start : start + length]


def _note_signature_algorithm(fields: _Fields, *_where: int) -> None:
    """``x509_note_sig_algo()``."""
    oid, profile = fields.last_oid, fields.profile
    if (digest := oids.WITH_RSA.get(oid)) in profile.certificate_digests:
        fields.signature = Signature("rsa", "pkcs1", digest or "")
    elif (digest := oids.ECDSA_WITH.get(oid)) and "ecdsa" in profile.signatures_known:
        if digest.startswith("sha3-") and not profile.ecdsa_sha3:
            raise _unknown_algorithm(oid)
        fields.signature = Signature("ecdsa", "x962", digest)
    elif digest := oids.GOST_SIGNATURES.get(oid):
        fields.signature = Signature("ecrdsa", "raw", digest)
    elif oid == oids.SM2_WITH_SM3 and "sm2" in profile.keys_known:
        fields.signature = Signature("sm2", "raw", "sm3")
    elif (name := oids.MLDSA.get(oid)) and "mldsa" in profile.signatures_known:
        fields.signature = Signature(name, "raw", "none", takes_data=True)
    else:
        raise _unknown_algorithm(oid)
    fields.signature_oid = oid


def _unknown_algorithm(oid: bytes) -> Refusal:
    return Refusal(
        "ENOPKG", f"a certificate is signed with {oids.dotted(oid)}, which the kernel does not know"
    )


def _note_signature(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    """``x509_note_signature()``."""
    if fields.last_oid != fields.signature_oid:
        raise Refusal("EINVAL", "a certificate names two different algorithms for its signature")
    if length < 1 or fields.data[start] != 0:
        raise Refusal("EBADMSG", "a certificate's signature is no BIT STRING of whole bytes")
    fields.signature.value = fields.data[start + 1 : start + length]


def _note_tbs(fields: _Fields, header: int, _tag: int, start: int, length: int) -> None:
    fields.tbs = fields.data[start - header : start + length]


def _note_issuer(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    fields.issuer = fields.data[start : start + length]


def _note_subject(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    fields.subject = fields.data[start : start + length]
    fields.has_subject = True


def _note_parameters(fields: _Fields, header: int, _tag: int, start: int, length: int) -> None:
    """Of the three algorithm identifiers only the second one's parameters count."""
    if fields.has_subject and not fields.has_key:
        fields.parameters = fields.data[start - header : start + length]


def _key_algorithm(fields: _Fields) -> str:
    """``x509_extract_key_data()``."""
    oid, known = fields.last_oid, fields.profile.keys_known
    if oid == oids.RSA_ENCRYPTION:
        return "rsa"
    if oid in oids.GOST_KEYS:
        return "ecrdsa"
    if oid == oids.SM2 and "sm2" in known and "ecdsa-nist-p256" in known:
        return "sm2"
    if oid == oids.EC_PUBLIC_KEY:
        if "ecdsa-nist-p256" not in known:
            return "sm2"
        parameters = fields.parameters
        if len(parameters) < 3 or parameters[0] != 0x06 or parameters[1] != len(parameters) - 2:
            raise Refusal("EBADMSG", "a certificate's elliptic-curve key names no curve")
        curve = oids.CURVES.get(parameters[2:], "")
        if curve in known:
            return curve
        raise Refusal("ENOPKG", "a certificate's key is on a curve that the kernel does not know")
    if (name := oids.MLDSA.get(oid)) in known:
        return name or ""
    raise Refusal("ENOPKG", f"a certificate's key is {oids.dotted(oid)}, which the kernel does not know")


def _note_key(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    algorithm = _key_algorithm(fields)
    if length < 1 or fields.data[start] != 0:
        raise Refusal("EBADMSG", "a certificate's key is no BIT STRING of whole bytes")
    fields.key = PublicKey(algorithm, fields.data[start + 1 : start + length])
    fields.has_key = True


def _note_time(fields: _Fields, _header: int, tag: int, start: int, length: int) -> None:
    fields.dates.append(check_time(tag, fields.data[start : start + length]))


def _extension(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    """``x509_process_extension()``; lengths are compared as the single byte that they are there."""
    value = fields.data[start : start + length]
    if fields.last_oid == oids.SUBJECT_KEY_IDENTIFIER:
        if fields.skid is not None or length < 3 or value[0] != _OCTET_STRING or value[1] != length - 2:
            raise Refusal("EBADMSG", "a certificate's subject key identifier does not decode")
        fields.skid = value[2:]
    elif fields.last_oid == oids.AUTHORITY_KEY_IDENTIFIER:
        fields.authority = value
    elif fields.profile.checks_usage and fields.last_oid == oids.KEY_USAGE:
        if length < 4 or value[0] != _BIT_STRING or value[2] >= 8:
            raise Refusal("EBADMSG", "a certificate's key usage does not decode")
    elif fields.profile.checks_usage and fields.last_oid == oids.BASIC_CONSTRAINTS:
        _check_constraints(value, fields.profile)


def _check_constraints(value: bytes, profile: KernelProfile) -> None:
    size = len(value)
    good = size >= 2 and value[0] == _SEQUENCE and value[1] == size - 2
    if good and value[1] == 0 and profile.empty_constraints:
        return
    if not good or size < 5 or value[2:5] != bytes((_BOOLEAN, 1, 0xFF)):
        raise Refusal("EBADMSG", "a certificate's basic constraints do not decode")


def _note_authority_skid(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    fields.authority_skid = _authority(fields)[start : start + length]


def _note_authority_name(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    fields.authority_issuer = _authority(fields)[start : start + length]


def _note_authority_serial(fields: _Fields, _header: int, _tag: int, start: int, length: int) -> None:
    if fields.authority_issuer is not None and fields.authority_id is None:
        fields.authority_id = _authority(fields)[start : start + length] + fields.authority_issuer


def _authority(fields: _Fields) -> bytes:
    return fields.authority or b""


_ALGORITHM = (leaf(0x06, _note_oid), anything(_note_parameters, optional=True))
_NAME = many(_SET, group(_SEQUENCE, leaf(0x06, _note_oid), anything()))
_TIME = choice(leaf(0x17), leaf(0x18), after=_note_time)

_CERTIFICATE = compile_grammar(
    group(
        _SEQUENCE,
        group(
            _SEQUENCE,
            group(0xA0, leaf(0x02), optional=True),
            leaf(0x02, _note_serial),
            group(_SEQUENCE, *_ALGORITHM, after=_note_signature_algorithm),
            many(_SEQUENCE, _NAME, after=_note_issuer),
            group(_SEQUENCE, _TIME, _TIME),
            many(_SEQUENCE, _NAME, after=_note_subject),
            group(_SEQUENCE, group(_SEQUENCE, *_ALGORITHM), leaf(_BIT_STRING, _note_key)),
            leaf(0x81, optional=True),
            leaf(0x82, optional=True),
            group(
                0xA3,
                many(
                    _SEQUENCE,
                    group(
                        _SEQUENCE,
                        leaf(0x06, _note_oid),
                        leaf(_BOOLEAN, optional=True),
                        leaf(_OCTET_STRING, _extension),
                    ),
                ),
                optional=True,
            ),
            after=_note_tbs,
        ),
        group(_SEQUENCE, *_ALGORITHM),
        leaf(_BIT_STRING, _note_signature),
    )
)

_PLAIN_NAME = many(
    _SEQUENCE, many(_SET, group(_SEQUENCE, leaf(0x06), anything())), after=_note_authority_name
)
_GENERAL_NAME = choice(
    group(0xA0, leaf(0x06), group(0xA0, anything())),
    leaf(0x81),
    leaf(0x82),
    group(0xA3, anything()),
    group(0xA4, _PLAIN_NAME),
    group(0xA5, group(0xA0, anything(), optional=True), group(0xA1, anything())),
    leaf(0x86),
    leaf(0x87),
    leaf(0x88),
)
# Once each alternative was tagged explicitly around the type it holds.
_GENERAL_NAME_OLD = choice(
    group(0xA0, anything()),
    group(0xA1, leaf(0x16)),
    group(0xA2, leaf(0x16)),
    group(0xA3, anything()),
    group(0xA4, _PLAIN_NAME),
    group(0xA5, anything()),
    group(0xA6, leaf(0x16)),
    group(0xA7, leaf(_OCTET_STRING)),
    group(0xA8, leaf(0x06)),
)
_AUTHORITY, _AUTHORITY_OLD = (
    compile_grammar(
        group(
            _SEQUENCE,
            leaf(0x80, _note_authority_skid, optional=True),
            many(0xA1, general_name, optional=True),
            leaf(0x82, _note_authority_serial, optional=True),
        )
    )
    for general_name in (_GENERAL_NAME, _GENERAL_NAME_OLD)
)


def parse_certificate(der: bytes, profile: KernelProfile) -> Certificate:
    """``x509_cert_parse()``.

    Raises:
        Refusal: EBADMSG, EINVAL, ENOPKG for what does not parse; EKEYREJECTED (or what the key
            gives) for a broken self-signature; ENOENT when the self-signature's key algorithm
            was not built.
    """
    fields = _Fields(der, profile)
    decode(_CERTIFICATE, fields, der)
    if fields.authority is not None:
        program = _AUTHORITY_OLD if profile.explicit_names else _AUTHORITY
        decode(program, fields, fields.authority)
    certificate = Certificate(der, fields)
    signature = certificate.signature
    if not signature.takes_data and signature.digest not in profile.digests:
        certificate.unsupported_signature = True
    else:
        signature.message = certificate.tbs
    _check_self_signed(certificate, profile)
    return certificate


def _check_self_signed(certificate: Certificate, profile: KernelProfile) -> None:
    """``x509_check_for_self_signed()``."""
    if certificate.subject != certificate.issuer:
        return
    identity, skid = certificate.authority
    if identity is not None or skid is not None:
        same_skid = skid is not None and skid == certificate.skid
        same_identity = identity is not None and identity == certificate.identity
        if not same_skid and not same_identity:
            return
        if same_skid != same_identity and identity is not None and skid is not None:
            raise Refusal("EKEYREJECTED", "a certificate's authority key identifier contradicts itself")
    if profile.matches_key_algorithm and certificate.key.algorithm != certificate.signature.family:
        raise Refusal("EKEYREJECTED", "a self-signed certificate is signed by another kind of key")
    if certificate.unsupported_signature:
        return
    try:
        check_signature(certificate.key, certificate.signature, profile)
    except Refusal as refusal:
        if refusal.errno_name != "ENOPKG":
            raise
        certificate.unsupported_signature = True
        return
    certificate.self_signed = True
