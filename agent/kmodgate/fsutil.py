# SPDX-License-Identifier: Apache-2.0
"""Reading files that somebody else may have chosen: bounded, and without ever hanging; writing whole ones.

A path may lead to a FIFO, a device, a directory or a sparse file of any size; it may be
swapped or grow while it is read. Only regular files are read, only after ``fstat`` of the
open descriptor, and never more than the caller's limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import tempfile
from pathlib import Path

from .errors import InputError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class FileReadError(InputError):
    """A file that was not read.

    Args:
        name: the file, as the user knows it.
        problem: what is wrong and what to do, without the name.
        errno_name: for example ``"ENOENT"``.
    """

    def __init__(self, name: str, problem: str, errno_name: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.problem = problem
        self.errno_name = errno_name


def file_error(name: str, error: OSError) -> FileReadError:
    """The system's error over a file, as the error that names the file."""
    number = error.errno or errno.EIO
    if number in {errno.ENXIO, errno.EOPNOTSUPP}:
        return FileReadError(
            name, "cannot be opened as a file (a socket or device?)", errno.errorcode[number]
        )
    reason = (error.strerror or "cannot be read").lower()
    return FileReadError(name, reason, errno.errorcode.get(number, "EIO"))


_F_SETSIG = 10  # include/uapi/asm-generic/fcntl.h


def nobody_writes(fd: int) -> bool:
    """Whether no task has an open file open for writing, mapped or not, at this moment.

    A read lease is granted only then. It is given back at once; where somebody opens the file for
    writing meanwhile, the kernel tells the holder, by a signal that is ignored unless someone wants it.
    """
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def read_regular_fd(fd: int, max_size: int, name: str) -> bytes:
    """Read a regular file from its first byte through an open descriptor.

    Args:
        fd: stays open, and its offset is not moved.
        max_size: most bytes to read.
        name: names the file in errors.

    Raises:
        FileReadError: EINVAL for anything but a regular file, EFBIG above ``max_size``
            (checked before and while reading), or the system's error.
    """
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
            raise FileReadError(name, f"is {kind}; give a module file", "EINVAL")
        if status.st_size > max_size:
            raise _too_large(name, status.st_size, max_size)
        # One byte more than promised: the end of the file shows in the same call.
        data = os.pread(fd, status.st_size + 1, 0)
        if len(data) == status.st_size:
            return data
        return _read_on(fd, data, max_size, name)
    except OSError as error:
        raise file_error(name, error) from error


def _read_on(fd: int, head: bytes, max_size: int, name: str) -> bytes:
    """Short reads, growing files, and the sizeless files of procfs and sysfs."""
    chunks, size = [head], len(head)
    while chunk := os.pread(fd, min(1 << 20, max_size + 1 - size), size):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_size:
            raise _too_large(name, size, max_size)
    return b"".join(chunks)


def _too_large(name: str, size: int, max_size: int) -> FileReadError:
    return FileReadError(
        name, f"has {size} bytes, above the limit of {max_size}; raise --max-size if it is genuine", "EFBIG"
    )


def read_regular_file(path: str | os.PathLike[str], max_size: int) -> bytes:
    """Open and read a regular file; a FIFO, device or write lease never blocks it.

    Raises:
        FileReadError: as ``read_regular_fd``, and for a path that cannot be opened.
    """
    name = os.fspath(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # an embedded null byte
        raise FileReadError(repr(name), str(error), "ENOENT") from error
    except OSError as error:
        raise file_error(name, error) from error
    try:
        return read_regular_fd(fd, max_size, name)
    finally:
        os.close(fd)


def replace_file(target: Path, data: bytes, *, like: Path | None = None) -> None:
    """Write a file in one step: readers see the old one or the new one, and so does a crash.

    Args:
        target: replaced if it exists; a symbolic link is followed.
        data: its new contents.
        like: whose mode and owner it gets when there is no target yet.

    Raises:
        InputError: it cannot be written.
    """
    real = target.resolve()
    if real.exists() and not real.is_file():
        raise InputError(f"{target}: is no regular file; give another name")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            model = real if real.exists() else like
            if model is not None:
                status = model.stat()
                with contextlib.suppress(PermissionError):  # only root gives files away
                    os.fchown(handle, status.st_uid, status.st_gid)
                os.fchmod(handle, status.st_mode & 0o7777)
            else:
                os.fchmod(handle, 0o644)
            stream.flush()
            os.fsync(handle)
        Path(temporary).rename(real)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise file_error(str(target), error) from error
