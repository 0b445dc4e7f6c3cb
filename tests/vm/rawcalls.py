# SPDX-License-Identifier: Apache-2.0
"""Ways into the kernel that Python does not offer: io_uring, ``int 0x80``, userfaultfd. x86-64 only."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self

from tests.vm.attack import libc
from tests.vm.lab import Loaded

PAGE: Final = mmap.PAGESIZE


def checked(result: int, what: str) -> int:
    """The result of a system call, or its error as an OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def address_of(memory: mmap.mmap) -> int:
    """Where a mapping lies; it must outlive the use of the number."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


# io_uring, numbers from include/uapi/linux/io_uring.h

_SETUP, _ENTER = 425, 426
_OFF_SQES: Final = 0x10000000
_GETEVENTS: Final = 1
_OPENAT, _WRITE = 18, 23
_PARAMS: Final = struct.Struct("<10I 8IQ 8IQ")  # then sq_off and cq_off, of eight words and an address each
_SQE: Final = struct.Struct("<BBHiQQIIQHHI16x")
_CQE: Final = struct.Struct("<QiI")
_AT_FDCWD: Final = -100


class Ring:
    """An io_uring for one request at a time."""

    def __init__(self) -> None:
        params = ctypes.create_string_buffer(_PARAMS.size)
        self._fd = checked(libc.syscall(_SETUP, 4, params), "io_uring_setup")
        fields = _PARAMS.unpack(params.raw)
        entries, cq_entries = fields[0], fields[1]
        self._sq, self._cq = fields[10:18], fields[19:27]
        # IORING_FEAT_SINGLE_MMAP (5.4): both rings in one mapping.
        size = max(self._sq[6] + 4 * entries, self._cq[5] + _CQE.size * cq_entries)
        self._rings = mmap.mmap(self._fd, size, flags=mmap.MAP_SHARED)
        self._sqes = mmap.mmap(self._fd, _SQE.size * entries, flags=mmap.MAP_SHARED, offset=_OFF_SQES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sqes.close()
        self._rings.close()
        os.close(self._fd)

    def _word(self, at: int) -> int:
        return int.from_bytes(self._rings[at : at + 4], "little")

    def _submit(self, sqe: bytes) -> int:
        tail, mask = self._word(self._sq[1]), self._word(self._sq[2])
        index = tail & mask
        self._sqes[index * _SQE.size : (index + 1) * _SQE.size] = sqe
        array = self._sq[6] + 4 * index
        self._rings[array : array + 4] = index.to_bytes(4, "little")
        self._rings[self._sq[1] : self._sq[1] + 4] = (tail + 1).to_bytes(4, "little")
        checked(libc.syscall(_ENTER, self._fd, 1, 1, _GETEVENTS, None, 0), "io_uring_enter")
        head = self._word(self._cq[0])
        at = self._cq[5] + _CQE.size * (head & self._word(self._cq[2]))
        _, result, _ = _CQE.unpack(self._rings[at : at + _CQE.size])
        self._rings[self._cq[0] : self._cq[0] + 4] = (head + 1).to_bytes(4, "little")
        if result < 0:
            raise OSError(-result, os.strerror(-result), "io_uring request")
        return int(result)

    def open(self, path: bytes, flags: int) -> int:
        """``openat`` done by the ring; a descriptor of the calling process."""
        name = ctypes.create_string_buffer(path)
        where = ctypes.addressof(name)
        return self._submit(_SQE.pack(_OPENAT, 0, 0, _AT_FDCWD, 0, where, 0, flags, 0, 0, 0, 0))

    def write(self, fd: int, data: bytes, offset: int) -> int:
        """``pwrite`` done by the ring."""
        buffer = ctypes.create_string_buffer(data)
        where = ctypes.addressof(buffer)
        return self._submit(_SQE.pack(_WRITE, 0, 0, fd, offset, where, len(data), 0, 0, 0, 0, 0))


# The 32-bit way in, from a 64-bit process

_MAP_32BIT: Final = 0x40
_FINIT_32, _INIT_32 = 350, 128
X32_BIT: Final = 0x40000000
# push rbx; mov eax, edi; mov ebx, esi; xchg edx, ecx; int 0x80; pop rbx; ret
_GATE: Final = bytes.fromhex("53 89f8 89f3 87ca cd80 5b c3")


def _low(size: int, protection: int) -> mmap.mmap:
    """Memory whose address fits into 32 bits."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT
    return mmap.mmap(-1, max(size, 1), flags=flags, prot=protection)


class Int80:
    """``int 0x80``: the kernel's 32-bit system call table."""

    def __init__(self) -> None:
        self._code = _low(len(_GATE), mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(_GATE)
        kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint] * 4)
        self._gate = kind(address_of(self._code))
        self._text = _low(1, mmap.PROT_READ | mmap.PROT_WRITE)

    def _call(self, number: int, *arguments: int) -> Loaded:
        start = time.perf_counter()
        result = self._gate(number, *arguments)
        micros = (time.perf_counter() - start) * 1e6
        return Loaded("ok" if result == 0 else errno.errorcode[-result], micros)

    def finit(self, fd: int, flags: int = 0) -> Loaded:
        """``finit_module(2)``."""
        return self._call(_FINIT_32, fd, address_of(self._text), flags)

    def init(self, data: bytes) -> Loaded:
        """``init_module(2)``."""
        memory = _low(len(data), mmap.PROT_READ | mmap.PROT_WRITE)
        memory.write(data)
        return self._call(_INIT_32, address_of(memory), len(data), address_of(self._text))


# userfaultfd, numbers from include/uapi/linux/userfaultfd.h

_USERFAULTFD: Final = 323
_API, _REGISTER, _COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03
_PAGEFAULT: Final = 0x12


@contextmanager
def faulting(size: int, page_for: Callable[[int, int], bytes]) -> Iterator[mmap.mmap]:
    """Memory whose pages are made when they are read: ``page_for(page, how many were made before)``.

    ``madvise(MADV_DONTNEED)`` throws pages away, so that the next reader gets others. Only the
    kernel may read it: Python would hold its lock while it waits for the thread that makes pages.
    """
    fd = checked(libc.syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK), "userfaultfd")
    over = threading.Event()
    memory = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = address_of(memory)
    fcntl.ioctl(fd, _API, struct.pack("QQQ", 0xAA, 0, 0))
    fcntl.ioctl(fd, _REGISTER, struct.pack("QQQQ", base, len(memory), 1, 0))

    def serve() -> None:
        made = 0
        while not over.is_set():
            try:
                message = os.read(fd, 32)
            except BlockingIOError:
                time.sleep(0.0005)
                continue
            kind, address = message[0], int.from_bytes(message[16:24], "little")
            if kind != _PAGEFAULT:
                continue
            page = (address - base) // PAGE
            source = ctypes.create_string_buffer(page_for(page, made).ljust(PAGE, b"\0"), PAGE)
            where = base + page * PAGE
            try:
                fcntl.ioctl(fd, _COPY, struct.pack("QQQQq", where, ctypes.addressof(source), PAGE, 0, 0))
            except (FileExistsError, BlockingIOError):
                continue  # somebody was faster, or the mapping is changing: the reader asks again
            made += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()
        os.close(fd)
