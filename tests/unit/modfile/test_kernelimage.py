# SPDX-License-Identifier: Apache-2.0
"""Kernel images, made here from their formats' descriptions, and what is wrong with some."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
import time
from collections.abc import Callable

import lz4.block
import pytest
import zstandard

from kmodgate.errors import ImageError
from kmodgate.modfile.kernelimage import extract

ELF = b"\x7fELF\2\1\1" + bytes(range(256)) * 300
FLAT = b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(5000)
LZ4_MAGIC = b"\x02\x21\x4c\x18"


def lz4_legacy(data: bytes) -> bytes:
    blocks = (
        lz4.block.compress(data[at : at + 30000], store_size=False) for at in range(0, len(data), 30000)
    )
    return LZ4_MAGIC + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.compress,
    "lz4": lz4_legacy,
}


def bzimage(payload: bytes, size: int, *, version: int = 0x20F, sectors: int = 4) -> bytes:
    """Boot sector, set-up sectors, code of 300 bytes, the payload with its size behind it, more code."""
    payload += struct.pack("<I", size)
    header = bytearray((sectors + 1) * 512)
    header[0x1F1] = sectors
    header[0x202:0x208] = b"HdrS" + struct.pack("<H", version)
    struct.pack_into("<II", header, 0x248, 300, len(payload))
    return bytes(header) + bytes(300) + payload + b"decompressor" * 9


def zboot(payload: bytes) -> bytes:
    return b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload)) + bytes(48) + payload


def unified(linux: bytes) -> bytes:
    section = struct.pack("<8sIIII16x", b".linux", len(linux), 0x1000, len(linux), 0x200)
    other = struct.pack("<8sIIII16x", b".osrel", 4, 0x9000, 4, 0x1F0)
    head = (
        b"MZ" + bytes(0x3A) + struct.pack("<I", 0x40) + b"PE\0\0" + struct.pack("<HH12xHH", 0x8664, 2, 8, 0)
    )
    return (head + bytes(8) + other + section).ljust(0x200, b"\0") + linux


@pytest.mark.parametrize("name", COMPRESS)
def test_a_kernel_comes_out_of_each_container(name: str) -> None:
    packed = COMPRESS[name](ELF)
    assert extract(bzimage(packed, len(ELF))) == ELF
    assert extract(unified(bzimage(packed, len(ELF)))) == ELF
    assert extract(COMPRESS[name](FLAT)) == FLAT
    assert extract(zboot(COMPRESS[name](FLAT))) == FLAT


def test_a_kernel_that_is_not_packed_is_itself() -> None:
    assert extract(ELF) is ELF
    assert extract(FLAT) is FLAT
    assert extract(bzimage(ELF, 0)) == ELF + bytes(4)


def test_sectors_of_nought_mean_four() -> None:
    image = bytearray(bzimage(gzip.compress(ELF), len(ELF)))
    image[0x1F1] = 0
    assert extract(bytes(image)) == ELF


@pytest.mark.parametrize("name", COMPRESS)
def test_a_damaged_stream_says_so(name: str) -> None:
    packed = COMPRESS[name](ELF)
    with pytest.raises(ImageError, match=f"its {name} stream cannot be read|bytes are stated and"):
        extract(bzimage(packed[: len(packed) // 2], len(ELF)))
    with pytest.raises(ImageError, match=f"the file: its {name} stream cannot be read"):
        extract(packed[: len(packed) // 2])


@pytest.mark.parametrize("name", COMPRESS)
def test_a_bomb_costs_no_more_than_the_limit(name: str) -> None:
    bomb = COMPRESS[name](b"\x7fELF" + bytes(20 << 20))
    with pytest.raises(ImageError, match="larger than the limit of 1048576 bytes; raise --max-size"):
        extract(bomb, max_size=1 << 20)


def test_a_kernel_that_is_not_packed_has_the_limit_too() -> None:
    with pytest.raises(ImageError, match="larger than the limit of 10 bytes"):
        extract(ELF, max_size=10)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", r"not a kernel image: .* \(it begins with nothing\)"),
        (
            b"MZ nothing here",
            r"not compressed with xz, zstd, gzip, lz4, bzip2, lzma \(it begins with 4d5a206e",
        ),
        (bzimage(gzip.compress(ELF), len(ELF), version=0x207), "boot protocol 0x0207 does not say where"),
        (bzimage(gzip.compress(ELF), len(ELF))[:3000], "lies outside the file; is it cut off"),
        (bzimage(gzip.compress(ELF), 7), "7 bytes are stated and 76807 came out"),
        (bzimage(b"\x89LZO" * 9, len(ELF)), "its payload is not compressed with"),
        (bzimage(gzip.compress(b"text"), 4), "not a kernel image"),
        (zboot(gzip.compress(FLAT))[:80], "EFI zboot: the payload"),
        (zboot(b"text" * 9), "EFI zboot: its payload is not compressed with"),
        (b"MZ\0\0zimg", "EFI zboot: the payload"),
        (gzip.compress(gzip.compress(gzip.compress(gzip.compress(ELF)))), "containers within containers"),
        (unified(ELF)[:0x60], "not a kernel image"),
        (b"MZ" + bytes(0x3A) + b"\xff\xff\xff\xff", "not a kernel image"),
    ],
)
def test_what_is_no_kernel_image_says_why(image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        extract(image)


def test_lz4_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4", None)
    with pytest.raises(ImageError, match=r"pip install 'kmodgate\[lz4\]'"):
        extract(lz4_legacy(ELF))


def test_many_small_blocks_and_false_magics_take_no_time() -> None:
    start = time.perf_counter()
    with pytest.raises(ImageError):
        extract(LZ4_MAGIC + struct.pack("<I", 1) * 500_000 + b"\0" * 9)
    with pytest.raises(ImageError):
        extract(b"\xfe" + b"\x1f\x8b\x08" * (4 << 20))
    assert time.perf_counter() - start < 2


def test_without_the_lz4_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = b"\x7fELF" + bytes(1000)
    image = bzimage(lz4_legacy(kernel), len(kernel))
    monkeypatch.setitem(sys.modules, "lz4", None)
    with pytest.raises(ImageError, match=r"pip install 'kmodgate\[lz4\]'"):
        extract(image)
