# SPDX-License-Identifier: Apache-2.0
"""The strings by which a module names itself: ELF section ``.modinfo``.

This module reads no files, decompresses nothing and trusts nothing: a hostile ELF file
ends in ModuleFormatError, after a bounded amount of work. pyelftools decodes the
structures; its section walk costs milliseconds a file, so the section is found by its
name's offset in the section name table instead (a test compares the two).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, TypeAlias

from kmodgate.errors import ModuleFormatError
from kmodgate.model import ModuleInfo

BytesLike: TypeAlias = bytes | bytearray | memoryview

ELF_MAGIC = b"\x7fELF"
MODINFO = b".modinfo"
MAX_SECTIONS = 65536
MAX_MODINFO = 4 << 20
MAX_VALUE = 4096

_EHDR_SIZE = {1: 52, 2: 64}
_SHDR_SIZE = {1: 40, 2: 64}
_SHF_ALLOC = 2


@lru_cache(maxsize=4)
def _structs(elf_class: int, encoding: int) -> Any:
    """The structures of pyelftools for one class and byte order; building them is the dear part."""
    from elftools.elf.structs import ELFStructs  # noqa: PLC0415  # only when a file is looked at

    structs = ELFStructs(little_endian=encoding == 1, elfclass=32 * elf_class)
    structs.create_basic_structs()
    structs.create_advanced_structs()
    return structs


def _slice(view: memoryview, offset: int, size: int, what: str) -> memoryview:
    if offset + size > len(view):
        raise ModuleFormatError(
            f"ELF: {what} ends at byte {offset + size} of {len(view)}; the file is truncated, copy it again"
        )
    return view[offset : offset + size]


def _section(data: BytesLike) -> memoryview:
    """Find ``.modinfo`` the way the kernel does: the first allocated section of that name."""
    view = memoryview(data)
    if bytes(view[:4]) != ELF_MAGIC:
        raise ModuleFormatError("not an ELF file")
    elf_class, encoding = (view[4], view[5]) if len(view) > 5 else (0, 0)  # noqa: PLR2004  # EI_CLASS, EI_DATA
    if elf_class not in _EHDR_SIZE or encoding not in {1, 2}:
        raise ModuleFormatError("ELF: neither class nor byte order is known")
    structs = _structs(elf_class, encoding)
    header = structs.Elf_Ehdr.parse(bytes(_slice(view, 0, _EHDR_SIZE[elf_class], "the header")))
    count, entry = header["e_shnum"], _SHDR_SIZE[elf_class]
    if header["e_shentsize"] != entry or not 0 < count < MAX_SECTIONS or header["e_shstrndx"] >= count:
        raise ModuleFormatError("ELF: no usable section header table")
    table = _slice(view, header["e_shoff"], count * entry, "the section header table")

    def section(index: int) -> Any:
        return structs.Elf_Shdr.parse(bytes(table[index * entry : (index + 1) * entry]))

    names_header = section(header["e_shstrndx"])
    names = bytes(_slice(view, names_header["sh_offset"], names_header["sh_size"], "the section name table"))
    offsets = set()
    position = names.find(MODINFO + b"\0")
    while position >= 0:
        offsets.add(position)
        position = names.find(MODINFO + b"\0", position + 1)
    # sh_name is the first word of each entry.
    words = struct.iter_unpack(f"{'<' if encoding == 1 else '>'}I{entry - 4}x", table)
    for index, (name,) in enumerate(words):
        if name in offsets:
            found = section(index)
            if found["sh_flags"] & _SHF_ALLOC:
                if found["sh_size"] > MAX_MODINFO:
                    raise ModuleFormatError(f"ELF: .modinfo has {found['sh_size']} bytes")
                return _slice(view, found["sh_offset"], found["sh_size"], ".modinfo")
    raise ModuleFormatError("ELF: no .modinfo section; not a kernel module")


def modinfo(data: BytesLike) -> ModuleInfo:
    """Read the naming strings of a decompressed module.

    Returns:
        The first value of each key, at most 4,096 bytes of it; bytes that are not UTF-8
        are shown as backslash escapes.

    Raises:
        ModuleFormatError: ENOEXEC, with what is wrong with the ELF file and where.
    """
    try:
        strings = b"\0" + bytes(_section(data)) + b"\0"
    except ModuleFormatError:
        raise
    except Exception as error:  # a parser over hostile bytes: whatever it raises means the same
        raise ModuleFormatError(f"ELF: the headers cannot be decoded ({error})") from error
    return ModuleInfo(
        name=_value(strings, b"\0name="),
        version=_value(strings, b"\0version="),
        srcversion=_value(strings, b"\0srcversion="),
        vermagic=_value(strings, b"\0vermagic="),
    )


def _value(strings: bytes, key: bytes) -> str | None:
    start = strings.find(key)
    if start < 0:
        return None
    start += len(key)
    end = min(strings.index(b"\0", start), start + MAX_VALUE)
    return strings[start:end].decode("utf-8", "backslashreplace")
