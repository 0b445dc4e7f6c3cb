# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates of the comparison: made at run time, thrown away afterwards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.vectors.generate import PrivateKey as ClassicKey
from tests.vectors.generate import sequence, tlv

MldsaKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
PrivateKey = ClassicKey | MldsaKey

HASHES: dict[str, hashes.HashAlgorithm] = {
    "md5": hashes.MD5(),  # noqa: S303  # kernels of old take it
    "sha1": hashes.SHA1(),  # noqa: S303
    "sha224": hashes.SHA224(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
    "sha3-256": hashes.SHA3_256(),
    "sha3-384": hashes.SHA3_384(),
    "sha3-512": hashes.SHA3_512(),
}
DIGEST_OIDS = {
    "md4": "1.2.840.113549.2.4",
    "md5": "1.2.840.113549.2.5",
    "sha1": "1.3.14.3.2.26",
    "sha224": "2.16.840.1.101.3.4.2.4",
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
    "sha3-256": "2.16.840.1.101.3.4.2.8",
    "sha3-384": "2.16.840.1.101.3.4.2.9",
    "sha3-512": "2.16.840.1.101.3.4.2.10",
    "sm3": "1.2.156.10197.1.401",
    "streebog256": "1.2.643.7.1.1.2.2",
    "streebog512": "1.2.643.7.1.1.2.3",
    "blake2b": "1.3.6.1.4.1.1722.12.2.1.16",
    "ripemd160": "1.3.36.3.2.1",
}
RSA_OID = "1.2.840.113549.1.1.1"
ECDSA_OIDS = {
    "sha1": "1.2.840.10045.4.1",
    "sha224": "1.2.840.10045.4.3.1",
    "sha256": "1.2.840.10045.4.3.2",
    "sha384": "1.2.840.10045.4.3.3",
    "sha512": "1.2.840.10045.4.3.4",
    "sha3-256": "2.16.840.1.101.3.4.3.10",
    "sha3-384": "2.16.840.1.101.3.4.3.11",
    "sha3-512": "2.16.840.1.101.3.4.3.12",
}
MLDSA_KINDS: dict[str, tuple[Any, str]] = {
    "mldsa44": (mldsa.MLDSA44PrivateKey, "2.16.840.1.101.3.4.3.17"),
    "mldsa65": (mldsa.MLDSA65PrivateKey, "2.16.840.1.101.3.4.3.18"),
    "mldsa87": (mldsa.MLDSA87PrivateKey, "2.16.840.1.101.3.4.3.19"),
}
_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "p256": ec.SECP256R1,
    "p384": ec.SECP384R1,
    "p521": ec.SECP521R1,
}
NOW = datetime.now(UTC)


@cache
def make_key(kind: str, use: str = "") -> PrivateKey:
    """``rsa-2048``, ``p256``, ``mldsa44`` …; one key for each ``use``."""
    del use
    if kind in _CURVES:
        return ec.generate_private_key(_CURVES[kind]())
    if kind in MLDSA_KINDS:
        made: MldsaKey = MLDSA_KINDS[kind][0].generate()
        return made
    return rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("rsa-")))


def sign(key: PrivateKey, data: bytes, digest: str) -> bytes:
    """A bare signature value."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), HASHES[digest])
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(HASHES[digest]))
    return key.sign(data)


@dataclass(frozen=True)
class Party:
    """A key with its certificate."""

    key: PrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def skid(self) -> bytes:
        """SubjectKeyIdentifier; empty without."""
        try:
            return self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        except x509.ExtensionNotFound:
            return b""


@dataclass(frozen=True)
class Wish:
    """What a certificate should be like."""

    digest: str = "sha256"
    skid: bool = True
    akid: str = "keyid"
    """``keyid``, ``serial``, ``both``, ``contradicting`` or ``none``."""
    ca: bool | None = None
    cert_sign: bool | None = None
    days: tuple[int, int] = (-1, 900)
    serial: int | None = None
    raw_akid: bytes = b""
    extra: tuple[x509.ExtensionType, ...] = field(default=())


_AKID = x509.ObjectIdentifier("2.5.29.35")


def name_of(text: str) -> x509.Name:
    """CN=text."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _authority(issuer: Party, kind: str) -> x509.AuthorityKeyIdentifier | None:
    name = [x509.DirectoryName(issuer.certificate.issuer)]
    serial = issuer.certificate.serial_number
    return {
        "keyid": x509.AuthorityKeyIdentifier(issuer.skid, None, None),
        "serial": x509.AuthorityKeyIdentifier(None, name, serial),
        "both": x509.AuthorityKeyIdentifier(issuer.skid, name, serial),
        "contradicting": x509.AuthorityKeyIdentifier(b"x" * 20, name, serial),
        "none": None,
    }[kind]


def _usage(*, cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def issue(name: str, key: PrivateKey, issuer: Party | None = None, wish: Wish | None = None) -> Party:
    """A certificate; self-signed without an issuer."""
    wish = wish or Wish()
    skid = hashlib.sha256(name.encode()).digest()[:20]
    subject = name_of(name)
    serial = int.from_bytes(skid[:6], "big") if wish.serial is None else wish.serial
    above = subject if issuer is None else issuer.certificate.subject
    builder = (
        x509.CertificateBuilder(above, subject, key.public_key(), serial)
        .not_valid_before(NOW + timedelta(days=wish.days[0]))
        .not_valid_after(NOW + timedelta(days=wish.days[1]))
    )
    extensions: list[tuple[x509.ExtensionType | None, bool]] = [
        (x509.SubjectKeyIdentifier(skid) if wish.skid else None, False),
        (None if issuer is None or wish.raw_akid else _authority(issuer, wish.akid), False),
        (x509.UnrecognizedExtension(_AKID, wish.raw_akid) if wish.raw_akid else None, False),
        (None if wish.ca is None else x509.BasicConstraints(wish.ca, None), True),
        (None if wish.cert_sign is None else _usage(cert_sign=wish.cert_sign), True),
        *((one, False) for one in wish.extra),
    ]
    for extension, critical in extensions:
        if extension is not None:
            builder = builder.add_extension(extension, critical)
    signer = key if issuer is None else issuer.key
    plain = isinstance(signer, MldsaKey)
    return Party(key, builder.sign(signer, None if plain else HASHES[wish.digest]))  # type: ignore[arg-type]


@asn1.sequence
class _Outer:
    """A certificate, as far as it is taken apart here."""

    tbs: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString


def resigned(party: Party, issuer: Party, tbs: bytes) -> bytes:
    """The certificate with another signed part, signed over SHA-256."""
    algorithm = asn1.decode_der(_Outer, party.der).algorithm
    value = sign(issuer.key, tbs, "sha256")
    return sequence(tbs, tlv(0x30, bytes(algorithm.data)), tlv(0x03, b"\x00", value))


_PADDING = x509.ObjectIdentifier("2.25.1")


def certificate_of_length(length: int) -> Party:
    """A self-signed CA certificate whose DER has exactly ``length`` bytes: RSA where there is room."""
    key = make_key("rsa-2048" if length > 900 else "p256", "ca")
    pad = 0
    for _ in range(64):
        extra = (x509.UnrecognizedExtension(_PADDING, bytes(pad)),) if pad else ()
        party = issue("conformance CA", key, None, Wish(ca=True, serial=1, extra=extra))
        missing = length - len(party.der)
        if not missing:
            return party
        # ECDSA values vary by a byte or two: then the next try fits.
        pad = max(1, pad + missing - (0 if pad else 12))
    raise AssertionError(f"no certificate of {length} bytes: there is room for {len(party.der)} at least")
