# SPDX-License-Identifier: Apache-2.0
"""Makes signed, tampered and malformed module files, without any of kmodgate's code.

Keys are made afresh at each run. Well-formed messages come from ``openssl cms``, odd ones
from a small DER writer. Run it to write a folder of vectors and their expected outcome::

    python tests/vectors/generate.py FOLDER
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

MARKER = b"~Module signature appended~\n"
OIDS = {
    "signedData": "1.2.840.113549.1.7.2",
    "envelopedData": "1.2.840.113549.1.7.3",
    "data": "1.2.840.113549.1.7.1",
    "tstInfo": "1.2.840.113549.1.9.16.1.4",
    "indirectData": "1.3.6.1.4.1.311.2.1.4",
    "sha1": "1.3.14.3.2.26",
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
    "blake2b": "1.3.6.1.4.1.1722.12.2.1.16",
    "rsa": "1.2.840.113549.1.1.1",
    "sha256WithRSA": "1.2.840.113549.1.1.11",
    "ed25519": "1.3.101.112",
    "contentType": "1.2.840.113549.1.9.3",
}
HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),  # noqa: S303  # an unsupported digest is wanted
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


# DER, written by hand so that no decoder under test has a part in it.


def tlv(tag: int, *contents: bytes) -> bytes:
    """One definite-length element."""
    body = b"".join(contents)
    if len(body) < 128:  # X.690 section 8.1.3.4
        return bytes([tag, len(body)]) + body
    size = (len(body).bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + len(body).to_bytes(size, "big") + body


def oid(name: str) -> bytes:
    """An OBJECT IDENTIFIER, by a name of ``OIDS`` or dotted."""
    first, second, *rest = map(int, OIDS.get(name, name).split("."))
    out = bytearray()
    for arc in [first * 40 + second, *rest]:
        part = [arc & 0x7F]
        while arc := arc >> 7:
            part.insert(0, arc & 0x7F | 0x80)
        out += bytes(part)
    return tlv(0x06, bytes(out))


def integer(value: int) -> bytes:
    """An INTEGER."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def sequence(*contents: bytes) -> bytes:
    """A SEQUENCE."""
    return tlv(0x30, *contents)


def set_of(*contents: bytes) -> bytes:
    """A SET OF, sorted as DER wants it."""
    return tlv(0x31, *sorted(contents))


def algorithm(name: str) -> bytes:
    """An AlgorithmIdentifier with NULL parameters."""
    return sequence(oid(name), b"\x05\x00")


# Keys and certificates.


@dataclass(frozen=True)
class Identity:
    """A private key and its certificate."""

    key: PrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        """The certificate as DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        """The private key, unencrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def skid(self) -> bytes:
        """SubjectKeyIdentifier."""
        extension = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return extension.value.digest


def make_key(kind: str) -> PrivateKey:
    """``rsa``, ``p256``, ``p384`` or ``p521``."""
    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(curves[kind])


def make_identity(
    name: str,
    kind: str = "rsa",
    *,
    key: PrivateKey | None = None,
    serial: int | None = None,
    days: tuple[int, int] = (-1, 365),
    issuer: Identity | None = None,
) -> Identity:
    """A certificate; self-signed, or issued by ``issuer``."""
    key = make_key(kind) if key is None else key
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    signer = key if issuer is None else issuer.key
    return Identity(key, builder.sign(signer, hashes.SHA256()))


# Messages.


def openssl_cms(payload: bytes, identity: Identity, digest: str = "sha256", *options: str) -> bytes:
    """``openssl cms -sign`` as the kernel's ``sign-file`` uses the same library."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "in").write_bytes(payload)
        (folder / "cert").write_bytes(identity.pem)
        (folder / "key").write_bytes(identity.key_pem)
        subprocess.run(
            [
                *("openssl", "cms", "-sign", "-binary", "-outform", "DER", "-md", digest),
                *("-in", str(folder / "in"), "-signer", str(folder / "cert"), "-inkey", str(folder / "key")),
                *("-out", str(folder / "out"), *(options or ("-noattr", "-nocerts", "-nosmimecap"))),
            ],
            check=True,
            capture_output=True,
        )
        return (folder / "out").read_bytes()


def raw_signature(payload: bytes, identity: Identity, digest: str = "sha256") -> bytes:
    """The bare signature value."""
    if isinstance(identity.key, rsa.RSAPrivateKey):
        return identity.key.sign(payload, padding.PKCS1v15(), HASHES[digest])
    return identity.key.sign(payload, ec.ECDSA(HASHES[digest]))


def signer_info(
    payload: bytes,
    identity: Identity,
    *,
    digest: str = "sha256",
    digest_oid: str | None = None,
    signature_oid: str = "rsa",
    version: int = 1,
    sid: bytes | None = None,
    attributes: bytes = b"",
    signature: bytes | None = None,
) -> bytes:
    """One SignerInfo, each part replaceable."""
    certificate = identity.certificate
    if sid is None:
        sid = sequence(certificate.issuer.public_bytes(), integer(certificate.serial_number))
    value = raw_signature(payload, identity, digest) if signature is None else signature
    return sequence(
        integer(version),
        sid,
        algorithm(digest if digest_oid is None else digest_oid),
        attributes,
        algorithm(signature_oid),
        tlv(0x04, value),
    )


def signed_data(
    *signers: bytes,
    version: int = 1,
    outer: str = "signedData",
    content_type: str = "data",
    digests: tuple[str, ...] = ("sha256",),
    content: bytes = b"",
    certificates: bytes = b"",
    crls: bytes = b"",
) -> bytes:
    """A ContentInfo with SignedData, each part replaceable."""
    return sequence(
        oid(outer),
        tlv(
            0xA0,
            sequence(
                integer(version),
                set_of(*map(algorithm, digests)),
                sequence(oid(content_type), content),
                certificates,
                crls,
                set_of(*signers),
            ),
        ),
    )


def append(
    payload: bytes,
    cms: bytes,
    *,
    algo: int = 0,
    hash_: int = 0,
    id_type: int = 2,
    signer_len: int = 0,
    key_id_len: int = 0,
    pad: bytes = b"\0\0\0",
    sig_len: int | None = None,
    marker: bytes = MARKER,
) -> bytes:
    """A module file with a trailer, each field replaceable."""
    length = len(cms) if sig_len is None else sig_len
    trailer = struct.pack(">BBBBB3sI", algo, hash_, id_type, signer_len, key_id_len, pad, length)
    return payload + cms + trailer + marker


def make_elf(
    modinfo: bytes, *, bits: int = 64, order: str = "little", flags: int = 2, names: bytes | None = None
) -> bytes:
    """A relocatable ELF file with a ``.modinfo`` section and little else."""
    names = b"\0.text\0.modinfo\0.shstrtab\0" if names is None else names
    prefix = "<" if order == "little" else ">"
    ehdr_size, shdr_size, word = (64, 64, "Q") if bits == 64 else (52, 40, "I")
    table = ehdr_size + len(modinfo) + len(names)
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "little" else 2, 1]) + bytes(9)
    numbers = (1, 62, 1, 0, 0, table, 0, ehdr_size, 0, 0, shdr_size, 3, 2)
    ehdr = ident + struct.pack(f"{prefix}HHI{word}{word}{word}IHHHHHH", *numbers)

    def shdr(name: int, kind: int, flag: int, offset: int, size: int) -> bytes:
        layout = f"{prefix}II{word}{word}{word}{word}II{word}{word}"
        return struct.pack(layout, name, kind, flag, 0, offset, size, 0, 0, 1, 0)

    sections = (
        shdr(0, 0, 0, 0, 0)
        + shdr(names.index(b".modinfo\0"), 1, flags, ehdr_size, len(modinfo))
        + shdr(names.index(b".shstrtab\0"), 3, 0, ehdr_size + len(modinfo), len(names))
    )
    return ehdr + modinfo + names + sections


MODINFO = b"license=GPL\0name=kmg_demo\0version=1.2\0srcversion=0123ABCD\0vermagic=6.1.0 SMP mod_unload \0"


def vectors(signer: Identity, stranger: Identity) -> dict[str, tuple[bytes, str, str | None]]:
    """Name to (file, expected status, expected errno), with ``signer`` as the only anchor."""
    payload = make_elf(MODINFO)
    cms = openssl_cms(payload, signer)
    good = append(payload, cms)
    rejected = "EKEYREJECTED"
    return {
        "trusted": (good, "trusted_signature", None),
        "trusted-skid": (
            append(payload, openssl_cms(payload, signer, "sha512", *_SKID)),
            "trusted_signature",
            None,
        ),
        "unsigned": (payload, "unsigned", rejected),
        "tampered": (good[:70] + bytes([good[70] ^ 1]) + good[71:], "bad_signature", rejected),
        "truncated": (good[:-1], "unsigned", rejected),
        "trailing": (good + b"\n", "unsigned", rejected),
        "stranger": (append(payload, openssl_cms(payload, stranger)), "untrusted_signer", rejected),
        "der-padding": (append(payload, cms + b"\0"), "malformed_signature", "EBADMSG"),
        "id-type": (append(payload, cms, id_type=1), "unsupported_signature", rejected),
        "pad": (append(payload, cms, pad=b"\0\0\1"), "malformed_signature", "EBADMSG"),
    }


_SKID = ("-noattr", "-nocerts", "-nosmimecap", "-keyid")


def main() -> None:
    """Write the vectors, the anchor, and ``expected.json``."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    signer = make_identity("kmodgate vector signer")
    expected = {}
    for name, (data, status, errno) in vectors(signer, make_identity("stranger")).items():
        (folder / f"{name}.ko").write_bytes(data)
        expected[f"{name}.ko"] = {"status": status, "errno": errno}
    (folder / "anchor.pem").write_bytes(signer.pem)
    (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
