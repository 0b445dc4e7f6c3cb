# SPDX-License-Identifier: Apache-2.0
"""Messages by hand, every field open."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric import rsa
from tests.vectors.conformance.pki import (
    DIGEST_OIDS,
    ECDSA_OIDS,
    MLDSA_KINDS,
    RSA_OID,
    Party,
    PrivateKey,
    sign,
)
from tests.vectors.generate import MARKER, OIDS, integer, oid, sequence, tlv

PAYLOAD = b"payload of the comparison, no ELF file " * 4
NULL = b"\x05\x00"
MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
SIGNING_TIME = "1.2.840.113549.1.9.5"
SMIME_CAPABILITIES = "1.2.840.113549.1.9.15"


def signature_oid(key: PrivateKey, digest: str) -> str:
    """As a tool would write it."""
    if isinstance(key, rsa.RSAPrivateKey):
        return RSA_OID
    for kind, dotted in MLDSA_KINDS.values():
        if isinstance(key, kind):
            return dotted
    return ECDSA_OIDS.get(digest, ECDSA_OIDS["sha256"])


def by_issuer(party: Party) -> bytes:
    """IssuerAndSerialNumber."""
    return sequence(party.certificate.issuer.public_bytes(), integer(party.certificate.serial_number))


def signer_info(
    party: Party,
    digest: str = "sha256",
    *,
    payload: bytes = PAYLOAD,
    version: int = 1,
    sid: bytes | None = None,
    digest_oid: str | None = None,
    digest_parameters: bytes = NULL,
    attributes: bytes = b"",
    algorithm: str | None = None,
    parameters: bytes = NULL,
    value: bytes | None = None,
    unsigned: bytes = b"",
) -> bytes:
    """One SignerInfo; correct but for what is given."""
    if value is None:
        value = sign(party.key, b"\x31" + attributes[1:] if attributes else payload, digest)
    return sequence(
        integer(version),
        by_issuer(party) if sid is None else sid,
        sequence(oid(digest_oid or DIGEST_OIDS[digest]), digest_parameters),
        attributes,
        sequence(oid(algorithm or signature_oid(party.key, digest)), parameters),
        tlv(0x04, value),
        unsigned,
    )


def by_skid(party: Party, **changes: object) -> bytes:
    """A version 3 SignerInfo."""
    options = {"version": 3, "sid": tlv(0x80, party.skid), **changes}
    return signer_info(party, **options)  # type: ignore[arg-type]


def signed_data(
    *infos: bytes,
    inside: Sequence[Party | bytes] = (),
    digests: Sequence[str] = ("sha256",),
    version: int = 1,
    content_type: str = OIDS["data"],
    content: bytes = b"",
    outer: str = OIDS["signedData"],
    crls: bytes = b"",
    keep_order: bool = False,
    backwards: bool = False,
) -> bytes:
    """ContentInfo holding SignedData; sets are sorted, as DER has them, unless told otherwise."""

    def order(members: Iterable[bytes]) -> list[bytes]:
        return list(members) if keep_order else sorted(members, reverse=backwards)

    certificates = b"".join(order(one if isinstance(one, bytes) else one.der for one in inside))
    return sequence(
        oid(outer),
        tlv(
            0xA0,
            sequence(
                integer(version),
                tlv(0x31, *(sequence(oid(DIGEST_OIDS[name]), NULL) for name in digests)),
                sequence(oid(content_type), content),
                tlv(0xA0, certificates) if certificates else b"",
                crls,
                tlv(0x31, *order(infos)),
            ),
        ),
    )


def attribute(kind: str, *values: bytes) -> bytes:
    """One attribute."""
    return sequence(oid(kind), tlv(0x31, *values))


def attributes(*parts: str, digest: str = "sha256", payload: bytes = PAYLOAD) -> bytes:
    """Signed attributes: ``type``, ``digest``, ``time``, ``smime``, as often as named."""
    known = {
        "type": attribute(OIDS["contentType"], oid(OIDS["data"])),
        "other-type": attribute(OIDS["contentType"], oid(OIDS["signedData"])),
        "digest": attribute(MESSAGE_DIGEST, tlv(0x04, hashlib.new(digest, payload).digest())),
        "digest-tag": attribute(MESSAGE_DIGEST, tlv(0x0C, hashlib.new(digest, payload).digest())),
        "two-digests": attribute(MESSAGE_DIGEST, *[tlv(0x04, hashlib.new(digest, payload).digest())] * 2),
        "time": attribute(SIGNING_TIME, tlv(0x17, b"240101000000Z")),
        "no-time": attribute(SIGNING_TIME, tlv(0x17, b"241301000000Z")),
        "smime": attribute(SMIME_CAPABILITIES, sequence()),
        "unknown": attribute("1.2.3.4", NULL),
    }
    return tlv(0xA0, *(known[part] for part in parts))


def trailer(  # one for each field
    message: bytes,
    *,
    payload: bytes = PAYLOAD,
    length: int | None = None,
    algo: int = 0,
    hash_: int = 0,
    id_type: int = 2,
    signer_len: int = 0,
    key_id_len: int = 0,
    pad: bytes = bytes(3),
    marker: bytes = MARKER,
) -> bytes:
    """payload ‖ message ‖ struct module_signature ‖ marker."""
    fields = (algo, hash_, id_type, signer_len, key_id_len, pad, len(message) if length is None else length)
    return payload + message + struct.pack(">BBBBB3sI", *fields) + marker
