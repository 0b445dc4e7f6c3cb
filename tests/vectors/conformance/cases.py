# SPDX-License-Identifier: Apache-2.0
"""The cases by name: what a hostile, broken or merely odd module file can contain.

A name says what is odd; two kernels get the same names. ``build`` makes the files for one kernel,
whose built-in certificate is the laboratory's CA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.vectors.conformance import pki
from tests.vectors.conformance.messages import (
    NULL,
    PAYLOAD,
    attribute,
    attributes,
    by_skid,
    signed_data,
    signer_info,
    trailer,
)
from tests.vectors.conformance.mutations import CHANGES, changed, elements, mutations
from tests.vectors.conformance.pki import DIGEST_OIDS, HASHES, Party, Wish, issue, make_key, resigned, sign
from tests.vectors.generate import MARKER, OIDS, integer, oid, sequence, tlv
from vmtool.siglab import Case

Messages = Iterator[tuple[str, bytes]]

_DIRECT_KEYS = ("rsa-1024", "rsa-3072", "rsa-4096", "rsa-8192", "p256", "p384", "p521")


@dataclass(frozen=True)
class Lab:
    """Who signs.

    Attributes:
        ca: built into the kernel.
    """

    ca: Party

    @cached_property
    def direct(self) -> Party:
        """In the keyring, RSA 2048."""
        return issue("direct", make_key("rsa-2048", "direct"), self.ca)

    @cached_property
    def keyring(self) -> dict[str, Party]:
        """Certificates that go into the secondary keyring, by name."""
        extra = {
            "direct": self.direct,
            "without SKID": issue("noskid", make_key("rsa-2048", "noskid"), self.ca, Wish(skid=False)),
            "SHA-512 certificate": issue(
                "s512", make_key("rsa-2048", "s512"), self.ca, Wish(digest="sha512")
            ),
        }
        return extra | {kind: issue(f"direct {kind}", make_key(kind), self.ca) for kind in _DIRECT_KEYS}

    @cached_property
    def leaf(self) -> Party:
        """Certified by the CA, not in the keyring."""
        return issue("leaf", make_key("rsa-2048", "leaf"), self.ca)

    @cached_property
    def middle(self) -> Party:
        """A CA below the CA."""
        return issue("middle", make_key("rsa-2048", "middle"), self.ca, Wish(ca=True))

    @cached_property
    def lower(self) -> Party:
        """Certified by the middle CA."""
        return issue("lower", make_key("rsa-2048", "lower"), self.middle)

    @cached_property
    def stranger(self) -> Party:
        """Nobody's."""
        return issue("stranger", make_key("rsa-2048", "stranger"))

    @cached_property
    def ec_leaf(self) -> Party:
        """Certified by the CA, P-256."""
        return issue("ec leaf", make_key("p256", "leaf"), self.ca)


def _signers(lab: Lab) -> Messages:
    yield "signer in the keyring", signed_data(signer_info(lab.direct))
    yield "signer in the keyring by SKID", signed_data(by_skid(lab.direct), version=3)
    yield "signed by the CA itself", signed_data(signer_info(lab.ca))
    for name, party in lab.keyring.items():
        yield f"signer {name}", signed_data(signer_info(party))
    yield "signer unknown", signed_data(signer_info(lab.stranger))
    yield "signer unknown by SKID", signed_data(by_skid(lab.stranger), version=3)
    for kind in _DIRECT_KEYS:
        key = make_key(kind)
        leaf = issue(f"leaf {kind}", key, lab.ca)
        yield f"embedded {kind}", signed_data(signer_info(leaf), inside=[leaf])
        alone = issue(f"self-signed {kind}", key)
        yield f"embedded self-signed {kind}", signed_data(signer_info(alone), inside=[alone])


def _chains(lab: Lab) -> Messages:
    leaf, middle, lower, direct = lab.leaf, lab.middle, lab.lower, lab.direct
    info = signer_info(lower)
    yield "embedded leaf", signed_data(signer_info(leaf), inside=[leaf])
    yield "leaf not embedded", signed_data(signer_info(leaf))
    yield "two hops", signed_data(info, inside=[lower, middle])
    yield "two hops, certificates not sorted", signed_data(info, inside=[lower, middle], backwards=True)
    yield "two hops, middle missing", signed_data(info, inside=[lower])
    yield "two hops and the root", signed_data(info, inside=[lower, middle, lab.ca])
    yield "the same certificate twice", signed_data(signer_info(leaf), inside=[leaf, leaf])
    yield "anchor embedded", signed_data(signer_info(direct), inside=[direct])
    yield "unrelated certificate", signed_data(signer_info(direct), inside=[lab.stranger])
    yield "self-signed stranger embedded", signed_data(signer_info(lab.stranger), inside=[lab.stranger])
    for akid in ("serial", "both", "contradicting", "none"):
        one = issue(f"leaf akid {akid}", make_key("rsa-2048", "leaf"), lab.ca, Wish(akid=akid))
        yield f"one hop, AKID {akid}", signed_data(signer_info(one), inside=[one])
        one = issue(f"lower akid {akid}", make_key("rsa-2048", "lower"), middle, Wish(akid=akid))
        yield f"two hops, AKID {akid}", signed_data(signer_info(one), inside=[one, middle])
    wishes = {
        "expired": Wish(days=(-50, -40)),
        "not yet valid": Wish(days=(40, 50)),
        "CA false": Wish(ca=False),
        "may not sign certificates": Wish(ca=True, cert_sign=False),
        "may sign certificates": Wish(ca=True, cert_sign=True),
    }
    for what, wish in wishes.items():
        above = issue(f"middle {what}", make_key("rsa-2048", "middle"), lab.ca, wish)
        below = issue(f"lower {what}", make_key("rsa-2048", "lower"), above)
        yield f"issuer {what}", signed_data(signer_info(below), inside=[below, above])
        one = issue(f"leaf {what}", make_key("rsa-2048", "leaf"), lab.ca, wish)
        yield f"signer {what}", signed_data(signer_info(one), inside=[one])
    below = issue("below direct", make_key("rsa-2048", "leaf"), direct)
    yield "issued by a trusted leaf", signed_data(signer_info(below), inside=[below])
    yield "issued by a trusted leaf, embedded", signed_data(signer_info(below), inside=[below, direct])
    double = issue(
        "direct", make_key("rsa-2048", "stranger"), lab.ca, Wish(serial=direct.certificate.serial_number)
    )
    yield "another key under the anchor's ids", signed_data(signer_info(double), inside=[double])
    yield "another key under the anchor's ids beside it", signed_data(signer_info(direct), inside=[double])
    for digest in ("md5", "sha1", "sha224", "sha384", "sha512", "sha3-256"):
        try:
            one = issue(f"leaf {digest}", make_key("rsa-2048", "leaf"), lab.ca, Wish(digest=digest))
        except (ValueError, UnsupportedAlgorithm):  # the library refuses to sign with it
            continue
        yield f"certificate signed over {digest}", signed_data(signer_info(one), inside=[one])
    yield from _spoilt(lab)


def _spoilt(lab: Lab) -> Messages:
    info = signer_info(lab.direct)
    for whose, party in (("leaf", lab.leaf), ("stranger", lab.stranger)):
        der = bytearray(party.der)
        der[-1] ^= 1
        signer = lab.leaf if whose == "leaf" else lab.direct
        yield (
            f"{whose} certificate with a bad signature",
            signed_data(signer_info(signer), inside=[bytes(der)]),
        )
    tbs = lab.stranger.der
    for what, old, new in (
        ("date", b"\x17\x0d", b"\x17\x0c"),
        ("month", b"\x17\x0d", b"\x17\x0d99"),
        ("algorithm", bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d01017f")),
        ("digest", bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d01010c")),
    ):
        at = tbs.find(old)
        spoilt = tbs[:at] + new + tbs[at + len(new) :]
        yield f"unrelated certificate with a spoilt {what}", signed_data(info, inside=[spoilt])
    yield "something else among the certificates", signed_data(info, inside=[sequence()])


def _digests(lab: Lab) -> Messages:
    for name, dotted in DIGEST_OIDS.items():
        can = name in HASHES
        use = name if can else "sha256"
        announced = {"digests": (name,)}
        one = signer_info(lab.direct, use, digest_oid=dotted)
        yield f"digest {name}", signed_data(one, **announced)  # type: ignore[arg-type]
        for what, party in (("leaf", lab.leaf), ("ec leaf", lab.ec_leaf)):
            one = signer_info(party, use, digest_oid=dotted)
            yield f"digest {name}, {what}", signed_data(one, inside=[party], **announced)  # type: ignore[arg-type]
        one = signer_info(lab.keyring["p256"], use, digest_oid=dotted)
        yield f"digest {name}, P-256", signed_data(one, **announced)  # type: ignore[arg-type]
    yield "digest not announced", signed_data(signer_info(lab.direct), digests=("sha512",))
    yield "two digests announced", signed_data(signer_info(lab.direct), digests=("sha256", "sha512"))


def _algorithms(lab: Lab) -> Messages:
    named = {
        "sha256WithRSA": "1.2.840.113549.1.1.11",
        "RSASSA-PSS": "1.2.840.113549.1.1.10",
        "Ed25519": "1.3.101.112",
        "ecdsa-with-SHA256": pki.ECDSA_OIDS["sha256"],
        "ML-DSA-44": "2.16.840.1.101.3.4.3.17",
        "SM2 with SM3": "1.2.156.10197.1.501",
        "GOST 2012": "1.2.643.7.1.1.1.1",
    }
    for name, dotted in named.items():
        yield f"RSA value named {name}", signed_data(signer_info(lab.direct, algorithm=dotted))
        one = signer_info(lab.leaf, algorithm=dotted)
        yield f"RSA value named {name}, leaf", signed_data(one, inside=[lab.leaf])
    p256 = lab.keyring["p256"]
    yield "ECDSA value named RSA", signed_data(signer_info(p256, algorithm=pki.RSA_OID))
    other = pki.ECDSA_OIDS["sha512"]
    yield "ECDSA naming another digest", signed_data(signer_info(p256, algorithm=other))
    yield "parameters absent", signed_data(signer_info(lab.direct, parameters=b"", digest_parameters=b""))
    junk = {"parameters": tlv(0x04, b"x"), "digest_parameters": sequence()}
    yield "parameters of another kind", signed_data(signer_info(lab.direct, **junk))  # type: ignore[arg-type]


def _several(lab: Lab) -> Messages:
    good, unknown = signer_info(lab.direct), signer_info(lab.stranger)
    junk = signer_info(lab.stranger, value=b"junk")
    bad = signer_info(lab.direct, value=sign(lab.direct.key, b"x", "sha256"))
    strange = signer_info(lab.direct, digest_oid=DIGEST_OIDS["blake2b"])
    lacking = signer_info(lab.direct, digest_oid=DIGEST_OIDS["streebog256"])
    leaf = signer_info(lab.leaf)
    for what, infos in {
        "good and unknown": (good, unknown),
        "unknown and good": (unknown, good),
        "good and junk of an unknown": (good, junk),
        "good and bad": (good, bad),
        "bad and good": (bad, good),
        "two good": (good, signer_info(lab.ca)),
        "the same twice": (good, good),
        "two unknown": (unknown, junk),
        "good and an unknown digest": (good, strange),
        "unknown digest and good": (strange, good),
        "good and Streebog": (good, lacking),
        "Streebog and good": (lacking, good),
        "Streebog": (lacking,),
    }.items():
        yield f"signers: {what}", signed_data(*infos)
        yield f"signers: {what}, not sorted", signed_data(*infos, backwards=True)
    yield "signers: leaf and good", signed_data(leaf, good, inside=[lab.leaf])
    bad = signer_info(lab.leaf, value=sign(lab.leaf.key, b"x", "sha256"))
    yield "signers: bad leaf and good", signed_data(bad, good, inside=[lab.leaf])
    yield "signers: leaf twice", signed_data(leaf, leaf, inside=[lab.leaf])
    shared = (signer_info(lab.lower), signer_info(lab.middle))
    yield "signers: a chain shared", signed_data(*shared, inside=[lab.lower, lab.middle])
    yield "signers: none", signed_data()
    yield (
        "signers: SKID, then one without its name",
        signed_data(by_skid(lab.direct), signer_info(lab.stranger, version=3), version=3, keep_order=True),
    )
    yield (
        "signers: issuer, then one without its name",
        signed_data(good, signer_info(lab.stranger, sid=tlv(0x80, b"zz")), keep_order=True),
    )


def _attributes(lab: Lab) -> Messages:
    kinds = {
        "type and digest": ("type", "digest"),
        "with time": ("type", "digest", "time"),
        "with an impossible time": ("type", "digest", "no-time"),
        "without type": ("digest",),
        "without digest": ("type",),
        "another type": ("other-type", "digest"),
        "digest of another tag": ("type", "digest-tag"),
        "two values": ("type", "two-digests"),
        "digest twice": ("type", "digest", "digest"),
        "S/MIME": ("type", "digest", "smime"),
        "one more": ("type", "digest", "unknown"),
    }
    for what, parts in kinds.items():
        signed = attributes(*parts)
        yield f"attributes: {what}", signed_data(signer_info(lab.direct, attributes=signed))
        one = signer_info(lab.leaf, attributes=signed)
        yield f"attributes: {what}, leaf", signed_data(one, inside=[lab.leaf])
    good, signed = signer_info(lab.direct), attributes("type", "digest")
    with_them = signer_info(lab.direct, attributes=signed)
    yield "attributes: on the second only", signed_data(good, with_them, keep_order=True)
    yield "attributes: on the first only", signed_data(with_them, good, keep_order=True)
    wrong = attributes("type", "digest", payload=b"x")
    yield "attributes: another digest", signed_data(signer_info(lab.direct, attributes=wrong))
    unsigned = tlv(0xA1, attribute("1.2.3", NULL))
    yield "unsigned attributes", signed_data(signer_info(lab.direct, unsigned=unsigned))
    broken = tlv(0xA1, sequence(oid("1.2.3")))
    yield "unsigned attributes without value", signed_data(signer_info(lab.direct, unsigned=broken))


def _versions(lab: Lab) -> Messages:
    good = signer_info(lab.direct)
    for version in (0, 1, 2, 3, 4, 300):
        yield f"SignedData version {version}", signed_data(good, version=version)
        one = signer_info(lab.direct, version=version)
        yield f"SignerInfo version {version} in 1", signed_data(one)
        yield f"SignerInfo version {version} in 3", signed_data(one, version=3)
        yield (
            f"SKID in SignerInfo version {version}",
            signed_data(by_skid(lab.direct, version=version), version=3),
        )
    yield "SKID empty", signed_data(by_skid(lab.direct, sid=tlv(0x80)), version=3)
    yield "SKID unknown", signed_data(by_skid(lab.direct, sid=tlv(0x80, b"zz")), version=3)
    certificate = lab.direct.certificate
    serial = integer(certificate.serial_number)[2:]
    name = certificate.issuer.public_bytes()[2:]
    joined = tlv(0x80, serial + name)
    yield "SKID that is serial and issuer", signed_data(by_skid(lab.direct, sid=joined), version=3)
    yield "SKID in version 1", signed_data(signer_info(lab.direct, sid=tlv(0x80, lab.direct.skid)))


def _contents(lab: Lab) -> Messages:
    good = signer_info(lab.direct)
    with_attributes = signer_info(lab.direct, attributes=attributes("type", "digest"))
    yield "type Authenticode", signed_data(good, content_type=OIDS["indirectData"])
    yield "type Authenticode, attributes", signed_data(with_attributes, content_type=OIDS["indirectData"])
    yield "type of a time stamp", signed_data(good, content_type=OIDS["tstInfo"])
    yield "outer type data", signed_data(good, outer=OIDS["data"])
    yield "outer type enveloped", signed_data(good, outer=OIDS["envelopedData"])
    yield "outer type without SignedData", sequence(oid(OIDS["signedData"]))
    yield "content embedded", signed_data(good, content=tlv(0xA0, tlv(0x04, PAYLOAD)))
    yield "content empty", signed_data(good, content=tlv(0xA0, tlv(0x04)))
    yield "content NULL", signed_data(good, content=tlv(0xA0, NULL))
    yield "CRLs empty", signed_data(good, crls=tlv(0xA1))
    yield "CRL empty", signed_data(good, crls=tlv(0xA1, sequence()))
    yield "CRL that is a certificate", signed_data(good, crls=tlv(0xA1, sequence(lab.stranger.der)))


def _rsa_values(lab: Lab) -> Messages:
    for what, party, inside in (("direct", lab.direct, []), ("leaf", lab.leaf, [lab.leaf])):
        key = party.key
        assert isinstance(key, rsa.RSAPrivateKey)
        good = sign(key, PAYLOAD, "sha256")
        modulus = key.public_key().public_numbers().n
        values = {
            "empty": b"",
            "a byte short": good[1:],
            "a zero in front": b"\x00" + good,
            "a zero behind": good + b"\x00",
            "zero": bytes(256),
            "one": bytes(255) + b"\x01",
            "all ones": b"\xff" * 256,
            "the modulus": modulus.to_bytes(256, "big"),
            "one below the modulus": (modulus - 1).to_bytes(256, "big"),
            "first bit": bytes((good[0] ^ 1,)) + good[1:],
            "last bit": good[:-1] + bytes((good[-1] ^ 1,)),
            "of other data": sign(key, b"y", "sha256"),
            "over SHA-512": sign(key, PAYLOAD, "sha512"),
        }
        for name, value in (values | _paddings(key)).items():
            yield f"RSA value {what}: {name}", signed_data(signer_info(party, value=value), inside=inside)


def _paddings(key: rsa.RSAPrivateKey) -> dict[str, bytes]:
    prefix = bytes.fromhex("3031300d060960864801650304020105000420")
    bare = bytes.fromhex("302f300b0609608648016503040201") + bytes.fromhex("0420")
    digest = hashlib.sha256(PAYLOAD).digest()
    size = 256

    def block(middle: bytes, *, kind: int = 1, ones: int | None = None) -> bytes:
        count = size - 3 - len(middle) if ones is None else ones
        return (bytes((0, kind)) + b"\xff" * count + b"\x00" + middle).ljust(size, b"z")

    blocks = {
        "padding right": block(prefix + digest),
        "padding of block type 2": block(prefix + digest, kind=2),
        "padding of seven bytes": block(prefix + digest, ones=7),
        "padding of eight bytes": block(prefix + digest, ones=8),
        "padding without end": block(prefix + digest).replace(b"\xff\x00" + prefix, b"\xff\xff" + prefix),
        "another prefix": block(prefix[:-1] + b"\x21" + digest),
        "prefix without NULL": block(bare + digest),
        "digest with another end": block(prefix + digest[:-1] + b"\x00"),
        "digest too short": block(prefix + digest[:-1]),
    }
    numbers = key.private_numbers()
    modulus = numbers.public_numbers.n
    return {
        name: pow(int.from_bytes(one, "big"), numbers.d, modulus).to_bytes(size, "big")
        for name, one in blocks.items()
    }


_LARGEST = 20_000
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _numbers(party: Party) -> tuple[int, int]:
    """r and s that need 32 bytes each and no leading zero."""
    while True:
        numbers = decode_dss_signature(sign(party.key, PAYLOAD, "sha256"))
        if all(number.bit_length() in range(249, 256) for number in numbers):
            return numbers


def _ecdsa_values(lab: Lab) -> Messages:
    for what, party, inside in (("direct", lab.keyring["p256"], []), ("leaf", lab.ec_leaf, [lab.ec_leaf])):
        r, s = _numbers(party)

        def number(value: int, size: int) -> bytes:
            return tlv(0x02, value.to_bytes(size, "big"))

        values = {
            "right": sequence(integer(r), integer(s)),
            "padded to 33 bytes": sequence(number(r, 33), number(s, 33)),
            "padded to 34 bytes": sequence(number(r, 34), number(s, 34)),
            "unsigned 32 bytes": sequence(number(r, 32), number(s, 32)),
            "r of zero": sequence(integer(0), integer(s)),
            "s of zero": sequence(integer(r), integer(0)),
            "r of the order": sequence(integer(_P256_ORDER), integer(s)),
            "r empty": sequence(tlv(0x02), integer(s)),
            "a byte behind": sequence(integer(r), integer(s)) + b"\x00",
            "a third number": sequence(integer(r), integer(s), NULL),
            "s negated": sequence(integer(r), integer(_P256_ORDER - s)),
            "indefinite": b"\x30\x80" + integer(r) + integer(s) + b"\x00\x00",
            "junk": b"junk",
            "empty": b"",
            "of other data": sign(party.key, b"y", "sha256"),
        }
        for name, value in values.items():
            yield f"ECDSA value {what}: {name}", signed_data(signer_info(party, value=value), inside=inside)


def _trailers(lab: Lab) -> Iterator[tuple[str, bytes]]:
    good = signed_data(signer_info(lab.direct))
    whole = len(PAYLOAD) + len(good)
    yield "right", trailer(good)
    for name, fields in {
        "algo": {"algo": 1},
        "hash": {"hash_": 1},
        "id_type 0": {"id_type": 0},
        "id_type 1": {"id_type": 1},
        "id_type 3": {"id_type": 3},
        "signer_len": {"signer_len": 1},
        "key_id_len": {"key_id_len": 1},
        "first pad byte": {"pad": b"\x01\x00\x00"},
        "last pad byte": {"pad": b"\x00\x00\x01"},
        "id_type 0 and algo": {"id_type": 0, "algo": 1},
        "id_type 0 and a length too long": {"id_type": 0, "length": 0xFFFFFFFF},
        "length 0": {"length": 0},
        "length 1": {"length": 1},
        "length one too small": {"length": len(good) - 1},
        "length one too large": {"length": len(good) + 1},
        "length of everything": {"length": whole},
        "length of all but one": {"length": whole - 1},
        "length too long": {"length": 0xFFFFFFFF},
        "no payload": {"payload": b""},
        "another payload": {"payload": PAYLOAD + b"x"},
        "no marker": {"marker": b""},
        "marker without its line end": {"marker": MARKER[:-1]},
        "marker twice": {"marker": MARKER * 2},
    }.items():
        yield name, trailer(good, **fields)  # type: ignore[arg-type]
    yield "a byte behind the marker", trailer(good) + b"\n"
    yield "nothing but the marker", MARKER
    for size in (11, 12, 13, 14):
        yield f"{size} zeros and the marker", bytes(size) + MARKER
    yield "message of 65,535 bytes", trailer(good + bytes(65535 - len(good)))
    yield "message of 65,536 bytes", trailer(good + bytes(65536 - len(good)))
    yield "empty file", b""
    yield "63 bytes", b"x" * 63
    yield "plain text", b"y" * 200


def named(lab: Lab) -> dict[str, Case]:
    """The cases that somebody thought of."""
    found: dict[str, Case] = {}
    groups = (
        _signers,
        _chains,
        _digests,
        _algorithms,
        _several,
        _attributes,
        _versions,
        _contents,
        _rsa_values,
        _ecdsa_values,
        _authorities,
    )
    for group in groups:
        for name, message in group(lab):
            assert name not in found, name
            found[name] = Case(trailer(message))
    for name, data in _trailers(lab):
        found[f"trailer: {name}"] = Case(data)
        found[f"trailer: {name}, init_module"] = Case(data, api="i")
    good = trailer(signed_data(signer_info(lab.direct)))
    found["MODULE_INIT_IGNORE_MODVERSIONS"] = Case(good, flags=1)
    found["MODULE_INIT_IGNORE_VERMAGIC"] = Case(good, flags=2)
    found["MODULE_INIT_IGNORE both"] = Case(good, flags=3)
    return found


def _general_names(lab: Lab) -> dict[str, bytes]:
    directory = tlv(0xA4, lab.ca.certificate.issuer.public_bytes())
    text = tlv(0x16, b"x")
    return {
        "directoryName": directory,
        "rfc822Name": tlv(0x81, b"x"),
        "dNSName": tlv(0x82, b"x"),
        "URI": tlv(0x86, b"x"),
        "URI and directoryName": tlv(0x86, b"x") + directory,
        "directoryName and URI": directory + tlv(0x86, b"x"),
        "iPAddress": tlv(0x87, b"x"),
        "registeredID": tlv(0x88, b"x"),
        "otherName": tlv(0xA0, oid("1.2.3"), tlv(0xA0, NULL)),
        "x400Address": tlv(0xA3, NULL),
        "ediPartyName": tlv(0xA5, tlv(0xA1, NULL)),
        "ediPartyName with assigner": tlv(0xA5, tlv(0xA0, NULL), tlv(0xA1, NULL)),
        "rfc822Name tagged around": tlv(0xA1, text),
        "dNSName tagged around": tlv(0xA2, text),
        "URI tagged around": tlv(0xA6, text),
        "iPAddress tagged around": tlv(0xA7, tlv(0x04, b"x")),
        "registeredID tagged around": tlv(0xA8, oid("1.2.3")),
        "no name": b"",
        "an unknown name": tlv(0x89, b"x"),
    }


def _authorities(lab: Lab) -> Messages:
    serial = tlv(0x82, integer(lab.ca.certificate.serial_number)[2:])
    keyid = tlv(0x80, lab.ca.skid)
    direct = signer_info(lab.direct)
    for name, value in _general_names(lab).items():
        for what, before, after in (("alone", b"", b""), ("all three", keyid, serial)):
            wish = Wish(raw_akid=sequence(before, tlv(0xA1, value), after))
            leaf = issue(f"leaf {name} {what}", make_key("rsa-2048", "leaf"), lab.ca, wish)
            yield f"AKID with {name}, {what}", signed_data(signer_info(leaf), inside=[leaf])
            yield f"AKID with {name}, {what}, unrelated", signed_data(direct, inside=[leaf])


_DATES = {
    "UTC 1949": (0x17, b"491231235959Z"),
    "UTC 1950": (0x17, b"500101000000Z"),
    "UTC 1969": (0x17, b"691231235959Z"),
    "UTC 1970": (0x17, b"700101000000Z"),
    "without seconds": (0x17, b"2401010000Z"),
    "with an offset": (0x17, b"240101000000+0000"),
    "hour 24": (0x17, b"240101240000Z"),
    "hour 25": (0x17, b"240101250000Z"),
    "second 60": (0x17, b"240101235960Z"),
    "second 61": (0x17, b"240101235961Z"),
    "29 February": (0x17, b"240229000000Z"),
    "29 February of no leap year": (0x17, b"230229000000Z"),
    "month 13": (0x17, b"241301000000Z"),
    "day 0": (0x17, b"240100000000Z"),
    "letters": (0x17, b"24O1O1OOOOOOZ"),
    "generalized 2024": (0x18, b"20240101000000Z"),
    "generalized 2049": (0x18, b"20491231235959Z"),
    "generalized 2050": (0x18, b"20500101000000Z"),
    "generalized 1900": (0x18, b"19000101000000Z"),
    "generalized 29 February 2100": (0x18, b"21000229000000Z"),
    "generalized with fraction": (0x18, b"20500101000000.0Z"),
}


def _changed_certificates(lab: Lab) -> Messages:
    """Certificates with any element of the signed part changed, and signed as they then are."""
    wish = Wish(akid="both", ca=False, cert_sign=False)
    whole = issue("changed", make_key("rsa-2048", "leaf"), lab.ca, wish)
    tbs = whole.certificate.tbs_certificate_bytes
    info, direct = signer_info(whole), signer_info(lab.direct)
    for number, at in enumerate(elements(tbs)):
        for what, change in CHANGES.items():
            odd = resigned(whole, lab.ca, changed(tbs, at, change))
            name = f"certificate, element {number}: {what}"
            if len(odd) < _LARGEST:
                yield f"{name}, signer", signed_data(info, inside=[odd])
                yield f"{name}, unrelated", signed_data(direct, inside=[odd])
    places = [at for at in elements(tbs) if tbs[at] == 0x17]
    for name, (tag, text) in _DATES.items():
        date = tlv(tag, text)
        for which, at in zip(("from", "until"), places, strict=True):

            def replace(_tag: int, _body: bytes, date: bytes = date) -> bytes:
                return date

            odd = resigned(whole, lab.ca, changed(tbs, at, replace))
            yield f"certificate valid {which} {name}", signed_data(info, inside=[odd])


def damaged(lab: Lab) -> dict[str, Case]:
    """Good messages with every element damaged in every way."""
    signed = attributes("type", "digest", "time")
    akid = issue("lower akid both", make_key("rsa-2048", "lower"), lab.middle, Wish(akid="both"))
    bases = {
        "direct": signed_data(signer_info(lab.direct)),
        "SKID": signed_data(by_skid(lab.direct), version=3),
        "two hops": signed_data(signer_info(lab.lower), inside=[lab.lower, lab.middle]),
        "AKID both": signed_data(signer_info(akid), inside=[akid, lab.middle]),
        "attributes": signed_data(signer_info(lab.leaf, attributes=signed), inside=[lab.leaf]),
        "two signers": signed_data(signer_info(lab.leaf), signer_info(lab.direct), inside=[lab.leaf]),
        "unsigned": signed_data(signer_info(lab.direct, unsigned=tlv(0xA1, attribute("1.2.3", NULL)))),
        "ECDSA": signed_data(signer_info(lab.ec_leaf), inside=[lab.ec_leaf]),
    }
    found = {
        f"damaged {name}": Case(trailer(message))
        for base, whole in bases.items()
        for name, message in mutations(base, whole)
    }
    return found | {name: Case(trailer(message)) for name, message in _changed_certificates(lab)}
