# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system with one file, whose server decides at each read what the reader gets.

It speaks the kernel's protocol on /dev/fuse (include/uapi/linux/fuse.h) and tells readers
apart by their thread id. It stands for every file system that cannot promise that two reads
give the same bytes: FUSE itself, and network file systems whose servers lie.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.vm.attack import libc
from tests.vm.rawcalls import checked

NAME: Final = "module.ko"
HANG: Final = None
_ROOT, _FILE = 1, 2
_IN: Final = struct.Struct("<IIQQIIII")
_OUT: Final = struct.Struct("<IiQ")
_INIT: Final = struct.Struct("<IIIIHHIIHHI7I")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_READ: Final = struct.Struct("<QQI")
_DIRECT_IO: Final = 1
# Requests by number; no answer is due to FORGET, BATCH_FORGET and INTERRUPT.
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ_OP, _RELEASE = 1, 2, 3, 14, 15, 18
_FLUSH, _INIT_OP, _INTERRUPT, _DESTROY, _BATCH_FORGET = 25, 26, 36, 38, 42
_FORCE_AND_DETACH: Final = 1 | 2  # MNT_FORCE cuts the connection

# Bytes at an offset for a reader (its thread id); HANG for no answer, ever.
Serve = Callable[[int, int, int], bytes | None]


class _Server:
    def __init__(self, fd: int, size: int, serve: Serve) -> None:
        self._fd = fd
        self._size = size
        self._serve = serve
        self.reads: list[int] = []

    def _attributes(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o444
        size = 0 if node == _ROOT else self._size
        return _ATTR.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _reply(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        with suppress(FileNotFoundError):  # the reader was interrupted
            os.write(self._fd, _OUT.pack(_OUT.size + len(body), -error, unique) + body)

    def _read(self, reader: int, offset: int, size: int, unique: int) -> None:
        self.reads.append(reader)
        data = self._serve(reader, offset, size)
        if data is not HANG:
            self._reply(unique, data)

    def run(self) -> None:
        """Answer until the file system is unmounted."""
        while True:
            try:
                request = os.read(self._fd, 1 << 18)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.EINTR}:
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node, _, _, reader, _ = _IN.unpack_from(request)
            body = request[_IN.size :]
            if opcode == _READ_OP:
                _, offset, size = _READ.unpack_from(body)
                self._read(reader, offset, size, unique)
            elif opcode == _INIT_OP:
                self._reply(unique, _INIT.pack(7, 31, 1 << 17, 0, 8, 8, 1 << 17, 1, 32, 0, 0, *[0] * 7))
            elif opcode == _LOOKUP and body.rstrip(b"\0") == NAME.encode():
                self._reply(unique, struct.pack("<QQQQII", _FILE, 0, 0, 0, 0, 0) + self._attributes(_FILE))
            elif opcode == _LOOKUP:
                self._reply(unique, error=errno.ENOENT)
            elif opcode == _GETATTR:
                self._reply(unique, struct.pack("<QII", 0, 0, 0) + self._attributes(node))
            elif opcode == _OPEN:
                self._reply(unique, struct.pack("<QII", 1, _DIRECT_IO, 0))
            elif opcode in {_RELEASE, _FLUSH, _DESTROY}:
                self._reply(unique)
            elif opcode not in {_FORGET, _BATCH_FORGET, _INTERRUPT}:
                self._reply(unique, error=errno.ENOSYS)


@contextmanager
def mounted(directory: Path, size: int, serve: Serve) -> Iterator[Path]:
    """The file, mounted for the time of the block, with ``size`` bytes as ``stat`` tells it.

    At the end the connection is cut: a read that still hangs ends with an error.
    """
    directory.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    where = os.fsencode(directory)
    checked(libc.mount(b"kmgfuse", where, b"fuse", 0, options), "mount")
    thread = threading.Thread(target=_Server(fd, size, serve).run)
    thread.start()
    try:
        yield directory / NAME
    finally:
        checked(libc.umount2(where, _FORCE_AND_DETACH), "umount")
        thread.join()
        os.close(fd)


def whole(data: bytes) -> Serve:
    """An honest server."""
    return lambda _reader, offset, size: data[offset : offset + size]
