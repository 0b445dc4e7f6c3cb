# SPDX-License-Identifier: Apache-2.0
"""Where programs and maps are pinned, so that enforcement and counts outlive the agent.

No BPF here: directories, names and a lock. Layout, below a BPF file system::

    /sys/fs/bpf/kmodgate/            locked by the agent that runs
        abi-3-bpf-lsm/maps/NAME      of bpf/kmodgate.h's KMG_ABI: never read as another one
        abi-3-bpf-lsm/links/7/PROGRAM   attachments of generation 7
        abi-3-bpf-lsm/programs/7/PROGRAM   what they attach

What is pinned in a pod must lie on the host's BPF file system: a pod's own goes with it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError
from kmodgate.model import Backend
from kmodgate.node import NodePaths
from kmodgate.node.mounts import parse_mountinfo
from kmodgate.node.paths import read_text

from . import abi

ROOT: Final = Path("/sys/fs/bpf/kmodgate")
_INSTANCE = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_LOCK_RETRY: Final = 0.1  # seconds
_LAST_INSTANCE: Final = 0xFFFF_FFFF


class Pins:
    """The pins of this version's records.

    Args:
        backend: whose maps; those of rungs differ.
        root: a directory on a BPF file system; made when it is missing.
        paths: where mounts are looked up.
    """

    def __init__(
        self, backend: Backend = Backend.BPF_LSM, *, root: Path = ROOT, paths: NodePaths | None = None
    ) -> None:
        self.root: Final = root
        self._paths = paths or NodePaths()
        self.home: Final = root / f"abi-{abi.ABI}-{backend}"
        self.maps: Final = self.home / "maps"
        self._links: Final = self.home / "links"
        self._lock: int | None = None

    def prepare(self, *, wait: float = 10.0) -> None:
        """Make the directories and take the lock; held until ``release`` or the end of the process.

        Args:
            wait: seconds that another agent may take to end, as in a rolling update.

        Raises:
            HookError: no BPF file system, no permission, or another agent runs.
        """
        self._need_bpffs()
        try:
            for directory in (self.root, self.home, self.maps, self._links):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HookError(f"{error.filename or self.root}: {error.strerror}; is this root?") from error
        self.lock(wait=wait)

    def lock(self, *, wait: float = 0.0) -> None:
        """Take the lock that a running agent holds.

        Raises:
            HookError: there are no pins, or another agent holds it for longer than ``wait`` seconds.
        """
        try:
            handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HookError(f"{self.root}: {error.strerror}") from error
        deadline = time.monotonic() + wait
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                os.close(handle)
                raise HookError(f"another agent runs on this node (it holds {self.root}); end it first")
            time.sleep(_LOCK_RETRY)
        self._lock = handle

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _need_bpffs(self) -> None:
        parent = self.root.parent
        text = read_text(self._paths.proc / "self/mountinfo") or ""
        here = [mount for mount in parse_mountinfo(text) if mount.mount_point == str(parent)]
        if not here or here[-1].fs_type != "bpf":
            raise HookError(
                f"{parent} is no BPF file system, so enforcement could not outlive the agent; mount it "
                f"(mount -t bpf bpf {parent}; in a pod mount the host's), or write onExit: detach"
            )
        try:
            host = (self._paths.proc / f"1/root{parent}").stat().st_dev
            ours = parent.stat().st_dev
        except OSError as error:
            raise HookError(f"{error.filename}: {error.strerror}; is this root?") from error
        if ours != host:
            raise HookError(
                f"{parent} is another BPF file system than the node's own, and goes when this container "
                "does; mount the host's"
            )

    def links(self, instance: int) -> Path:
        """Directory of one generation's attachments."""
        return self._links / str(instance)

    def code(self, instance: int) -> Path:
        """Directory of one generation's programs."""
        return self.home / "programs" / str(instance)

    def instances(self) -> list[int]:
        """Generations that have left attachments, oldest first."""
        try:
            names = [path.name for path in self._links.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if _INSTANCE.fullmatch(name))

    def programs(self, instance: int) -> list[Path]:
        """Attachments of one generation."""
        try:
            return sorted(self.links(instance).iterdir())
        except FileNotFoundError:
            return []

    def next_instance(self, in_force: int) -> int:
        """A number that no generation has, those that were never in force included."""
        following = max([in_force, *self.instances()]) + 1
        return following if following <= _LAST_INSTANCE else 1

    def remove_instance(self, instance: int) -> None:
        """Detach one generation, as far as nobody else holds its links."""
        _remove(self.links(instance))
        _remove(self.code(instance))

    def foreign(self) -> list[Path]:
        """Directories of versions with other records."""
        try:
            return sorted(path for path in self.root.glob("abi-*") if path != self.home)
        except OSError:
            return []

    def remove(self, home: Path) -> None:
        """Detach and forget everything of one version: attachments first, then maps."""
        for generation in sorted((home / "links").glob("*")):
            _remove(generation)
        _remove(home)

    def remove_all(self) -> int:
        """Detach and forget everything, and say how many attachments there were."""
        count = len(list(self.root.glob("abi-*/links/*/*")))
        for home in (*self.foreign(), self.home):
            self.remove(home)
        _remove(self.root)
        return count


def counts_since(backend: Backend, root: Path = ROOT) -> float:
    """Unix time at which the counters of this rung were pinned; where they are not, they begin now."""
    try:
        return (Pins(backend, root=root).maps / "counters").stat().st_mtime
    except OSError:
        return time.time()


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(directory: Path) -> None:
    """Remove a directory and what is in it; one that is not there is no error."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HookError(f"{error.filename or directory}: cannot be removed: {error.strerror}") from error
