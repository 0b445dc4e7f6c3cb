# SPDX-License-Identifier: Apache-2.0
"""The kernel inside the file that a boot loader reads, as far as its bytes say where it is.

This module reads no files, runs no programs and searches for nothing: each container states where
its payload lies, so the work is one decompression. Output is capped while it is made.

Sources: ``Documentation/arch/x86/boot.rst`` (protocol 2.08, Linux 2.6.26, for the payload fields),
``Documentation/arch/arm64/booting.rst``, ``drivers/firmware/efi/libstub/zboot-header.S``,
``scripts/Makefile.lib`` (compressors), the UAPI specification of unified kernel images.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Protocol

from kmodgate.errors import ImageError

from .embedded import certificates

__all__ = ["DEFAULT_MAX_SIZE", "ELF_MAGIC", "certificates", "extract"]

ELF_MAGIC: Final = b"\x7fELF"
DEFAULT_MAX_SIZE: Final = 256 << 20
"""Above any distribution's kernel (48 to 66 MiB in Debian's), below what hurts."""

# The compressor's window, at most 128 MiB (xz_wrap.sh, zstd -22 --ultra), and its own tables.
_MEMORY_LIMIT = 192 << 20
_WINDOW_LOG_MAX = 27
# Four bytes make 128 KiB at most, so this much input makes no more than 128 MiB at once.
_ZSTD_INPUT = 4096
# A unified kernel image holds a bzImage, which holds an ELF file; nothing holds more.
_MAX_DEPTH = 3

_BZIMAGE_MAGIC, _BZIMAGE_AT = b"HdrS", 0x202
_BZIMAGE_PAYLOAD_VERSION = 0x208
_BZIMAGE_HEADER = 0x250
_SECTOR, _DEFAULT_SECTORS = 512, 4
# What the build appends to the payload: the uncompressed size.
_SIZE = struct.Struct("<I")
# arm64 and riscv: an uncompressed kernel with a header of its own.
_FLAT_AT, _FLAT_MAGICS = 0x38, (b"ARM\x64", b"RSC\x05")
_ZBOOT_MAGIC, _ZBOOT_AT = b"zimg", 4
_PE_SECTION = struct.Struct("<8sIIII")
_PE_SECTION_SIZE = 40

_PIECE, _OVERLAP, _ALIGNMENT = 1 << 20, 256 << 10, 8
_LZ4_LEGACY = 0x184C2102
_LZ4_BLOCK = 8 << 20
_LZ4_RATIO = 255


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Limit:
    """How much is wanted: see ``extract``."""

    most: int
    enough: Callable[[bytes], bool] | None


class _TooLarge(Exception):  # noqa: N818  # never leaves this module
    """More output than allowed."""


def _run(stream: _Stream, data: memoryview, limit: _Limit) -> bytes:
    """Decompress in pieces: in one, some of these objects hold the output twice in the end."""

    def pieces() -> Iterator[bytes]:
        yield stream.decompress(data, _PIECE)
        while not stream.eof:
            if stream.needs_input:
                raise EOFError("the stream is truncated")
            yield stream.decompress(b"", _PIECE)

    return _join(pieces(), limit)


def _gunzip(data: memoryview, limit: _Limit) -> bytes:
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    out = stream.decompress(data, limit.most + 1)
    if len(out) <= limit.most and not stream.eof:
        raise EOFError("the stream is truncated")
    return out


def _unxz(data: memoryview, limit: _Limit) -> bytes:
    return _run(lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY_LIMIT), data, limit)


def _unlzma(data: memoryview, limit: _Limit) -> bytes:
    return _run(lzma.LZMADecompressor(lzma.FORMAT_ALONE, _MEMORY_LIMIT), data, limit)


def _bunzip2(data: memoryview, limit: _Limit) -> bytes:
    return _run(bz2.BZ2Decompressor(), data, limit)


if sys.version_info >= (3, 14):
    from compression import zstd

    def _unzstd(data: memoryview, limit: _Limit) -> bytes:
        options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
        try:
            return _run(zstd.ZstdDecompressor(options=options), data, limit)
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from error

else:

    def _unzstd(data: memoryview, limit: _Limit) -> bytes:
        import zstandard  # noqa: PLC0415  # only when it is met

        stream = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG_MAX).decompressobj()

        def chunks() -> Iterator[bytes]:
            for position in range(0, len(data), _ZSTD_INPUT):
                if stream.eof:
                    return
                yield stream.decompress(data[position : position + _ZSTD_INPUT])
            if not stream.eof:
                raise EOFError("the stream is truncated")

        try:
            return _join(chunks(), limit)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error


def _unlz4(data: memoryview, limit: _Limit) -> bytes:
    """The legacy frame: blocks of at most 8 MiB, each behind its compressed length."""
    try:
        from lz4 import block  # noqa: PLC0415  # an optional extra
    except ModuleNotFoundError as error:
        raise ImageError(
            "compressed with lz4, which needs the Python package lz4: pip install 'kmodgate[lz4]'"
        ) from error

    def blocks() -> Iterator[bytes]:
        position = 4
        # What is left in the end is the size that the kernel's build appends.
        while position + 4 < len(data):
            (size,) = struct.unpack_from("<I", data, position)
            position += 4
            if size == _LZ4_LEGACY:
                continue
            piece = data[position : position + size]
            if len(piece) < size:
                raise EOFError("the stream is truncated")
            try:
                yield block.decompress(piece, uncompressed_size=min(_LZ4_BLOCK, _LZ4_RATIO * (size + 1)))
            except block.LZ4BlockError as error:
                raise ValueError(str(error)) from error
            position += size

    return _join(blocks(), limit)


def _join(chunks: Iterator[bytes], limit: _Limit) -> bytes:
    """All chunks; grows in place, so that they are never held twice."""
    found = BytesIO()
    shown = 0
    for chunk in chunks:
        if found.tell() + len(chunk) > limit.most:
            raise _TooLarge
        found.write(chunk)
        if limit.enough is not None and found.tell() - shown >= _PIECE:
            with found.getbuffer() as view:
                newest = bytes(view[max(0, shown - _OVERLAP) & -_ALIGNMENT :])
            if limit.enough(newest):
                break
            shown = found.tell()
    return found.getvalue()


_COMPRESSIONS: Final[tuple[tuple[str, bytes, Callable[[memoryview, _Limit], bytes]], ...]] = (
    ("xz", b"\xfd7zXZ\x00", _unxz),
    ("zstd", b"\x28\xb5\x2f\xfd", _unzstd),
    ("gzip", b"\x1f\x8b\x08", _gunzip),
    ("lz4", struct.pack("<I", _LZ4_LEGACY), _unlz4),
    ("bzip2", b"BZh", _bunzip2),
    ("lzma", b"\x5d\x00\x00", _unlzma),
)
_NAMES = ", ".join(name for name, _, _ in _COMPRESSIONS)


def extract(
    image: bytes, *, max_size: int = DEFAULT_MAX_SIZE, enough: Callable[[bytes], bool] | None = None
) -> bytes:
    """The uncompressed kernel of a ``vmlinuz``, ``bzImage``, ``Image.gz`` or unified kernel image.

    Args:
        image: the whole file.
        max_size: most bytes that may come out.
        enough: asked while the kernel grows, with its newest part and the 256 KiB before that,
            from a multiple of eight on. Once it says yes the rest may be left out, and what
            only the end of a stream shows (its checksum and length) is not looked at.

    Returns:
        An ELF file, or on arm64 and riscv the flat ``Image``; ``image`` itself when it is one.

    Raises:
        ImageError: no kernel image, one that is damaged, or one above ``max_size``.
    """
    data, limit = memoryview(image), _Limit(max_size, enough)
    for _ in range(_MAX_DEPTH):
        if _is_kernel(data):
            if len(data) > max_size:
                raise _above(max_size)
            whole = data.obj
            return whole if isinstance(whole, bytes) and len(whole) == len(data) else bytes(data)
        data = _inside(data, limit)
    raise ImageError("containers within containers, and no kernel in the innermost")


def _has(data: memoryview, at: int, magic: bytes) -> bool:
    return bytes(data[at : at + len(magic)]) == magic


def _is_kernel(data: memoryview) -> bool:
    return _has(data, 0, ELF_MAGIC) or any(_has(data, _FLAT_AT, magic) for magic in _FLAT_MAGICS)


def _inside(data: memoryview, limit: _Limit) -> memoryview:
    """What one container holds."""
    if _has(data, _BZIMAGE_AT, _BZIMAGE_MAGIC):
        return _bzimage(data, limit)
    if _has(data, 0, b"MZ") and _has(data, _ZBOOT_AT, _ZBOOT_MAGIC):
        return _zboot(data, limit)
    if _has(data, 0, b"MZ") and (linux := _pe_section(data, b".linux")) is not None:
        return linux
    expanded = _expand("the file", data, limit)
    if expanded is None:
        raise ImageError(
            "not a kernel image: neither ELF, bzImage (x86), Image (arm64, riscv), EFI zboot nor a unified "
            f"kernel image, and not compressed with {_NAMES} (it begins with {data[:4].hex() or 'nothing'})"
        )
    return expanded


def _bzimage(data: memoryview, limit: _Limit) -> memoryview:
    header = bytes(data[:_BZIMAGE_HEADER]).ljust(_BZIMAGE_HEADER, b"\0")
    (version,) = struct.unpack_from("<H", header, 0x206)
    if version < _BZIMAGE_PAYLOAD_VERSION:
        raise ImageError(
            f"bzImage: boot protocol {version:#06x} does not say where the kernel lies (2.08 does)"
        )
    offset, length = struct.unpack_from("<II", header, 0x248)
    start = ((header[0x1F1] or _DEFAULT_SECTORS) + 1) * _SECTOR + offset
    payload = data[start : start + length]
    if length < _SIZE.size or len(payload) < length:
        raise ImageError(
            f"bzImage: the payload ({length} bytes at {start}) lies outside the file; is it cut off?"
        )
    if _is_kernel(payload):  # CONFIG_KERNEL_UNCOMPRESSED
        return payload
    expanded = _expand("bzImage", payload, limit)
    if expanded is None:
        raise ImageError(
            f"bzImage: its payload is not compressed with {_NAMES} (it begins with {payload[:4].hex()})"
        )
    (stated,) = _SIZE.unpack_from(payload, length - _SIZE.size)
    left_out = limit.enough is not None and len(expanded) < stated
    if stated != len(expanded) and not left_out:
        raise ImageError(f"bzImage: {stated} bytes are stated and {len(expanded)} came out; is it damaged?")
    return expanded


def _zboot(data: memoryview, limit: _Limit) -> memoryview:
    offset, length = struct.unpack_from("<II", bytes(data[:16]).ljust(16, b"\0"), 8)
    payload = data[offset : offset + length]
    if length < _SIZE.size or len(payload) < length:
        raise ImageError(f"EFI zboot: the payload ({length} bytes at {offset}) lies outside the file")
    expanded = _expand("EFI zboot", payload, limit)
    if expanded is None:
        raise ImageError(f"EFI zboot: its payload is not compressed with {_NAMES}")
    return expanded


def _pe_section(data: memoryview, name: bytes) -> memoryview | None:
    """A section of a PE file by name; None where there is none."""
    try:
        (at,) = struct.unpack_from("<I", data, 0x3C)
        if not _has(data, at, b"PE\0\0"):
            return None
        (count,) = struct.unpack_from("<H", data, at + 6)
        (optional,) = struct.unpack_from("<H", data, at + 20)
        table = at + 24 + optional
        for position in range(table, table + count * _PE_SECTION_SIZE, _PE_SECTION_SIZE):
            found, size, _, raw_size, raw = _PE_SECTION.unpack_from(data, position)
            if found.rstrip(b"\0") == name:
                return data[raw : raw + min(size, raw_size)]
    except struct.error:
        return None
    return None


def _expand(where: str, data: memoryview, limit: _Limit) -> memoryview | None:
    """Decompress by magic; None when it is that of no known compression."""
    for name, magic, decompress in _COMPRESSIONS:
        if not _has(data, 0, magic):
            continue
        try:
            out = decompress(data, limit)
        except _TooLarge:
            raise _above(limit.most) from None
        except (ValueError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise ImageError(
                f"{where}: its {name} stream cannot be read ({error}); is it damaged?"
            ) from error
        if len(out) > limit.most:
            raise _above(limit.most)
        return memoryview(out)
    return None


def _above(max_size: int) -> ImageError:
    return ImageError(
        f"the kernel is larger than the limit of {max_size} bytes; raise --max-size if it is genuine"
    )
