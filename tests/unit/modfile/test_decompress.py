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
