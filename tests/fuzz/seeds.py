# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the corpus: valid and nearly valid inputs of every target.

The keys are made here and thrown away: only certificates and signatures stay, so whatever
is trusted later must carry the one payload that was signed. Run it when a target is added
or its seeds change (it replaces the folder ``trust`` and all files called ``seed-…``)::

    python -m tests.fuzz.seeds
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lz4.block
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from tests.vectors.generate import (
    MARKER,
    MODINFO,
    Identity,
    append,
    make_elf,
    make_identity,
    make_key,
    oid,
    openssl_cms,
    sequence,
    set_of,
    signed_data,
    signer_info,
    tlv,
)

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
TRUST = HERE / "trust"
PAYLOAD = make_elf(MODINFO)
ECDSA_SHA256 = "1.2.840.10045.4.3.2"
YEARS = 3650


def certificate(name: str, kind: str, issuer: Identity | None = None, *, authority: bool = False) -> Identity:
    """A certificate with the extensions that chains are followed by."""
    key = make_key(kind)
    maker = key if issuer is None else issuer.key
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=YEARS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(maker.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    return Identity(key, builder.sign(maker, hashes.SHA256()))


def by_skid(identity: Identity, oid_: str = "rsa") -> bytes:
    """A SignerInfo that names its signer by SubjectKeyIdentifier."""
    return signer_info(PAYLOAD, identity, version=3, sid=tlv(0x80, identity.skid), signature_oid=oid_)


def embedded(*identities: Identity) -> bytes:
    """The certificates of a message."""
    return tlv(0xA0, *sorted(identity.der for identity in identities))


def messages(rsa: Identity, ec: Identity, ca: Identity) -> dict[str, bytes]:
    """Messages over ``PAYLOAD``; with ``rigid`` in the name no byte of it may change."""
    stranger = make_identity("stranger", "p256")
    middle = certificate("middle", "rsa", ca, authority=True)
    leaf = certificate("leaf", "p256", middle)
    direct = certificate("direct", "rsa", ca)
    rsa_info = signer_info(PAYLOAD, rsa)
    ec_info = signer_info(PAYLOAD, ec, signature_oid=ECDSA_SHA256)
    stranger_info = signer_info(PAYLOAD, stranger, signature_oid=ECDSA_SHA256)
    leaf_info = signer_info(PAYLOAD, leaf, signature_oid=ECDSA_SHA256)
    attribute = sequence(oid("contentType"), set_of(oid("data")))
    skid = ("-noattr", "-nocerts", "-nosmimecap", "-keyid")
    return {
        "rigid-rsa": openssl_cms(PAYLOAD, rsa),
        "rigid-rsa-sha512": openssl_cms(PAYLOAD, rsa, "sha512"),
        "rigid-rsa-skid": openssl_cms(PAYLOAD, rsa, "sha384", *skid),
        "rigid-ecdsa": openssl_cms(PAYLOAD, ec),
        "two-signers": signed_data(*sorted((rsa_info, ec_info))),
        "rigid-embedded-anchor": signed_data(rsa_info, certificates=embedded(rsa)),
        "three-signers": signed_data(*sorted((rsa_info, ec_info, stranger_info))),
        "rigid-ecdsa-skid": signed_data(by_skid(ec, ECDSA_SHA256), version=3),
        "rigid-chain-of-one": signed_data(signer_info(PAYLOAD, direct), certificates=embedded(direct)),
        "rigid-chain-of-two": signed_data(leaf_info, certificates=embedded(leaf, middle)),
        "chain-with-root": signed_data(leaf_info, certificates=embedded(leaf, middle, ca)),
        "stranger": signed_data(stranger_info, certificates=embedded(stranger)),
        "attributes": openssl_cms(PAYLOAD, rsa, "sha256", "-nocerts"),
        "unsigned-attributes": signed_data(sequence(rsa_info[4:], tlv(0xA1, attribute))),
        "content": openssl_cms(PAYLOAD[:64], rsa, "sha256", "-noattr", "-nodetach"),
        "pss": openssl_cms(PAYLOAD, rsa, "sha256", "-noattr", "-nocerts", "-keyopt", "rsa_padding_mode:pss"),
        "sha1": signed_data(signer_info(PAYLOAD, rsa, digest="sha1"), digests=("sha1",)),
        "indirect": signed_data(rsa_info, content_type="indirectData"),
        "crl": signed_data(rsa_info, crls=tlv(0xA1, sequence())),
        "empty": signed_data(),
    }


def trailers(cms: bytes) -> Iterable[bytes]:
    """Files with every field of the trailer set once."""
    yield append(PAYLOAD, cms)
    yield PAYLOAD
    yield append(PAYLOAD, cms) + b"\n"
    yield bytes(11) + MARKER
    for field in ("algo", "hash_", "id_type", "signer_len", "key_id_len"):
        yield append(b"payload", b"0\0", **{field: 1})  # type: ignore[arg-type]  # all of them are int
    yield append(b"payload", b"0\0", sig_len=2**32 - 1)
    yield append(b"payload", b"0\0", pad=b"\0\1\0")


def certificates(rsa: Identity, ec: Identity, ca: Identity) -> Iterable[bytes]:
    """PEM and DER, one and several, usable and not."""
    yield rsa.pem + ec.pem + ca.pem
    yield ec.pem.replace(b"\n", b"\r\n")
    yield from (rsa.der, ec.der, ca.der)
    yield certificate("leaf", "p521", ca).der
    yield make_identity("p384", "p384").der
    yield ec.key_pem
    yield _ed25519()


def _ed25519() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "a\x07b")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=YEARS))
    return builder.sign(key, None).public_bytes(serialization.Encoding.DER)


def streams() -> Iterable[bytes]:
    """Compressed streams of each kind, with each option that a decoder treats apart."""
    data = PAYLOAD * 3
    yield data
    packed = gzip.compress(data)
    yield packed
    yield packed[:3] + b"\x08" + packed[4:10] + b"module.ko\0" + packed[10:]
    for check in (lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256):
        yield lzma.compress(data, check=check)
    yield lzma.compress(data, filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9}])
    yield zstandard.ZstdCompressor(write_checksum=True).compress(data)
    yield zstandard.ZstdCompressor(write_content_size=False).compress(data)
    yield zstandard.compress(bytes(1 << 20))
    yield zstandard.ZstdCompressor(level=19).compressobj().compress(data)


def images(rsa: Identity, ec: Identity) -> Iterable[bytes]:
    """Kernels with two certificates, in each container and compression."""
    listed = rsa.der + ec.der
    kernel = PAYLOAD.ljust(-(-len(PAYLOAD) // 8) * 8, b"\0") + listed
    kernel = kernel.ljust(-(-len(kernel) // 8) * 8, b"\0") + struct.pack("<QQ", len(listed), len(rsa.der))
    yield kernel
    yield b"MZ".ljust(0x38, b"\0") + b"ARM\x64" + kernel
    stated = struct.pack("<I", len(kernel))
    packed = {
        "gzip": gzip.compress(kernel),
        "xz": lzma.compress(kernel, check=lzma.CHECK_CRC32),
        "lzma": lzma.compress(kernel, format=lzma.FORMAT_ALONE),
        "bzip2": bz2.compress(kernel),
        "zstd": zstandard.compress(kernel),
        "lz4": b"\x02\x21\x4c\x18" + _lz4(kernel),
    }
    for name, payload in packed.items():
        boot = _bzimage(payload + stated)
        yield boot
        yield (
            b"MZ\0\0zimg"
            + struct.pack("<II", 64, len(payload) + 4)
            + name.ljust(48).encode()
            + payload
            + stated
        )
    pe = (
        b"MZ".ljust(0x3C, b"\0")
        + struct.pack("<I", 64)
        + b"PE\0\0"
        + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 0, 0)
    )
    yield pe + struct.pack("<8sIIII16x", b".linux", len(boot), 0, len(boot), len(pe) + 40) + boot


def _lz4(data: bytes) -> bytes:
    packed: bytes = lz4.block.compress(data, store_size=False)
    return struct.pack("<I", len(packed)) + packed


def _bzimage(payload: bytes) -> bytes:
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x202:0x208] = b"HdrS" + struct.pack("<H", 0x20F)
    header[0x248:0x250] = struct.pack("<II", 0, len(payload))
    return bytes(header) + payload


def configs() -> Iterable[bytes]:
    """The examples of the documentation, and what only YAML can say."""
    for path in sorted((HERE.parents[1] / "docs" / "examples").glob("*.yaml")):
        yield path.read_bytes()
    yield b"a: &x [1, 2]\nb: *x\nc: !!int '0x1F'\nd: 1_000\ne: 190:20\nf: .inf\ng: ~\n"
    yield b"kmodgate: {mode: 'audit', holdTimeout: \"5s\", maxModuleSize: 64MiB, listen: '[::1]:9000'}\n"
    yield b"%YAML 1.1\n--- !!map\n? kmodgate\n: logging: {level: |-\n    debug\n  }\n...\n"


def revocations() -> Iterable[bytes]:
    """Entries of each kind, comments, and lines that are none."""
    yield f"tbs:{'ab' * 32}\nbin:{'00' * 32} # why\n\nid:{'cd' * 20}\n".encode()
    yield f"tbs:{'AB' * 48}\r\ntbs:{'ab' * 64}\x0cid:00\n".encode()
    yield b"bin:00\n"
    yield b"\xff\xfe: :\n"


def digests() -> Iterable[bytes]:
    header, digest = "# LOADPIN_TRUSTED_VERITY_ROOT_DIGESTS", bytes(range(32)).hex()
    yield f"{header}\n{digest}\n".encode()
    yield f"{header}\n{digest}\n{bytes(64).hex()}\n{bytes(48).hex().upper()}".encode()
    yield f"{header}\n\n{digest}\n".encode()
    table = f"1 7:0 7:1 4096 4096 1024 0 sha256 {digest} 00ff"
    yield f"{table} 2 panic_on_corruption ignore_zero_blocks".encode()
    yield f"{table} 1 ignore_corruption".encode()
    entry = struct.pack("=QQiI16s", 0, 8, 0, 200, b"verity") + table.encode() + b"\0"
    head = (4, 47, 0, 312 + len(entry), 312, 1, 1, 1 << 5, 0, 0, b"x", b"")
    yield struct.pack("=3I2IIiII4xQ128s129s7x", *head) + entry


def cluster() -> Iterable[bytes]:
    """Names of cgroups, a pod, a node, an event."""
    uid, name = "0d3b1c52-95a1-4d0e-8f5e-0123456789ab", "8f" * 32
    slices = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid.replace('-', '_')}.slice"
    yield f"0::{slices}/cri-containerd-{name}.scope\n".encode()
    yield f"11:pids:/kubepods/pod{uid}/{name}\n1:name=systemd:/docker/{name}\n0::/../../pod{uid}\n".encode()
    yield f"/system.slice/containerd.service/kubepods-pod{'7a' * 16}.slice:cri-containerd:{name}".encode()
    status = [{"name": "c", "containerID": f"containerd://{name}", "lastState": {"terminated": {}}}]
    metadata = {
        "uid": uid,
        "namespace": "n",
        "name": "p-5d8f-x",
        "labels": {"pod-template-hash": "5d8f"},
        "annotations": {"kubernetes.io/config.mirror": "7a" * 16},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "p-5d8f", "controller": True}],
    }
    spec = {"serviceAccountName": "s", "containers": [{"name": "c", "image": "i"}]}
    pod = {"metadata": metadata, "spec": spec, "status": {"containerStatuses": status}}
    yield json.dumps(pod).encode()
    event = {"event": "module_load", "schema": 1, "sequence": 1, "time": "2026-03-04T05:06:07Z"}
    yield json.dumps(
        {
            **event,
            "node": "n",
            "pool": "p",
            "verdict": "would_deny",
            "reason": "unsigned",
            "module": "m",
            "signer": {"subject": "CN=x"},
            "pod": {"uid": uid, "namespace": "n", "name": "x", "owner": {"kind": "Job", "name": "j"}},
        }
    ).encode()


def write(target: str, inputs: Iterable[bytes] | dict[str, bytes]) -> None:
    """Replace the seeds of one target."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("seed-*"):
        old.unlink()
    named = inputs if isinstance(inputs, dict) else {f"{n:02}": data for n, data in enumerate(inputs)}
    for name, data in named.items():
        (folder / f"seed-{name}").write_bytes(data)


def main() -> None:
    """Write all seeds and the certificates that they are judged by."""
    rsa = make_identity("fuzz rsa", days=(-1, YEARS))
    ec = make_identity("fuzz ecdsa", "p256", days=(-1, YEARS))
    ca = certificate("fuzz ca", "p384", authority=True)
    shutil.rmtree(TRUST, ignore_errors=True)
    TRUST.mkdir()
    for name, identity in {"rsa": rsa, "ecdsa": ec, "ca": ca}.items():
        (TRUST / f"{name}.pem").write_bytes(identity.pem)
    (TRUST / "payload").write_bytes(PAYLOAD)
    cms = messages(rsa, ec, ca)
    files = {name: append(PAYLOAD, message) for name, message in cms.items()}
    write("cms", files)
    write("kernels", files)
    write("trailer", trailers(cms["rigid-ecdsa"]))
    write("certificates", certificates(rsa, ec, ca))
    write("revocations", revocations())
    write("digests", digests())
    write("modinfo", [make_elf(MODINFO, bits=b, order=o) for b in (32, 64) for o in ("little", "big")])
    write("decompress", streams())
    write("kernelimage", images(rsa, ec))
    write("config", configs())
    write("cluster", cluster())


if __name__ == "__main__":
    main()
