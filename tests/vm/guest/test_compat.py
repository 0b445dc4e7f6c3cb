# SPDX-License-Identifier: Apache-2.0
"""``int 0x80`` from a 64-bit process: another way into the same two system calls."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

import pytest
from tests.vm import lab

_FINIT, _INIT = 350, 128  # arch/x86/entry/syscalls/syscall_32.tbl
_MAP_32BIT = 0x40  # the registers of int 0x80 hold 32 bits
_STUB = bytes.fromhex(
    "53"  # push rbx
    "89f8"  # mov eax, edi
    "89f3"  # mov ebx, esi
    "89d1"  # mov ecx, edx
    "4489c2"  # mov edx, r8d
    "cd80"  # int 0x80
    "5b"  # pop rbx
    "c3"  # ret
)


def low(data: bytes, protection: int = mmap.PROT_READ) -> tuple[mmap.mmap, int]:
    """Memory below 4 GiB with these bytes, and its address."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT
    memory = mmap.mmap(-1, len(data), flags, protection | mmap.PROT_READ | mmap.PROT_WRITE)
    memory.write(data)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def int80(number: int, first: int, second: int, third: int) -> str:
    """The name of the error, or ``ok``. Arguments: ebx, ecx, edx."""
    code, address = low(_STUB, mmap.PROT_EXEC)
    call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint] * 5)(address)
    result = call(number, first, second, 0, third)
    del call, code
    return "ok" if result == 0 else errno.errorcode[-result]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86 only")
def test_int_0x80_is_no_way_around(agent: lab.Agent, work: Path) -> None:
    unsigned = work / "kmgtest.unsigned.ko"
    before = lab.metrics()
    parameters, at = low(b"\0")
    fd = os.open(unsigned, os.O_RDONLY)
    assert int80(_FINIT, fd, at, 0) == "EKEYREJECTED"
    os.close(fd)
    event = agent.next_event()
    assert (event["api"], event["reason"], event["path"]) == ("finit_module", "unsigned", str(unsigned))
    data = unsigned.read_bytes()
    image, image_at = low(data)
    assert int80(_INIT, image_at, len(data), at) == "EKEYREJECTED"
    event = agent.next_event()
    assert (event["api"], event["reason"], event["size"]) == ("init_module", "unsigned", len(data))
    fd = os.open(lab.in_tree("dummy"), os.O_RDONLY)
    assert int80(_FINIT, fd, at, 0) == "ok"
    os.close(fd)
    assert agent.next_event()["by"] == "kernel"
    after = lab.metrics()
    assert lab.counted(after) - lab.counted(before) == 3
    assert after["kmodgate_module_load_attempts_total"] - before["kmodgate_module_load_attempts_total"] == 3
    del parameters, image
