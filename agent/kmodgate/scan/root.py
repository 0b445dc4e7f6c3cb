# SPDX-License-Identifier: Apache-2.0
"""A root file system that somebody else may have made: opened from inside, never left.

Paths are looked up as after ``chroot(2)``: every component is opened alone, without
following links, and a link's text is looked up from the same root. So neither an absolute
link nor ``..`` leads out, whoever swaps what meanwhile. Directories are walked without
following links at all, to a bounded depth. Files are opened without blocking, and only
where the directory says that they are regular or a link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kmodgate.errors import InputError
from kmodgate.fsutil import FileReadError, file_error, read_regular_fd

SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
"""File names that modprobe(8) takes for modules."""

MAX_DEPTH = 64
_MAX_LINKS = 40  # as the kernel: MAXSYMLINKS, include/linux/namei.h
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# What opening a link with O_NOFOLLOW answers, with O_DIRECTORY and without.
_MAYBE_LINK = frozenset({errno.ELOOP, errno.ENOTDIR})


@dataclass(frozen=True, slots=True)
class Folder:
    """The module files of one directory.

    Attributes:
        path: the directory, from the root (``/lib/modules/…``).
        names: its module files and links to such, in no order.
        sizes: bytes of each, as the directory tells; those of a link are its own.
        problem: why ``path`` (then a directory or a file) could not be read; None when it could.
    """

    path: str
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    problem: FileReadError | None = None


class Root:
    """An open root directory; a context manager. Not shared between threads.

    Args:
        path: where it is mounted.

    Raises:
        InputError: it is no directory that can be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            raise InputError(
                f"--root {self.path!r}: {reason}; give the directory that a root file system is mounted on"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def is_own(self) -> bool:
        """True for the root of the process that asks."""
        return os.path.samestat(os.fstat(self._fd), Path("/").stat())

    @property
    def device(self) -> int:
        """``st_dev`` of the root directory."""
        return os.fstat(self._fd).st_dev

    def open_folder(self, path: str) -> int:
        """Open a directory for reading; the caller closes the descriptor.

        Raises:
            OSError: it cannot be found, entered or read.
        """
        return self._open(path, _DIRECTORY)

    def read(self, path: str, max_size: int, *, folder: int | None = None) -> tuple[bytes, int]:
        """Read a regular file whole: its bytes, and the ``st_dev`` that they lie on.

        Args:
            path: from the root.
            max_size: most bytes to read.
            folder: an open descriptor of the directory that ``path`` names, which saves the
                way there.

        Raises:
            FileReadError: it cannot be read, is too large, or is no regular file.
        """
        try:
            fd = self._open_file(path, folder)
        except OSError as error:
            raise file_error(path, error) from error
        except ValueError as error:  # an embedded null byte
            raise FileReadError(repr(path), str(error), "ENOENT") from error
        try:
            return read_regular_fd(fd, max_size, path), os.fstat(fd).st_dev
        finally:
            os.close(fd)

    def find(self, path: str) -> int:
        """What a path leads to, found and not opened (O_PATH); the caller closes the descriptor.

        Raises:
            OSError: nothing is there, or it cannot be reached.
            ValueError: an embedded null byte.
        """
        return self._open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)

    def kind(self, path: str) -> str | None:
        """``directory``, ``file`` or ``other`` for what a path leads to; None when to nothing."""
        try:
            fd = self.find(path)
        except (OSError, ValueError):
            return None
        try:
            mode = os.fstat(fd).st_mode
        finally:
            os.close(fd)
        return "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"

    def identity(self, path: str) -> tuple[int, int] | None:
        """Device and inode of what a path leads to; None when to nothing."""
        try:
            fd = self.find(path)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return status.st_dev, status.st_ino

    def folders_in(self, path: str) -> tuple[str, ...]:
        """Names of the directories, and links to such, in a directory; none where it is absent."""
        try:
            fd = self.open_folder(path)
        except OSError:
            return ()
        try:
            with os.scandir(fd) as entries:
                names = [entry.name for entry in entries]
        finally:
            os.close(fd)
        return tuple(sorted(name for name in names if self.kind(f"{path}/{name}") == "directory"))

    def walk(self, path: str) -> Iterator[Folder]:
        """Every directory at and below ``path`` that holds modules or could not be read."""
        try:
            fd = self.open_folder(path)
        except OSError as error:
            yield _unreadable(path, error)
            return
        yield from _walk(fd, path.rstrip("/"), MAX_DEPTH)

    def _open_file(self, path: str, folder: int | None) -> int:
        if folder is not None:
            try:
                return os.open(path.rpartition("/")[2], _FILE, dir_fd=folder)
            except OSError as error:
                if error.errno not in _MAYBE_LINK:
                    raise
        # Where a link leads nobody has looked yet, and opening a device can do things.
        handle = self.find(path)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return handle  # not opened, and no reader takes it
        try:
            return os.open(f"/proc/self/fd/{handle}", _FILE & ~os.O_NOFOLLOW)
        finally:
            os.close(handle)

    def _open(self, path: str, flags: int) -> int:
        """Open a path from the root, one component at a time.

        ``flags`` hold for the last one and include O_NOFOLLOW. The descriptors of the way
        stay open until the end: ``..`` goes back along them, never along the file system.
        """
        way: list[int] = []
        todo = path.split("/")[::-1]
        links = 0
        arrived = False
        try:
            while todo:
                name = todo.pop()
                if name in {"", "."}:
                    continue
                if name == "..":
                    arrived = False
                    if way:
                        os.close(way.pop())
                    continue
                arrived = not any(todo)
                found = _step(name, way[-1] if way else self._fd, flags if arrived else _STEP)
                if isinstance(found, int):
                    way.append(found)
                    continue
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if found.startswith("/"):
                    while way:
                        os.close(way.pop())
                todo += found.split("/")[::-1]
            if arrived:
                return way.pop()
            return os.open(".", flags, dir_fd=way[-1] if way else self._fd)
        finally:
            for fd in way:
                os.close(fd)


def _step(name: str, here: int, flags: int) -> int | str:
    """Open one component: its descriptor, or the text of the link that stands there."""
    try:
        fd = os.open(name, flags, dir_fd=here)
    except OSError as error:
        if error.errno not in _MAYBE_LINK:
            raise
        try:
            return os.readlink(name, dir_fd=here)
        except OSError:
            raise error from None
    if flags & os.O_PATH and stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        return os.readlink(name, dir_fd=here)
    return fd


def _unreadable(path: str, error: OSError) -> Folder:
    return Folder(path, problem=file_error(path, error))


def _walk(fd: int, path: str, depth: int) -> Iterator[Folder]:
    """One directory and all below it; closes ``fd``."""
    names: list[str] = []
    sizes: list[int] = []
    folders: list[str] = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif not entry.name.endswith(SUFFIXES):
                    continue
                elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                    names.append(entry.name)
                    sizes.append(entry.stat(follow_symlinks=False).st_size)
                else:  # never opened: opening a device can do things
                    odd = f"{path}/{entry.name}"
                    problem = FileReadError(odd, "is neither a regular file nor a link; remove it", "EINVAL")
                    yield Folder(odd, problem=problem)
        if names:
            yield Folder(path, tuple(names), tuple(sizes))
        for name in sorted(folders):
            below = f"{path}/{name}"
            if depth == 0:
                text = f"lies more than {MAX_DEPTH} directories deep and was not entered"
                yield Folder(below, problem=FileReadError(below, text, "ELOOP"))
                continue
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                yield _unreadable(below, error)
                continue
            yield from _walk(inner, below, depth - 1)
    except OSError as error:
        yield _unreadable(path, error)
    finally:
        os.close(fd)
