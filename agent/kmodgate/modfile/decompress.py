# SPDX-License-Identifier: Apache-2.0
"""Module file containers: plain, gzip, xz and Zstandard, told apart by magic.

This module reads no files and looks at no ELF structure. It refuses what different
decompressors read differently (concatenated streams, trailing bytes, optional gzip
fields): the kernel must see the same bytes as kmodgate (``kernel/module/decompress.c``).
Output is capped while it is made, so a bomb costs no more than the cap.
"""

from __future__ import annotations

import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias

from kmodgate.errors import ModuleFormatError

if TYPE_CHECKING:
    import zstandard

BytesLike: TypeAlias = bytes | bytearray | memoryview

GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_GZIP_HEADER = 10
_GZIP_DEFLATE = 8
_GZIP_FNAME = 0x08
_CHUNK = 1 << 20
_PIECE = 1 << 16
# zstandard bounds no output by itself; four bytes make 128 KiB at most (RFC 8878 section 3.1.1.2).
_ZSTD_PIECE = 256
# Memory beside the output. xz -9 needs 65 MiB; the kernel's zstd stops at this window.
_WINDOW_LOG_MAX = 27
_MEMORY_LIMIT = 1 << _WINDOW_LOG_MAX


class _Ended(Protocol):
    """What zlib's, lzma's and compression.zstd's decoders have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Decoder(_Ended, Protocol):
    """lzma's and compression.zstd's keep the input that they have not used."""

    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: BytesLike, max_length: int) -> bytes: ...


def _error(kind: str, problem: str) -> ModuleFormatError:
    return ModuleFormatError(f"{kind}: {problem}; compress the module again", "EINVAL")


def _second(kind: str) -> ModuleFormatError:
    return _error(kind, "bytes or a second stream follow the first one, which kernels read differently")


def _too_large(max_size: int) -> ModuleFormatError:
    return ModuleFormatError(
        f"the module is larger than the limit of {max_size} bytes; raise the limit if it is genuine", "EFBIG"
    )


class _Output:
    """What came out so far; grows in place and never beyond the cap."""

    __slots__ = ("_max_size", "data")

    def __init__(self, max_size: int) -> None:
        self.data: bytes | bytearray = b""
        self._max_size = max_size

    def add(self, chunk: bytes) -> None:
        if len(self.data) + len(chunk) > self._max_size:
            raise _too_large(self._max_size)
        if not self.data:
            self.data = chunk  # as it is: most modules come out in one piece
            return
        if isinstance(self.data, bytes):
            self.data = bytearray(self.data)
        self.data += chunk


def _slices(data: BytesLike) -> Iterator[memoryview]:
    """The input in small pieces: decoders copy what they have not yet used of a piece."""
    view = memoryview(data)
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]


def _check_end(kind: str, stream: _Ended, rest: Iterator[memoryview]) -> None:
    if not stream.eof:
        raise _error(kind, "the stream is truncated")
    if stream.unused_data or next(rest, None) is not None:
        raise _second(kind)


def _gunzip(data: BytesLike, max_size: int) -> BytesLike:
    if len(data) < _GZIP_HEADER:
        raise _error("gzip", "the stream is truncated")
    if data[2] != _GZIP_DEFLATE or data[3] & ~_GZIP_FNAME:
        raise _error("gzip", f"flags {data[3]:#04x} or method {data[2]}; kernels read a file name at most")
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    out, pieces = _Output(max_size), _slices(data)
    try:
        for piece in pieces:
            pending: BytesLike = piece
            while pending and not stream.eof:
                out.add(stream.decompress(pending, _CHUNK))
                pending = stream.unconsumed_tail
            if stream.eof:
                break
    except zlib.error as error:
        raise _error("gzip", f"the stream is damaged ({error})") from error
    _check_end("gzip", stream, pieces)
    return out.data


def _decode(kind: str, stream: _Decoder, data: BytesLike, max_size: int) -> BytesLike:
    out, pieces = _Output(max_size), _slices(data)
    for piece in pieces:
        out.add(stream.decompress(piece, _CHUNK))
        while not (stream.eof or stream.needs_input):
            out.add(stream.decompress(b"", _CHUNK))
        if stream.eof:
            break
    _check_end(kind, stream, pieces)
    return out.data


def _unxz(data: BytesLike, max_size: int) -> BytesLike:
    stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY_LIMIT)
    try:
        return _decode("xz", stream, data, max_size)
    except lzma.LZMAError as error:
        raise _error("xz", f"the stream is damaged or needs too much memory ({error})") from error


if sys.version_info >= (3, 14):
    from compression import zstd

    def _unzstd(data: BytesLike, max_size: int) -> BytesLike:
        stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})
        try:
            return _decode("zstd", stream, data, max_size)
        except zstd.ZstdError as error:
            raise _error("zstd", f"the stream is damaged or needs too much memory ({error})") from error

else:

    def _unzstd(data: BytesLike, max_size: int) -> BytesLike:
        import zstandard  # noqa: PLC0415  # most modules are not compressed with it

        decoder = zstandard.ZstdDecompressor(max_window_size=_MEMORY_LIMIT)
        try:
            size = zstandard.get_frame_parameters(data).content_size
            # In one go nothing is looked at behind a stated size of zero.
            if size in {0, zstandard.CONTENTSIZE_UNKNOWN}:
                return _unzstd_unsized(decoder.decompressobj(read_across_frames=False), data, max_size)
            if size > max_size:
                raise _too_large(max_size)
            # In one go the output serves as the window: no second one stands beside it.
            return decoder.decompress(data, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            if "unused data" in str(error):
                raise _second("zstd") from error
            raise _error("zstd", f"the stream is damaged or needs too much memory ({error})") from error

    def _unzstd_unsized(stream: zstandard.ZstdDecompressionObj, data: BytesLike, max_size: int) -> BytesLike:
        out = _Output(max_size)
        view = memoryview(data)
        for start in range(0, len(view), _ZSTD_PIECE):
            if stream.eof:
                raise _second("zstd")
            out.add(stream.decompress(view[start : start + _ZSTD_PIECE]))
        _check_end("zstd", stream, iter(()))
        return out.data


_FORMATS: tuple[tuple[bytes, Callable[[BytesLike, int], BytesLike]], ...] = (
    (GZIP_MAGIC, _gunzip),
    (XZ_MAGIC, _unxz),
    (ZSTD_MAGIC, _unzstd),
)


def decompress(data: BytesLike, *, max_size: int) -> BytesLike:
    """Return the module's bytes: ``data`` itself when it is not compressed.

    Args:
        data: a whole ``.ko``, ``.ko.gz``, ``.ko.xz`` or ``.ko.zst`` file.
        max_size: most bytes that may come out, compressed or not.

    Raises:
        ModuleFormatError: EFBIG above ``max_size``; EINVAL for a truncated or damaged
            stream, for anything behind it, and for gzip fields other than the file name.
    """
    head = bytes(data[: len(XZ_MAGIC)])
    for magic, expand in _FORMATS:
        if head.startswith(magic):
            return expand(data, max_size)
    if len(data) > max_size:
        raise _too_large(max_size)
    return data
