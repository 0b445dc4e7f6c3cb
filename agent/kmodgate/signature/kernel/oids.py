# SPDX-License-Identifier: Apache-2.0
"""Object identifiers of the kernel's registry, as the bytes that stand in DER.

Source: ``include/linux/oid_registry.h``.
"""

from __future__ import annotations


def encode(dotted: str) -> bytes:
    """Contents of an OBJECT IDENTIFIER (X.690 section 8.19)."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    out = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        out += bytes(reversed(groups))
    return bytes(out)


# The longest in any table here has 13; the time to write one out grows with the square of its length.
_MAX_BYTES = 64


def dotted(contents: bytes) -> str:
    """The reverse, for messages; ``#hex`` when the bytes are no object identifier, or far too many."""
    if len(contents) > _MAX_BYTES:
        return f"#{contents[:_MAX_BYTES].hex()}…"
    arcs: list[int] = []
    value = 0
    for byte in contents:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(value)
            value = 0
    if not arcs or contents[-1] & 0x80:
        return "#" + contents.hex()
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - first * 40, *arcs[1:]))


SIGNED_DATA = encode("1.2.840.113549.1.7.2")
DATA = encode("1.2.840.113549.1.7.1")
MS_INDIRECT_DATA = encode("1.3.6.1.4.1.311.2.1.4")

CONTENT_TYPE = encode("1.2.840.113549.1.9.3")
MESSAGE_DIGEST = encode("1.2.840.113549.1.9.4")
SIGNING_TIME = encode("1.2.840.113549.1.9.5")
SMIME_CAPABILITIES = encode("1.2.840.113549.1.9.15")
MS_STATEMENT_TYPE = encode("1.3.6.1.4.1.311.2.1.11")
MS_SP_OPUS_INFO = encode("1.3.6.1.4.1.311.2.1.12")

SUBJECT_KEY_IDENTIFIER = encode("2.5.29.14")
KEY_USAGE = encode("2.5.29.15")
BASIC_CONSTRAINTS = encode("2.5.29.19")
AUTHORITY_KEY_IDENTIFIER = encode("2.5.29.35")

RSA_ENCRYPTION = encode("1.2.840.113549.1.1.1")
EC_PUBLIC_KEY = encode("1.2.840.10045.2.1")
GOST_KEYS = frozenset({encode("1.2.643.7.1.1.1.1"), encode("1.2.643.7.1.1.1.2")})
SM2 = encode("1.2.156.10197.1.301")

DIGESTS = {
    encode(oid): name
    for oid, name in {
        "1.2.840.113549.2.4": "md4",
        "1.2.840.113549.2.5": "md5",
        "1.3.14.3.2.26": "sha1",
        "2.16.840.1.101.3.4.2.1": "sha256",
        "2.16.840.1.101.3.4.2.2": "sha384",
        "2.16.840.1.101.3.4.2.3": "sha512",
        "2.16.840.1.101.3.4.2.4": "sha224",
        "2.16.840.1.101.3.4.2.8": "sha3-256",
        "2.16.840.1.101.3.4.2.9": "sha3-384",
        "2.16.840.1.101.3.4.2.10": "sha3-512",
        "1.2.156.10197.1.401": "sm3",
        "1.2.643.7.1.1.2.2": "streebog256",
        "1.2.643.7.1.1.2.3": "streebog512",
    }.items()
}

CURVES = {
    encode(oid): name
    for oid, name in {
        "1.2.840.10045.3.1.1": "ecdsa-nist-p192",
        "1.2.840.10045.3.1.7": "ecdsa-nist-p256",
        "1.3.132.0.34": "ecdsa-nist-p384",
        "1.3.132.0.35": "ecdsa-nist-p521",
        "1.2.156.10197.1.301": "sm2",
    }.items()
}

MLDSA = {
    encode(oid): name
    for oid, name in {
        "2.16.840.1.101.3.4.3.17": "mldsa44",
        "2.16.840.1.101.3.4.3.18": "mldsa65",
        "2.16.840.1.101.3.4.3.19": "mldsa87",
    }.items()
}

ECDSA_WITH = {
    encode(oid): name
    for oid, name in {
        "1.2.840.10045.4.1": "sha1",
        "1.2.840.10045.4.3.1": "sha224",
        "1.2.840.10045.4.3.2": "sha256",
        "1.2.840.10045.4.3.3": "sha384",
        "1.2.840.10045.4.3.4": "sha512",
        "2.16.840.1.101.3.4.3.10": "sha3-256",
        "2.16.840.1.101.3.4.3.11": "sha3-384",
        "2.16.840.1.101.3.4.3.12": "sha3-512",
    }.items()
}

WITH_RSA = {
    encode(oid): name
    for oid, name in {
        "1.2.840.113549.1.1.4": "md4",
        "1.2.840.113549.1.1.5": "sha1",
        "1.2.840.113549.1.1.11": "sha256",
        "1.2.840.113549.1.1.12": "sha384",
        "1.2.840.113549.1.1.13": "sha512",
        "1.2.840.113549.1.1.14": "sha224",
        "2.16.840.1.101.3.4.3.14": "sha3-256",
        "2.16.840.1.101.3.4.3.15": "sha3-384",
        "2.16.840.1.101.3.4.3.16": "sha3-512",
    }.items()
}

GOST_SIGNATURES = {
    encode("1.2.643.7.1.1.3.2"): "streebog256",
    encode("1.2.643.7.1.1.3.3"): "streebog512",
}
SM2_WITH_SM3 = encode("1.2.156.10197.1.501")
