# SPDX-License-Identifier: Apache-2.0
"""Where the guard's programs and pins go, and a trial of what they deny."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError
from kmodgate.node import NodePaths
from kmodgate.node.mounts import read_mounts

_CGROUP_ROOT_INODE: Final = 1


@contextlib.contextmanager
def root_cgroup(paths: NodePaths) -> Iterator[int]:
    """A descriptor of the root of the cgroup v2 hierarchy, as process 1 sees it. Raises HookError."""
    for mount in read_mounts(paths) or ():
        if mount.fs_type != "cgroup2":
            continue
        place = paths.proc / "1/root" / mount.mount_point.lstrip("/")
        try:
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.fstat(handle).st_ino == _CGROUP_ROOT_INODE:
                yield handle
                return
        finally:
            os.close(handle)
    raise HookError(
        "hardened: the root of a cgroup v2 hierarchy is mounted nowhere, so kernel.ftrace_enabled "
        "cannot be guarded; mount it (mount -t cgroup2 cgroup2 /sys/fs/cgroup)"
    )


def need_bpffs(directory: Path, paths: NodePaths) -> None:
    """Pins hold only on the node's own BPF file system; a container's goes with it. Raises HookError."""
    try:
        ours = directory.stat().st_dev
        host = (paths.proc / "1/root" / directory.relative_to("/")).stat().st_dev
    except OSError:
        ours, host = 0, 1
    kinds = {
        mount.fs_type for mount in read_mounts(paths) or () if os.makedev(mount.major, mount.minor) == ours
    }
    if ours != host or kinds != {"bpf"}:
        raise HookError(
            f"{directory} does not lie on the node's BPF file system; mount it "
            "(mount -t bpf bpf /sys/fs/bpf; in a pod mount the host's)"
        )


def what_works(sysctl: Path, directory: Path) -> str | None:
    """Have a child write 1 to a sysctl and make a directory; what of that it could do, or None."""
    child = os.fork()
    if child == 0:
        # Nothing but system calls: other threads may have held locks.
        os._exit(_try_it(sysctl, directory))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    with contextlib.suppress(OSError):
        directory.rmdir()
    return {1: f"writing {sysctl}", 2: "creating a pin"}.get(code, "both of what was tried")


def _try_it(sysctl: Path, directory: Path) -> int:
    """Exit code: 1 for a write that worked, 2 for a directory that could be made, 3 for both."""
    worked = 0
    try:
        handle = os.open(sysctl, os.O_WRONLY)
        os.write(handle, b"1\n")
        worked |= 1
    except OSError:
        pass
    try:
        os.mkdir(directory)  # noqa: PTH102  # system calls only
        worked |= 2
    except OSError:
        pass
    return worked
