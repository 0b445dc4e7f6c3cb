# SPDX-License-Identifier: Apache-2.0
"""Events in a file that is rotated: by size here, or by logrotate(8) and its like.

Before each batch the name is looked up again. A file that was renamed or removed is let go of
and a new one is made, so whoever rotates need not tell the agent; SIGHUP does it at once all
the same. One that was cut to nothing (``copytruncate``) goes on at its new end (O_APPEND).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .sink import Delivery, Patience

_MODE: Final = 0o600
_FLAGS: Final = (
    os.O_RDWR  # to see how the file ends
    | os.O_APPEND
    | os.O_CREAT
    | os.O_CLOEXEC
    | os.O_NOFOLLOW  # a link in its place would have root write to whatever it names
    | os.O_NONBLOCK  # a FIFO in its place must not hang the thread
    | os.O_NOCTTY
)


class FileTarget:
    """A file of event lines, and up to ``max_files`` older ones: ``NAME.1`` is the youngest.

    Args:
        path: of the file; its directory exists.
        max_size: bytes, after which the next line begins a new file.
        max_files: older files that are kept.
    """

    batch = 256

    def __init__(self, path: Path, *, max_size: int, max_files: int) -> None:
        self._path = path
        self._max_size = max_size
        self._max_files = max_files
        self._fd: int | None = None
        self._size = 0
        self._torn = False

    def deliver(self, lines: Sequence[bytes], patience: Patience) -> Delivery:
        """Append the lines, each whole or not at all as far as the disk lets it."""
        count = 0
        try:
            self._look()
            for line in lines:
                if patience.closing and not patience.left:
                    return Delivery(count, "the agent ended before they were written")
                if self._size and self._size + len(line) > self._max_size:
                    self._rotate()
                self._append(line)
                count += 1
        except OSError as error:
            self.reopen()
            return Delivery(count, f"{self._path}: {(error.strerror or 'cannot be written').lower()}")
        return Delivery(count)

    def reopen(self) -> None:
        """Close the file; the next line opens what then has its name."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    close = reopen

    def _look(self) -> None:
        """Have the file open that has the name now, and know its size."""
        if self._fd is not None:
            own = os.fstat(self._fd)
            try:
                named = self._path.lstat()
            except FileNotFoundError:
                named = None
            if named is None or (named.st_dev, named.st_ino) != (own.st_dev, own.st_ino):
                self.reopen()
            else:
                self._size = own.st_size
                self._torn = self._torn and self._size > 0
        if self._fd is None:
            self._open()

    def _open(self) -> None:
        fd = os.open(self._path, _FLAGS, _MODE)
        status = os.fstat(fd)
        problem = None
        if not stat.S_ISREG(status.st_mode):
            problem = "is no regular file; name another one"
        elif status.st_nlink != 1 or status.st_uid != os.geteuid():
            # Made by somebody else for us to write to: a hard link to what is none of our business.
            problem = "belongs to another user or has a second name; remove it, or name another one"
        if problem is not None:
            os.close(fd)
            raise OSError(0, problem)
        self._fd, self._size = fd, status.st_size
        # Left by a full disk, or by an agent that was killed.
        self._torn = self._size > 0 and os.pread(fd, 1, self._size - 1) != b"\n"

    def _rotate(self) -> None:
        """``NAME`` becomes ``NAME.1`` and so on; the oldest goes. Whoever did it first has done it."""
        self.reopen()
        for number in range(self._max_files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._older(number).rename(self._older(number + 1))
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(self._older(1))
        self._open()

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _append(self, line: bytes) -> None:
        """Write one line; one that broke off before is ended first."""
        assert self._fd is not None  # noqa: S101  # _look and _rotate leave it open
        rest = memoryview(b"\n" + line if self._torn else line)
        while rest:
            written = os.write(self._fd, rest)
            self._size += written
            rest = rest[written:]
            self._torn = bool(rest)
