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
from collections.abc import Callable
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
# Memory beside the output. xz -9 needs 65 MiB; the kernel's zstd stops at this window.
_WINDOW_LOG_MAX = 27
_MEMORY_LIMIT = 1 << _WINDOW_LOG_MAX


class _Decompressor(Protocol):
    """What zlib's, lzma's and compression.zstd's objects have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def _error(kind: str, problem: str) -> ModuleFormatError:
    return ModuleFormatError(f"{kind}: {problem}; compress the module again", "EINVAL")


def _too_large(max_size: int) -> ModuleFormatError:
    return ModuleFormatError(
        f"the module is larger than the limit of {max_size} bytes; raise the limit if it is genuine", "EFBIG"
    )


def _collect(pull: Callable[[], bytes], max_size: int) -> bytearray:
    """Gather output until a pull gives nothing; grows in place, one chunk ahead at most."""
    out = bytearray()
    while chunk := pull():
        if len(out) + len(chunk) > max_size:
            raise _too_large(max_size)
        out += chunk
    return out


def _check_end(kind: str, stream: _Decompressor) -> None:
    if not stream.eof:
        raise _error(kind, "the stream is truncated")
    if stream.unused_data:
        raise _error(kind, "bytes or a second stream follow the first one, which kernels read differently")


def _gunzip(data: BytesLike, max_size: int) -> bytearray:
    if len(data) < _GZIP_HEADER:
        raise _error("gzip", "the stream is truncated")
    if data[2] != _GZIP_DEFLATE or data[3] & ~_GZIP_FNAME:
        raise _error("gzip", f"flags {data[3]:#04x} or method {data[2]}; kernels read a file name at most")
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    pending: BytesLike = data

    def pull() -> bytes:
        nonlocal pending
        if stream.eof:
            return b""
        chunk = stream.decompress(pending, _CHUNK)
        pending = stream.unconsumed_tail
        return chunk

    try:
        out = _collect(pull, max_size)
    except zlib.error as error:
        raise _error("gzip", f"the stream is damaged ({error})") from error
    _check_end("gzip", stream)
    return out


def _unxz(data: BytesLike, max_size: int) -> bytearray:
    stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY_LIMIT)
    pending: BytesLike = data

    def pull() -> bytes:
        nonlocal pending
        while not stream.eof:
            chunk = stream.decompress(pending, max_length=_CHUNK)
            pending = b""
            if chunk or stream.needs_input:
                return chunk
        return b""

    try:
        out = _collect(pull, max_size)
    except lzma.LZMAError as error:
        raise _error("xz", f"the stream is damaged or needs too much memory ({error})") from error
    _check_end("xz", stream)
    return out


if sys.version_info >= (3, 14):
    from compression import zstd

    def _unzstd(data: BytesLike, max_size: int) -> bytearray:
        stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})
        pending: BytesLike = data

        def pull() -> bytes:
            nonlocal pending
            while not stream.eof:
                chunk = stream.decompress(pending, max_length=_CHUNK)
                pending = b""
                if chunk or stream.needs_input:
                    return chunk
            return b""

        try:
            out = _collect(pull, max_size)
        except zstd.ZstdError as error:
            raise _error("zstd", f"the stream is damaged or needs too much memory ({error})") from error
        _check_end("zstd", stream)
        return out

else:

    def _unzstd(data: BytesLike, max_size: int) -> bytearray:
        import zstandard  # noqa: PLC0415  # most modules are not compressed with it

        view = memoryview(data)
        try:
            end = _zstd_frame_end(
                zstandard.frame_header_size(view), zstandard.get_frame_parameters(view), view
            )
            if end < len(view):
                raise _error(
                    "zstd", "bytes or a second frame follow the first, which kernels read differently"
                )
            decompressor = zstandard.ZstdDecompressor(max_window_size=_MEMORY_LIMIT)
            with decompressor.stream_reader(view, read_across_frames=False) as reader:
                return _collect(lambda: reader.read(_CHUNK), max_size)
        except zstandard.ZstdError as error:
            raise _error("zstd", f"the stream is damaged or needs too much memory ({error})") from error

    def _zstd_frame_end(start: int, parameters: zstandard.FrameParameters, view: memoryview) -> int:
        """Offset behind the first frame, from its block headers (RFC 8878 section 3.1.1.2).

        ``zstandard`` can bound its output or tell where a frame ends, but not both.
        """
        position, last = start, False
        while not last:
            header = int.from_bytes(view[position : position + 3], "little")
            last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
            position += 3 + (1 if kind == 1 else size)
            if position > len(view):
                raise _error("zstd", "the stream is truncated")
        position += 4 if parameters.has_checksum else 0
        if position > len(view):
            raise _error("zstd", "the stream is truncated")
        return position


_FORMATS: tuple[tuple[bytes, Callable[[BytesLike, int], bytearray]], ...] = (
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
