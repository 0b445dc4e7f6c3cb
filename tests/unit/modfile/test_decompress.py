# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import gzip
import lzma
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodgate.errors import ModuleFormatError
from kmodgate.modfile import decompress

DATA = bytes(range(256)) * 5000
MAX = 64 << 20
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "xz-crc32": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "zst-no-size": zstandard.ZstdCompressor(write_content_size=False, write_checksum=False).compress,
}


@pytest.fixture(params=list(PACK))
def packed(request: pytest.FixtureRequest) -> bytes:
    return PACK[str(request.param)](DATA)


def test_plain_bytes_come_back_uncopied() -> None:
    assert decompress(DATA, max_size=MAX) is DATA


def test_every_format_comes_back_whole(packed: bytes) -> None:
    assert decompress(packed, max_size=MAX) == DATA
    assert decompress(memoryview(packed), max_size=len(DATA)) == DATA


def test_the_cap_is_exact(packed: bytes) -> None:
    with pytest.raises(ModuleFormatError, match="larger than the limit") as caught:
        decompress(packed, max_size=len(DATA) - 1)
    assert caught.value.errno_name == "EFBIG"


def test_plain_bytes_are_capped() -> None:
    with pytest.raises(ModuleFormatError, match="larger"):
        decompress(DATA, max_size=len(DATA) - 1)


@pytest.mark.parametrize("cut", [1, 4, 9, 20])
def test_a_truncated_stream_is_an_error(packed: bytes, cut: int) -> None:
    with pytest.raises(ModuleFormatError, match=r"truncated|damaged") as caught:
        decompress(packed[:-cut], max_size=MAX)
    assert caught.value.errno_name == "EINVAL"


def test_no_prefix_and_no_suffix_passes(packed: bytes) -> None:
    for end in range(6, min(len(packed), 200)):
        with pytest.raises(ModuleFormatError):
            decompress(packed[:end], max_size=MAX)
    for tail in (b"\0", b"\0\0\0\0", packed, zstandard.compress(b""), b"\x50\x2a\x4d\x18\0\0\0\0"):
        with pytest.raises(ModuleFormatError, match="follow"):
            decompress(packed + tail, max_size=MAX)


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x04, 0x10, 0x0C, 0x20, 0x80])
def test_gzip_fields_that_kernels_ignore_are_refused(flags: int) -> None:
    data = bytearray(gzip.compress(DATA))
    data[3] = flags
    with pytest.raises(ModuleFormatError, match="a file name at most"):
        decompress(data, max_size=MAX)


def test_a_gzip_file_name_is_taken() -> None:
    body = zlib.compressobj(wbits=31)
    plain = body.compress(DATA) + body.flush()
    named = plain[:3] + b"\x08" + plain[4:10] + b"module.ko\0" + plain[10:]
    assert decompress(named, max_size=MAX) == DATA


def test_a_gzip_checksum_counts() -> None:
    data = bytearray(gzip.compress(DATA))
    data[-6] ^= 1
    with pytest.raises(ModuleFormatError, match="damaged"):
        decompress(data, max_size=MAX)


@pytest.mark.parametrize("name", list(PACK))
def test_a_bomb_costs_no_more_than_the_cap(name: str) -> None:
    bomb = PACK[name](bytes(64 << 20))
    cap, xz_window = 4 << 20, 8 << 20
    tracemalloc.start()
    with pytest.raises(ModuleFormatError, match="larger"):
        decompress(bomb, max_size=cap)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * cap + xz_window


@settings(max_examples=150, deadline=None)
@given(
    head=st.sampled_from([b"\x1f\x8b\x08\x00", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b""]),
    tail=st.binary(max_size=200),
)
def test_arbitrary_bytes_raise_nothing_else(head: bytes, tail: bytes) -> None:
    with contextlib.suppress(ModuleFormatError):
        decompress(head + tail, max_size=1 << 20)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_streams_raise_nothing_else(data: st.DataObject) -> None:
    stream = bytearray(PACK[data.draw(st.sampled_from(sorted(PACK)))](DATA[:3000]))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModuleFormatError):
        decompress(stream, max_size=1 << 20)


# Containers that promise, nest or repeat more than they should.

ZSTD = b"\x28\xb5\x2f\xfd"


def refused(data: bytes, words: str, *, max_size: int = MAX, errno: str = "EINVAL") -> None:
    tracemalloc.start()
    with pytest.raises(ModuleFormatError, match=words) as caught:
        decompress(data, max_size=max_size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.errno_name == errno
    assert peak < 2.5 * max_size


def xz_with_dictionary(code: int) -> bytes:
    """A stream whose block header names another dictionary (.xz file format 5.3.1)."""
    data = bytearray(lzma.compress(DATA, check=lzma.CHECK_NONE))
    size = (data[12] + 1) * 4
    at = data.index(b"\x21\x01", 12, 12 + size) + 2
    data[at] = code
    data[12 + size - 4 : 12 + size] = zlib.crc32(data[12 : 12 + size - 4]).to_bytes(4, "little")
    return bytes(data)


def test_a_dictionary_as_large_as_that_of_xz_9_is_taken() -> None:
    assert decompress(xz_with_dictionary(28), max_size=MAX) == DATA  # 64 MiB


@pytest.mark.parametrize("code", [31, 36, 40])
def test_a_dictionary_above_the_limit_is_refused(code: int) -> None:
    refused(xz_with_dictionary(code), "too much memory")  # 192 MiB, 1 GiB, 4 GiB


@pytest.mark.parametrize("exponent", [18, 21, 31])
def test_a_zstd_window_above_the_limit_is_refused(exponent: int) -> None:
    refused(ZSTD + bytes((0, exponent << 3)) + b"\x01\0\0", "too much memory")  # 256 MiB, 2 GiB, 2 TiB


def test_a_stated_size_above_the_cap_is_refused_before_anything_is_read() -> None:
    refused(ZSTD + b"\xa0" + (MAX + 1).to_bytes(4, "little"), "larger", errno="EFBIG")
    refused(ZSTD + b"\xe0" + ((1 << 64) - 2).to_bytes(8, "little"), "larger", errno="EFBIG")


def test_a_stated_size_that_is_not_true_is_refused() -> None:
    block = (5 << 3 | 1).to_bytes(3, "little") + b"abcde"
    for size in (0, 1, 4, 6, MAX):
        refused(ZSTD + b"\xa0" + size.to_bytes(4, "little") + block, "damaged")
    assert decompress(ZSTD + b"\xa0\5\0\0\0" + block, max_size=5) == b"abcde"


def test_what_is_inside_a_container_is_not_opened() -> None:
    inner = gzip.compress(DATA)
    for pack in PACK.values():
        assert decompress(pack(inner), max_size=MAX) == inner


def test_a_bomb_in_a_bomb_is_only_as_large_as_its_outer_one() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    assert decompress(zstandard.compress(bomb), max_size=len(bomb)) == bomb


def test_a_gzip_name_without_an_end_is_refused() -> None:
    refused(gzip.compress(b"")[:3] + b"\x08" + bytes(6) + b"x" * (1 << 20), "truncated")


def test_a_run_of_one_byte_is_capped() -> None:
    block = ((1 << 17) << 3 | 2).to_bytes(3, "little") + b"a"
    refused(ZSTD + b"\0\x58" + block * 2000 + b"\1\0\0", "larger", max_size=32 << 20, errno="EFBIG")


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(PACK)), data=st.binary(max_size=3000), times=st.integers(1, 200))
def test_decompressing_undoes_compressing(name: str, data: bytes, times: int) -> None:
    whole = data * times
    assert decompress(PACK[name](whole), max_size=len(whole)) == whole
