# SPDX-License-Identifier: Apache-2.0
"""Who calls, and with which file: read from procfs while the system call lasts.

Nothing here asks a file system, so nothing here can hang on one: links and descriptors are procfs's
own. All of it is for people and for the origin; a caller that has gone leaves it unknown.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError, NodeError
from kmodgate.node.mounts import Mount, mount_id_of_fd, parse_mount_id, parse_mountinfo
from kmodgate.node.paths import read_text
from kmodgate.node.procstat import TICK_NS, read_task_stat

from .superblocks import Superblock

_CAP_SYS_MODULE: Final = 1 << 16  # include/uapi/linux/capability.h
_COMM: Final = 16


@dataclass(frozen=True, slots=True)
class Caller:
    """A task in one of the system calls.

    Attributes:
        start_time: of the thread, in nanoseconds since boot.
        privileged: it has CAP_SYS_MODULE.
    """

    tgid: int
    parent: int
    uid: int
    comm: bytes
    start_time: int
    privileged: bool


@dataclass(frozen=True, slots=True)
class CalledFile:
    """The file behind a descriptor of a caller.

    Attributes:
        path: as procfs shows it; a label.
        mount: None when it is no mount of process 1's.
    """

    path: bytes
    mount: Mount | None


def read_caller(proc: Path, tid: int) -> Caller | None:
    """The task with this thread id; None when it has gone."""
    directory = proc / str(tid)
    status = read_text(directory / "status")
    if status is None:
        return None
    # The kernel escapes a newline in the name, so no line is the caller's own.
    lines = dict(line.partition(":")[::2] for line in status.split("\n"))
    stat = read_task_stat(directory)
    if stat is None:
        return None
    try:
        return Caller(
            tgid=int(lines["Tgid"]),
            parent=int(lines["PPid"]),
            uid=int(lines["Uid"].split()[0]),
            comm=(directory / "comm").read_bytes().removesuffix(b"\n")[:_COMM],
            start_time=stat.start * TICK_NS,
            privileged=bool(int(lines["CapEff"], 16) & _CAP_SYS_MODULE),
        )
    except (OSError, KeyError, ValueError, IndexError):
        return None


def read_file(proc: Path, tid: int, fd: int, mounts: MountTable) -> CalledFile | None:
    """The file behind a descriptor of a thread; None when it has gone."""
    directory = proc / str(tid)
    try:
        path = os.fsencode((directory / f"fd/{fd}").readlink())
        mount_id = parse_mount_id(read_text(directory / f"fdinfo/{fd}") or "")
    except (OSError, NodeError):
        return None
    return None if mount_id is None else CalledFile(path, mounts.find(mount_id))


class MountTable:
    """The mounts of process 1, and which of their devices are pinned. The root among them is pinned once.

    Unlike the programs' table (``superblocks``) it knows a file system by its device number alone.
    Safe to use from any thread.
    """

    def __init__(self, proc: Path) -> None:
        self._path = proc / "1/mountinfo"
        self._poll = select.poll()
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HookError(f"{self._path}: {error.strerror}; is this root?") from error
        self._poll.register(self._descriptor, select.POLLPRI)
        self._root: Superblock | None = None
        self._pinned: frozenset[int] = frozenset()
        self._mounts: Mapping[int, Mount] = {}
        self._read()

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        text = read_text(self._path)
        if text is None:
            raise HookError(f"{self._path} cannot be read")
        self._mounts = {mount.mount_id: mount for mount in parse_mountinfo(text)}

    def find(self, mount_id: int) -> Mount | None:
        """A mount by its number, of which the kernel gives out the same one again."""
        if self._descriptor >= 0 and self._poll.poll(0):
            self._read()
        return self._mounts.get(mount_id)

    def identify(self, fd: int) -> Superblock:
        """The file system that a descriptor of this process lies on. Raises HookError."""
        mount_id = mount_id_of_fd(fd)
        mount = None if mount_id is None else self.find(mount_id)
        if mount is None:
            raise HookError("the file system cannot be identified: it is mounted nowhere in mountinfo")
        return Superblock(0, _device(mount))

    def pin_root(self, fd: int) -> tuple[int, int]:
        """Pin the file system of a descriptor as the root: ``(major, minor)``. Raises HookError."""
        self._root = self.identify(fd)
        return self._root.numbers

    @property
    def root(self) -> Superblock | None:
        """The pinned root."""
        return self._root

    def pin(self, superblock: Superblock) -> None:
        """Let a file system count as pinned."""
        self._pinned |= {superblock.device}

    def unpin(self, superblock: Superblock) -> None:
        """End that; one that is not pinned is no error."""
        self._pinned -= {superblock.device}

    def is_pinned(self, superblock: Superblock) -> bool:
        """Whether it still counts: it is pinned, and mounted."""
        if superblock.device not in self._pinned:
            return False
        self.find(0)
        return any(_device(mount) == superblock.device for mount in self._mounts.values())

    def counts_as_root(self, mount: Mount | None, device: tuple[int, int] | None) -> bool:
        """Whether a file lies on a pinned file system.

        Args:
            mount: of the file; None where it is in another mount namespace, or nowhere.
            device: of the file as fstat(2) gives it; None where nobody asked.
        """
        pinned = self._pinned if self._root is None else self._pinned | {self._root.device}
        if mount is not None:
            return _device(mount) in pinned
        return device is not None and (device[0] << 20 | device[1]) in pinned


def _device(mount: Mount) -> int:
    return mount.major << 20 | mount.minor
