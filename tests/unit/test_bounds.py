# SPDX-License-Identifier: Apache-2.0
"""Time grows with the size of the input and no faster; memory stays below 2.5 times the module."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from tests.vectors.generate import (
    Identity,
    algorithm,
    append,
    integer,
    make_elf,
    make_identity,
    make_key,
    oid,
    sequence,
    set_of,
    signed_data,
    signer_info,
    tlv,
)

from kmodgate.config.parse import parse
from kmodgate.errors import KmodgateError
from kmodgate.modfile import decompress, modinfo
from kmodgate.modfile.kernelimage import certificates as kernel_certificates
from kmodgate.signature import Revocations, TrustStore, load_certificates, report

MIB = 1 << 20
MODULE = 64 * MIB
# Four times the input may take ten times as long: quadratic would be sixteen.
FACTOR, MOST = 4, 10
# Less than this is noise, whatever the ratio.
NOISE = 0.02
HANG = 1.0

PAYLOAD = b"payload" * 20
CERTIFICATE = make_identity("many", "p256")
STRANGER = make_identity("stranger")


def seconds(work: Callable[[], object]) -> float:
    """CPU time of the best of three runs."""
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        with contextlib.suppress(KmodgateError):
            work()
        best = min(best, time.thread_time() - start)
    return best


# Hostile inputs of any size, each with what reads it.


def many_sections(count: int) -> Callable[[], object]:
    elf = bytearray(make_elf(b"name=x\0"))
    table = struct.unpack_from("<Q", elf, 40)[0]
    first, last = elf[table : table + 64], elf[table + 128 :]
    elf[table:] = first + last + bytes(first) * count
    struct.pack_into("<HH", elf, 60, count + 2, 1)
    return lambda: modinfo(elf)


def many_section_names(count: int) -> Callable[[], object]:
    elf = make_elf(b"name=x\0", flags=0, names=b"\0.shstrtab\0" + b".modinfo\0" * count)
    return lambda: modinfo(elf)


def many_strings(count: int) -> Callable[[], object]:
    elf = make_elf(b"alias=pci\0" * count)
    return lambda: modinfo(elf)


def one_long_string(count: int) -> Callable[[], object]:
    elf = make_elf(b"name=" + b"\xff" * count)
    return lambda: modinfo(elf)


def many_certificates(count: int) -> Callable[[], object]:
    pem = CERTIFICATE.pem * count
    return lambda: TrustStore(load_certificates(pem, "many.pem"))


def text_around_a_certificate(count: int) -> Callable[[], object]:
    pem = b"-----BEGIN X\n" * count + CERTIFICATE.pem
    return lambda: load_certificates(pem, "long.pem")


def text_without_a_certificate(count: int) -> Callable[[], object]:
    pem = b"-----BEGIN " + b"A " * count
    return lambda: load_certificates(pem, "long.pem")


def many_revocations(count: int) -> Callable[[], object]:
    text = "".join(f"bin:{number:064x}\n" for number in range(count))
    return lambda: Revocations.parse(text, "revoked.txt")


def one_long_revocation(count: int) -> Callable[[], object]:
    text = "id:" + "ab" * count + " " * count
    return lambda: Revocations.parse(text, "revoked.txt")


def gzip_blocks(count: int) -> Callable[[], object]:
    data = gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * count
    return lambda: decompress(data, max_size=MODULE)


def gzip_name(count: int) -> Callable[[], object]:
    data = gzip.compress(b"")[:3] + b"\x08" + bytes(6) + b"x" * count
    return lambda: decompress(data, max_size=MODULE)


def gzip_members(count: int) -> Callable[[], object]:
    data = gzip.compress(b"x") * count
    return lambda: decompress(data, max_size=MODULE)


def zstd_blocks(count: int) -> Callable[[], object]:
    data = b"\x28\xb5\x2f\xfd\0\x58" + bytes(3) * count + b"\1\0\0"
    return lambda: decompress(data, max_size=MODULE)


def zstd_skippable_frames(count: int) -> Callable[[], object]:
    data = zstandard.compress(b"x") + b"\x50\x2a\x4d\x18\0\0\0\0" * count
    return lambda: decompress(data, max_size=MODULE)


def xz_blocks(count: int) -> Callable[[], object]:
    data = xz_of_blocks(count)
    return lambda: decompress(data, max_size=MODULE)


def xz_of_blocks(count: int) -> bytes:
    """One stream of many blocks, each of one byte (the .xz file format, sections 2 to 4)."""
    one = lzma.compress(b"x", check=lzma.CHECK_NONE)
    head, foot = one[:12], one[-12:]
    old = one[-12 - (struct.unpack_from("<I", foot, 4)[0] + 1) * 4 : -12]
    block = one[12 : len(one) - 12 - len(old)]
    index = b"\0" + multibyte(count) + old[2:4] * count
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", zlib.crc32(index))
    fields = struct.pack("<I", len(index) // 4 - 1) + foot[8:10]
    return head + block * count + index + struct.pack("<I", zlib.crc32(fields)) + fields + foot[10:]


def multibyte(number: int) -> bytes:
    """Seven bits an octet, the lowest first (section 1.2)."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes((number,))


def certificates_in_a_kernel(count: int) -> Callable[[], object]:
    kernel = b"\x7fELF".ljust(64, b"\0") + CERTIFICATE.der * count
    return lambda: kernel_certificates(kernel)


def outlines_in_a_kernel(count: int) -> Callable[[], object]:
    kernel = b"\x7fELF".ljust(64, b"\0") + b"\x30\x82\x3f\xf0\x30\x82\x3f\xf0\xa0\x03\x02\x01\x02\x02" * count
    return lambda: kernel_certificates(kernel)


def text_of_yaml(text: str) -> Callable[[int], Callable[[], object]]:
    def make(count: int) -> Callable[[], object]:
        data = text.encode() * count
        return lambda: parse(data, source="file.yaml")

    return make


SHAPES: dict[str, tuple[Callable[[int], Callable[[], object]], int]] = {
    "ELF: many sections": (many_sections, 16_000),
    "ELF: many names": (many_section_names, 25_000),
    "ELF: many strings": (many_strings, 100_000),
    "ELF: one long string": (one_long_string, 1_000_000),
    "PEM: many certificates": (many_certificates, 150),
    "PEM: text around": (text_around_a_certificate, 100_000),
    "PEM: no certificate": (text_without_a_certificate, 500_000),
    "revocations: many": (many_revocations, 20_000),
    "revocations: one long": (one_long_revocation, 500_000),
    "gzip: empty blocks": (gzip_blocks, 2_000_000),
    "gzip: long name": (gzip_name, 8_000_000),
    "gzip: members": (gzip_members, 200_000),
    "zstd: empty blocks": (zstd_blocks, 2_000_000),
    "zstd: skippable frames": (zstd_skippable_frames, 500_000),
    "xz: blocks": (xz_blocks, 100_000),
    "kernel: certificates": (certificates_in_a_kernel, 200),
    "kernel: outlines": (outlines_in_a_kernel, 20_000),
    "YAML: keys": (text_of_yaml("k: v\n"), 20_000),
    "YAML: items": (text_of_yaml("- 1\n"), 20_000),
    "YAML: deep": (text_of_yaml("["), 100_000),
    "YAML: scalar": (text_of_yaml("a\n"), 50_000),
    "YAML: anchors": (text_of_yaml("- &a b\n- *a\n"), 10_000),
    "YAML: comments": (text_of_yaml("#\n"), 100_000),
    "YAML: quotes": (text_of_yaml("''"), 100_000),
    "YAML: escapes": (text_of_yaml('"\\x41" '), 20_000),
    "YAML: block scalar": (text_of_yaml("|\n "), 50_000),
    "YAML: documents": (text_of_yaml("---\n"), 50_000),
    "YAML: number": (text_of_yaml("1"), 200_000),
    "YAML: base sixty": (text_of_yaml("1:1"), 60_000),
}


@pytest.mark.parametrize("name", SHAPES)
def test_time_grows_no_faster_than_the_input(name: str) -> None:
    make, count = SHAPES[name]
    short, long = seconds(make(count)), seconds(make(FACTOR * count))
    assert long < max(NOISE, MOST * short), f"{count}: {short:.3f} s, {FACTOR * count}: {long:.3f} s"
    assert long < FACTOR * HANG


# Signatures: the message has 65,535 bytes at most, so a bound on the time is what counts.


def nested(count: int) -> bytes:
    out = b""
    for _ in range(count):
        out = tlv(0x30, out)
    return out


def hostile_info(*, sid: bytes = b"", attributes: bytes = b"", unsigned: bytes = b"") -> bytes:
    return sequence(
        integer(1),
        sid or sequence(sequence(), integer(1)),
        algorithm("sha256"),
        attributes,
        algorithm("rsa"),
        tlv(0x04, b"x"),
        unsigned,
    )


def hostile_name(value: bytes, count: int) -> bytes:
    return sequence(sequence(*[set_of(sequence(oid("2.5.4.3"), tlv(12, value)))] * count), integer(1))


def hostile_messages() -> dict[str, bytes]:
    attribute = sequence(oid("contentType"), set_of(oid("data")))
    signer = signer_info(PAYLOAD, CERTIFICATE, signature_oid="1.2.840.10045.4.3.2")
    own = tlv(0xA0, CERTIFICATE.der)
    return {
        "nested, indefinite": b"\x30\x80" * 32_000,
        "nested, definite": signed_data(certificates=tlv(0xA0, nested(13_000))),
        "digests": signed_data(signer, digests=("sha256",) * 4000),
        "signers": signed_data(*[signer] * 420),
        "signers with a certificate": signed_data(*[signer] * 24, certificates=own),
        "certificates": signed_data(signer, certificates=tlv(0xA0, CERTIFICATE.der * 180)),
        "chain and signers": chain_and_signers(24),
        "empty certificates": signed_data(certificates=tlv(0xA0, b"\x30\0" * 32_000)),
        "attributes": signed_data(hostile_info(attributes=tlv(0xA0, attribute * 2000))),
        "unsigned attributes": signed_data(hostile_info(unsigned=tlv(0xA1, attribute * 2000))),
        "names": signed_data(hostile_info(sid=hostile_name(b"x", 5000))),
        "a name of control characters": signed_data(hostile_info(sid=hostile_name(b"\1" * 60_000, 1))),
        "a serial number": signed_data(hostile_info(sid=sequence(sequence(), tlv(2, b"\x41" * 60_000)))),
    }


def chain_and_signers(count: int) -> bytes:
    """As many SignerInfos as certificates above them; each could walk the whole chain."""
    key = make_key("p521")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
    now = datetime.now(UTC)
    chain = []
    for number in range(1, count + 1):
        builder = x509.CertificateBuilder(name, name, key.public_key(), number, now, now + timedelta(days=9))
        above = x509.AuthorityKeyIdentifier(bytes((number + 1,)), None, None)
        builder = builder.add_extension(x509.SubjectKeyIdentifier(bytes((number,))), critical=False)
        chain.append(Identity(key, builder.add_extension(above, critical=False).sign(key, hashes.SHA256())))
    info = signer_info(PAYLOAD, chain[0], signature_oid="1.2.840.10045.4.3.2")
    return signed_data(*[info] * count, certificates=tlv(0xA0, *(one.der for one in chain)))


MESSAGES = hostile_messages()


@pytest.mark.parametrize("name", MESSAGES)
def test_no_message_takes_long(name: str) -> None:
    data = append(PAYLOAD, MESSAGES[name])
    assert len(MESSAGES[name]) <= 65535
    trust = TrustStore(load_certificates(STRANGER.pem, "stranger.pem"))
    found = report(data, trust)
    assert found.status != "trusted_signature"
    assert seconds(lambda: report(data, trust)) < HANG / 2


# Memory.

CHILD = """
import json, pathlib, sys
from datetime import UTC, datetime
from kmodgate.cli.verify import examine, load_trust

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10

def look(path, trust):
    return examine(path, trust, max_size=64 << 20, now=datetime.now(UTC), require_validity=False)

small, large, anchor = sys.argv[1:]
trust = load_trust([anchor], [])
look(small, trust)  # what is imported and cached stays out of the measure
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak()
status = look(large, trust).status
print(json.dumps({"status": status, "grown": peak() - before}))
"""


def pack_xz(data: bytes) -> bytes:
    # The window of xz -9, which is as large as the module.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 * MIB}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


def pack_zstd_unsized(data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=26, write_content_size=False, write_checksum=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": pack_xz,
    "zstd": lambda data: zstandard.compress(data, 1),
    "zstd without its size": pack_zstd_unsized,
}


@pytest.fixture(scope="module")
def modules() -> tuple[bytes, bytes]:
    """A small and a large signed module; the large one's content is hard to compress in part."""
    noise = random.Random(1).randbytes(8 * MIB)
    start = make_elf(b"name=large\0")
    payload = (start + noise + b"kernel module " * (MODULE // 14))[: MODULE - 4096]
    small, large = (append(one, signed_data(signer_info(one, STRANGER))) for one in (start, payload))
    assert MODULE - 4096 < len(large) <= MODULE
    return small, large


@pytest.mark.parametrize("name", PACKERS)
def test_memory_stays_below_two_and_a_half_modules(
    name: str, modules: tuple[bytes, bytes], tmp_path: Path
) -> None:
    small, large = modules
    (tmp_path / "small.ko").write_bytes(PACKERS[name](small))
    (tmp_path / "large.ko").write_bytes(PACKERS[name](large))
    (tmp_path / "anchor.pem").write_bytes(STRANGER.pem)
    files = [str(tmp_path / file) for file in ("small.ko", "large.ko", "anchor.pem")]
    result = subprocess.run(
        [sys.executable, "-c", CHILD, *files], check=True, capture_output=True, text=True, timeout=120
    )
    measured = json.loads(result.stdout)
    assert measured["status"] == "trusted_signature"
    assert measured["grown"] < 2.5 * len(large), f"{measured['grown'] / len(large):.2f} times the module"
    assert name != "plain" or measured["grown"] > 0.9 * len(large), "the measure measures"
