# SPDX-License-Identifier: Apache-2.0
"""Attacks on kmodgate's off switches, as a root user makes them: commands, and bpf(2) by hand."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PINS = Path("/sys/fs/bpf/kmodgate")
FTRACE = Path("/proc/sys/kernel/ftrace_enabled")

_LIBC = ctypes.CDLL(None, use_errno=True)
_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]

# enum bpf_cmd: how to list the numbers of a kind, and how to open one by its number.
KINDS = {"map": (12, 14), "program": (11, 13), "link": (31, 30)}
OBJ_GET = 7
OBJ_INFO = 15
LINK_DETACH = 34


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    status: int
    said: str


def sh(command: str, *, timeout: float = 60) -> Ran:
    """A shell command as root."""
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True, timeout=timeout)
    return Ran(done.returncode, (done.stdout + done.stderr).strip())


def python(code: str, *arguments: object) -> Ran:
    """A Python script in a process of its own; what it prints, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=False, capture_output=True, text=True
    )
    return Ran(done.returncode, (done.stdout + done.stderr).strip())


def bpf(command: int, attributes: bytes) -> int | str:
    """bpf(2): its result, or the errno's name."""
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = _LIBC.syscall(_BPF, command, buffer, ctypes.c_ulong(128))
    if result < 0:
        return errno.errorcode[ctypes.get_errno()]
    if command not in {number for pair in KINDS.values() for number in pair[:1]}:
        return int(result)
    return int.from_bytes(buffer.raw[4:8], "little")


def numbers(kind: str) -> set[int]:
    """Numbers of all maps, programs or links of the kernel."""
    found: set[int] = set()
    at = 0
    while isinstance(following := bpf(KINDS[kind][0], at.to_bytes(4, "little")), int):
        found.add(at := following)
    return found


def open_number(kind: str, number: int) -> str:
    """Open one by its number: ``"ok"`` or the errno's name."""
    return _closed(bpf(KINDS[kind][1], number.to_bytes(4, "little")))


def map_name(number: int) -> str:
    """Name of a map that can be opened (``struct bpf_map_info``)."""
    handle = bpf(KINDS["map"][1], number.to_bytes(4, "little"))
    assert isinstance(handle, int)
    info = ctypes.create_string_buffer(80)
    place = ctypes.addressof(info).to_bytes(8, "little")
    try:
        assert bpf(OBJ_INFO, handle.to_bytes(4, "little") + (80).to_bytes(4, "little") + place) == 0
    finally:
        os.close(handle)
    return info.raw[24:40].partition(b"\0")[0].decode()


def write(path: Path, data: bytes) -> str:
    """One write(2): ``"ok"`` or the errno's name."""
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, data)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(handle)
    return "ok"


def open_pin(path: Path) -> str:
    """Open what is pinned: ``"ok"`` or the errno's name."""
    return _closed(_pinned(path))


def detach_pinned_link(path: Path) -> str:
    """``BPF_LINK_DETACH`` on a pinned link: ``"ok"`` or the errno's name."""
    handle = _pinned(path)
    if isinstance(handle, str):
        return handle
    try:
        result = bpf(LINK_DETACH, handle.to_bytes(4, "little"))
    finally:
        os.close(handle)
    return "ok" if isinstance(result, int) else result


def _pinned(path: Path) -> int | str:
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(OBJ_GET, ctypes.addressof(name).to_bytes(8, "little"))


def _closed(result: int | str) -> str:
    if isinstance(result, str):
        return result
    os.close(result)
    return "ok"


ATTACH = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
if libc.ptrace(16, pid, None, None) < 0:  # PTRACE_ATTACH
    print(errno.errorcode[ctypes.get_errno()])
    sys.exit(1)
"""

WRITE_MEMORY = """
import errno, re, sys
pid = sys.argv[1]
address = int(re.search(r"^([0-9a-f]+)-", open(f"/proc/{pid}/maps").read())[1], 16)
try:
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.read(4)
except OSError as error:
    print(errno.errorcode[error.errno])
    sys.exit(1)
"""

STEAL_DESCRIPTOR = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
handle = os.pidfd_open(int(sys.argv[1]))
if libc.syscall(438, handle, 1, 0) < 0:  # pidfd_getfd
    print(errno.errorcode[ctypes.get_errno()])
    sys.exit(1)
"""
