# SPDX-License-Identifier: Apache-2.0
"""The strings by which a module names itself: ELF section ``.modinfo``.

This module reads no files, decompresses nothing and trusts nothing: a hostile ELF file
ends in ModuleFormatError, after a bounded amount of work. pyelftools knows the
structures; parsing through it costs milliseconds a file, so its descriptions are compiled
into ``struct`` formats once (a test compares the result with its own walk).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from kmodgate.errors import ModuleFormatError
from kmodgate.model import ModuleInfo

BytesLike: TypeAlias = bytes | bytearray | memoryview

ELF_MAGIC = b"\x7fELF"
MODINFO = b".modinfo\0"
MAX_SECTIONS = 65536
MAX_NAMES = 1 << 20
MAX_MODINFO = 4 << 20
# The agent remembers thousands of reports: a value must not make it grow.
MAX_VALUE = 256

_SHF_ALLOC = 2
_EI_CLASS, _EI_DATA, _EI_NIDENT = 4, 5, 16
_ORDER = {1: "<", 2: ">"}
_BITS = {1: 32, 2: 64}
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True)
class _Layout:
    """The few fields that are read, of one ELF class and byte order.

    Attributes:
        ehdr: e_shoff, e_shentsize, e_shnum, e_shstrndx.
        shdr: sh_name, sh_flags, sh_offset, sh_size.
    """

    ehdr: struct.Struct
    shdr: struct.Struct


def _pick(construct: Any, order: str, fields: frozenset[str]) -> struct.Struct:
    """Compile a pyelftools structure into a ``struct`` that skips all other fields."""
    sizes = ((field.name, field.sizeof()) for field in construct.subcons)
    return struct.Struct(
        order + "".join(_CODES[size] if name in fields else f"{size}x" for name, size in sizes)
    )


@lru_cache(maxsize=4)
def _layout(elf_class: int, encoding: int) -> _Layout:
    from elftools.elf.structs import ELFStructs  # noqa: PLC0415  # only when a file is looked at

    structs = ELFStructs(little_endian=encoding == 1, elfclass=_BITS[elf_class])
    structs.create_basic_structs()
    structs.create_advanced_structs()
    order = _ORDER[encoding]
    return _Layout(
        ehdr=_pick(structs.Elf_Ehdr, order, frozenset({"e_shoff", "e_shentsize", "e_shnum", "e_shstrndx"})),
        shdr=_pick(structs.Elf_Shdr, order, frozenset({"sh_name", "sh_flags", "sh_offset", "sh_size"})),
    )


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
    if len(view) < _EI_NIDENT or view[_EI_CLASS] not in _BITS or view[_EI_DATA] not in _ORDER:
        raise ModuleFormatError("ELF: class or byte order is not known; the header is damaged")
    layout = _layout(view[_EI_CLASS], view[_EI_DATA])
    shdr = layout.shdr
    fields = layout.ehdr.unpack(_slice(view, 0, layout.ehdr.size, "the header"))
    table_offset, entry_size, count, names_index = fields
    if entry_size != shdr.size or not 0 < count < MAX_SECTIONS or names_index >= count:
        raise ModuleFormatError("ELF: the section header table cannot be used; the header is damaged")
    table = _slice(view, table_offset, count * shdr.size, "the section header table")
    _, _, offset, size = shdr.unpack_from(table, names_index * shdr.size)
    if size > MAX_NAMES:
        raise ModuleFormatError(f"ELF: the section name table has {size} bytes; the header is damaged")
    names = bytes(_slice(view, offset, size, "the section name table"))
    # A name may be the tail of a longer one, so its text can stand more than once.
    wanted = set()
    position = names.find(MODINFO)
    while position >= 0:
        wanted.add(position)
        position = names.find(MODINFO, position + 1)
    for name, flags, offset, size in shdr.iter_unpack(table):
        if name in wanted and flags & _SHF_ALLOC:
            if size > MAX_MODINFO:
                raise ModuleFormatError(f"ELF: .modinfo has {size} bytes; the header is damaged")
            return _slice(view, offset, size, ".modinfo")
    raise ModuleFormatError("ELF: no .modinfo section; not a kernel module")


def modinfo(data: BytesLike) -> ModuleInfo:
    """Read the naming strings of a decompressed module.

    Returns:
        The first value of each key, at most 256 bytes of it; bytes that are not UTF-8
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
