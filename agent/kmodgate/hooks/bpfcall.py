# SPDX-License-Identifier: Apache-2.0
"""bpf(2) itself, for what the guard does with objects that no library handle exists of.

Pins and numbers of programs, maps and links, and programs on cgroups. Each function is one
command of the system call; every failure is a ``HookError`` with the command's name.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError

_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}
_ATTR_BYTES: Final = 128
_MAX_MAPS: Final = 64  # of one program
_MAX_VALUE: Final = 4096

# enum bpf_cmd, include/uapi/linux/bpf.h
_MAP_LOOKUP: Final = 1
_OBJ_PIN: Final = 6
_OBJ_GET: Final = 7
_PROG_ATTACH: Final = 8
_PROG_DETACH: Final = 9
_PROG_TEST_RUN: Final = 10
_PROG_FD_BY_ID: Final = 13
_OBJ_INFO: Final = 15
_LINK_FD_BY_ID: Final = 30

CGROUP_SYSCTL: Final = 18  # enum bpf_attach_type
_ALLOW_MULTI: Final = 2  # BPF_F_ALLOW_MULTI: programs of others stay, and so do ours


class BpfCallError(HookError):
    """bpf(2) failed; ``number`` is its errno."""

    def __init__(self, what: str, number: int) -> None:
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"{what}: {os.strerror(number)} ({name})")
        self.number = number


class _ProgInfo(ctypes.Structure):
    """``struct bpf_prog_info``, up to the name."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("_tag_to_load_time", ctypes.c_uint8 * 40),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
    )


class _LinkInfo(ctypes.Structure):
    """``struct bpf_link_info``, up to what depends on its type."""

    _fields_ = (("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("prog_id", ctypes.c_uint32))


def _call(what: str, command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    number = _SYS_BPF.get(os.uname().machine)
    if number is None:
        raise HookError(f"bpf(2) is not known for machine type {os.uname().machine}")
    buffer = (
        attributes
        if isinstance(attributes, ctypes.Array)
        else ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    )
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, command, buffer, ctypes.c_ulong(_ATTR_BYTES))
    if result < 0:
        raise BpfCallError(what, ctypes.get_errno())
    return result


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def pin(handle: int, path: Path) -> None:
    """Pin a map, program or link. The path must be new, and on a BPF file system."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _call(f"pin {path}", _OBJ_PIN, ctypes.addressof(name).to_bytes(8, "little") + _words(handle))


def pinned(path: Path) -> int:
    """A descriptor of what is pinned; the caller closes it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _call(f"open {path}", _OBJ_GET, ctypes.addressof(name).to_bytes(8, "little"))


def program_by_id(program: int) -> int:
    """A descriptor of a program; the caller closes it."""
    return _call(f"program {program}", _PROG_FD_BY_ID, _words(program))


def link_by_id(link: int) -> int:
    """A descriptor of a link; the caller closes it."""
    return _call(f"link {link}", _LINK_FD_BY_ID, _words(link))


def _info(handle: int, info: ctypes.Structure) -> None:
    place = ctypes.addressof(info).to_bytes(8, "little")
    _call("information on a BPF object", _OBJ_INFO, _words(handle, ctypes.sizeof(info)) + place)


def program_numbers(handle: int) -> tuple[int, tuple[int, ...]]:
    """The number of a program, and those of its maps."""
    maps = (ctypes.c_uint32 * _MAX_MAPS)()
    info = _ProgInfo(nr_map_ids=_MAX_MAPS, map_ids=ctypes.addressof(maps))
    _info(handle, info)
    if info.nr_map_ids > _MAX_MAPS:
        raise HookError(f"a program uses {info.nr_map_ids} maps; {_MAX_MAPS} can be guarded")
    return info.id, tuple(maps[: info.nr_map_ids])


def link_numbers(handle: int) -> tuple[int, int]:
    """The number of a link, and that of its program."""
    info = _LinkInfo()
    _info(handle, info)
    return info.id, info.prog_id


def run(handle: int, context: ctypes.Structure) -> int:
    """Run a ``syscall`` program once in this thread; its return value."""
    attributes = ctypes.create_string_buffer(
        _words(handle, 0, 0, 0)
        + bytes(16)
        + _words(0, 0, ctypes.sizeof(context), 0)
        + ctypes.addressof(context).to_bytes(8, "little"),
        _ATTR_BYTES,
    )
    _call("run a program", _PROG_TEST_RUN, attributes)
    return ctypes.c_int32.from_buffer_copy(attributes.raw, 4).value


def attach_to_cgroup(cgroup: int, program: int, kind: int) -> None:
    """Attach beside what others have attached. It stays until it is detached."""
    _call("attach to the root cgroup", _PROG_ATTACH, _words(cgroup, program, kind, _ALLOW_MULTI))


def detach_from_cgroup(cgroup: int, program: int, kind: int) -> None:
    """Detach one program."""
    _call("detach from the root cgroup", _PROG_DETACH, _words(cgroup, program, kind))


def first_value(handle: int) -> bytes:
    """Element 0 of an array, with zeros after it, 4096 bytes in all. Larger ones are not asked for."""
    key = ctypes.create_string_buffer(4)
    value = ctypes.create_string_buffer(_MAX_VALUE)
    _call(
        "read a map",
        _MAP_LOOKUP,
        _words(handle, 0)
        + ctypes.addressof(key).to_bytes(8, "little")
        + ctypes.addressof(value).to_bytes(8, "little"),
    )
    return value.raw
