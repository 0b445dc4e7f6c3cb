# SPDX-License-Identifier: Apache-2.0
"""A tracefs in a folder: format files as Linux 6.1 has them, pages as its ring buffer writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

DATA = 4080
COMMON = (
    "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
    "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
    "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
    "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
)
HEADER_PAGE = (
    "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
    f"\tfield: char data;\toffset:16;\tsize:{DATA};\tsigned:1;\n"
)


def call(name: str, number: int, fields: str) -> str:
    return f'name: {name}\nID: {number}\nformat:\n{COMMON}{fields}\nprint fmt: "x"\n'


NUMBER = "\tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;\n"
EXIT = NUMBER + "\tfield:long ret;\toffset:16;\tsize:8;\tsigned:1;\n"
FORMATS = {
    "syscalls/sys_enter_finit_module": call(
        "sys_enter_finit_module",
        301,
        NUMBER + "\tfield:int fd;\toffset:16;\tsize:8;\tsigned:0;\n"
        "\tfield:const char * uargs;\toffset:24;\tsize:8;\tsigned:0;\n"
        "\tfield:int flags;\toffset:32;\tsize:8;\tsigned:0;\n",
    ),
    "syscalls/sys_exit_finit_module": call("sys_exit_finit_module", 302, EXIT),
    "syscalls/sys_enter_init_module": call(
        "sys_enter_init_module",
        303,
        NUMBER + "\tfield:void * umod;\toffset:16;\tsize:8;\tsigned:0;\n"
        "\tfield:unsigned long len;\toffset:24;\tsize:8;\tsigned:0;\n"
        "\tfield:const char * uargs;\toffset:32;\tsize:8;\tsigned:0;\n",
    ),
    "syscalls/sys_exit_init_module": call("sys_exit_init_module", 304, EXIT),
    "module/module_load": call(
        "module_load",
        305,
        "\tfield:unsigned int taints;\toffset:8;\tsize:4;\tsigned:0;\n"
        "\tfield:__data_loc char[] name;\toffset:12;\tsize:4;\tsigned:0;\n",
    ),
}


def head(number: int, pid: int) -> bytes:
    return struct.pack("=HBBi", number, 0, 0, pid)


def enter_finit(pid: int, fd: int, flags: int = 0) -> bytes:
    return head(301, pid) + struct.pack("=iiqqq", 313, 0, fd, 0x7FFF0000, flags)


def exit_finit(pid: int, result: int) -> bytes:
    return head(302, pid) + struct.pack("=iiq", 313, 0, result)


def enter_init(pid: int, address: int, length: int) -> bytes:
    return head(303, pid) + struct.pack("=iiqqq", 175, 0, address, length, 0)


def exit_init(pid: int, result: int) -> bytes:
    return head(304, pid) + struct.pack("=iiq", 175, 0, result)


def module_load(pid: int, name: bytes, taints: int) -> bytes:
    text = name + b"\0"
    return head(305, pid) + struct.pack("=II", taints, len(text) << 16 | 16) + text


def event(data: bytes, delta: int = 0, *, long: bool = False) -> bytes:
    """A record as it lies in a page, after ``delta`` nanoseconds."""
    padded = data + bytes(-len(data) % 4)
    if long or len(padded) > 28 * 4:
        return struct.pack("=II", delta << 5, len(padded) + 4) + padded
    return struct.pack("=I", delta << 5 | len(padded) // 4) + padded


def page(records: Iterable[bytes], stamp: int, *, lost: int | None = 0, size: int = DATA) -> bytes:
    body = b"".join(records)
    commit = len(body)
    tail = b""
    if lost is None:
        commit |= 1 << 31
    elif lost:
        commit |= 1 << 31 | 1 << 30
        tail = struct.pack("=Q", lost)
    data = body + tail
    assert len(data) <= size
    return struct.pack("=QQ", stamp, commit) + data + bytes(size - len(data))


def tracefs(sys: Path, cpus: int = 2) -> Path:
    """The files of a tracefs below ``sys``; an instance's are made by ``furnish``."""
    tracing = sys / "kernel/tracing"
    (tracing / "instances").mkdir(parents=True)
    (tracing / "trace_clock").write_text("[local] global mono\n")
    (tracing / "events").mkdir()
    (tracing / "events/header_page").write_text(HEADER_PAGE)
    for name, text in FORMATS.items():
        (tracing / "events" / name).mkdir(parents=True)
        (tracing / "events" / name / "format").write_text(text)
    (tracing / "cpus").write_text(str(cpus))
    return tracing
