# SPDX-License-Identifier: Apache-2.0
"""Mounts, the pinned root, and the cgroup mode.

Sources: proc_pid_mountinfo(5), proc_pid_fdinfo(5), ``show_mountinfo()`` in
``fs/proc_namespace.c``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from kmodgate.errors import NodeError

from .devicemapper import is_mapped, live_table
from .paths import NodePaths, read_text, read_word

_OCTAL = re.compile(r"\\([0-3][0-7]{2})", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_DEVICE = re.compile(r"([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
_FIXED_FIELDS = 6
_AFTER_SEPARATOR = 3


class CgroupHierarchy(StrEnum):
    """How the node's cgroups are mounted. The kubelet treats ``hybrid`` as v1."""

    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"


class RootProtection(StrEnum):
    """What keeps the pinned root from being written to, best first."""

    VERITY = "verity"
    """Every block is checked against a digest when it is read."""
    READ_ONLY_DEVICE = "read_only_device"
    """The block device refuses writes: what LoadPin calls engaged."""
    READ_ONLY_MOUNT = "read_only_mount"
    """The file system refuses writes, on a device that does not: root can mount it anew."""
    WRITABLE = "writable"

    @property
    def is_weak(self) -> bool:
        """Whoever is root on the node can write to the file system."""
        return self in {RootProtection.READ_ONLY_MOUNT, RootProtection.WRITABLE}


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo, unescaped."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: str
    mount_point: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PinnedRoot:
    """The file system that process 1 has as its root.

    Attributes:
        major: with ``minor``, the superblock's device number (``s_dev``), which for
            btrfs differs from what ``stat`` gives.
        mount_read_only: this mount refuses writes; another mount of the same file
            system may allow them.
        superblock_read_only: the file system itself refuses writes, on every mount, until
            root mounts it anew.
        device_read_only: the block device refuses writes; False when there is no block device
            (LoadPin takes that for writable, too).
        verity: it is a dm-verity device.
    """

    mount_id: int
    major: int
    minor: int
    mount_point: str
    fs_type: str
    source: str
    mount_read_only: bool
    superblock_read_only: bool
    device_read_only: bool = False
    verity: bool = False

    @property
    def protection(self) -> RootProtection:
        """What keeps the file system from being written to."""
        if self.verity and self.device_read_only:
            return RootProtection.VERITY
        if self.device_read_only:
            return RootProtection.READ_ONLY_DEVICE
        return RootProtection.READ_ONLY_MOUNT if self.superblock_read_only else RootProtection.WRITABLE

    @property
    def device(self) -> str:
        """``major:minor`` in decimal."""
        return f"{self.major}:{self.minor}"


def unescape(text: str) -> str:
    r"""Undo ``mangle()``: space, tab, newline and backslash come as ``\040``, ``\011``, ….

    A name that is no UTF-8 keeps its bytes visible as ``\xNN``: it is a label, not a path to open.
    """
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """All mounts, in the order of the file.

    Raises:
        NodeError: a line that is no mountinfo line.
    """
    return tuple(_parse_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line)


def _parse_line(line: str, number: int) -> Mount:
    words = line.split(" ")
    try:
        # Optional fields ("shared:1", …) end at a lone "-".
        separator = words.index("-", _FIXED_FIELDS)
    except ValueError:
        raise _nonsense(number) from None
    after = words[separator + 1 :]
    device = _DEVICE.fullmatch(words[2])
    ids = [word for word in words[:2] if _NUMBER.fullmatch(word)]
    if device is None or len(ids) != len(words[:2]) or len(after) < _AFTER_SEPARATOR:
        raise _nonsense(number)
    return Mount(
        mount_id=int(ids[0]),
        parent_id=int(ids[1]),
        major=int(device[1]),
        minor=int(device[2]),
        root=unescape(words[3]),
        mount_point=unescape(words[4]),
        options=tuple(words[5].split(",")),
        fs_type=unescape(after[0]),
        source=unescape(after[1]),
        # overlayfs options may hold a bare space on old kernels; they end the line.
        super_options=tuple(" ".join(after[2:]).split(",")),
    )


def _nonsense(number: int) -> NodeError:
    return NodeError(
        f"mountinfo line {number} has not the form of proc_pid_mountinfo(5); report this as a bug"
    )


def parse_mount_id(fdinfo: str) -> int | None:
    """The ``mnt_id:`` of ``/proc/PID/fdinfo/N``; None when there is no such line.

    Raises:
        NodeError: it is no number.
    """
    for line in fdinfo.split("\n"):
        key, colon, value = line.partition(":")
        if key == "mnt_id" and colon:
            if not _NUMBER.fullmatch(value.strip()):
                raise NodeError("fdinfo has a mnt_id that is no number; report this as a bug")
            return int(value)
    return None


def mount_id_of(path: Path) -> int | None:
    """Mount id of the mount that ``path`` leads to; None when it cannot be opened."""
    try:
        # O_PATH opens nothing; following /proc/1/root needs CAP_SYS_PTRACE.
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return mount_id_of_fd(descriptor)
    finally:
        os.close(descriptor)


def mount_id_of_fd(descriptor: int) -> int | None:
    """Mount id of the mount that a descriptor of ours lies on."""
    # Our own descriptor, so our own /proc/self: mount ids are the same in every namespace.
    fdinfo = read_text(Path("/proc/self/fdinfo") / str(descriptor))
    return None if fdinfo is None else parse_mount_id(fdinfo)


def read_mounts(paths: NodePaths) -> tuple[Mount, ...] | None:
    """The mounts of process 1; None when they cannot be read.

    Raises:
        NodeError: mountinfo makes no sense.
    """
    text = read_text(paths.proc / "1" / "mountinfo")
    return None if text is None else parse_mountinfo(text)


def find_pinned_root(mounts: Iterable[Mount], mount_id: int | None) -> PinnedRoot | None:
    """The root among ``mounts`` by its mount id.

    Not by the mount point ``/``: mounts stack, and several lines may carry it.
    """
    for mount in mounts:
        if mount.mount_id == mount_id:
            return PinnedRoot(
                mount_id=mount.mount_id,
                major=mount.major,
                minor=mount.minor,
                mount_point=mount.mount_point,
                fs_type=mount.fs_type,
                source=mount.source,
                mount_read_only="ro" in mount.options,
                superblock_read_only="ro" in mount.super_options,
            )
    return None


def read_pinned_root(
    paths: NodePaths, *, mount_id_of: Callable[[Path], int | None] = mount_id_of
) -> PinnedRoot | None:
    """The root file system of process 1; None when this user may not see it.

    Raises:
        NodeError: mountinfo or fdinfo make no sense.
    """
    mounts = read_mounts(paths)
    if mounts is None:
        return None
    root = find_pinned_root(mounts, mount_id_of(paths.proc / "1" / "root"))
    if root is None or read_word(paths.sys / f"dev/block/{root.device}/ro") != "1":
        return root
    return replace(root, device_read_only=True, verity=_is_verity(paths, root))


def _is_verity(paths: NodePaths, root: PinnedRoot) -> bool:
    """Whether a device is one of dm-verity; False for a user who may not ask."""
    if not is_mapped(paths, root.major, root.minor):
        return False
    try:
        table = live_table(paths, root.major, root.minor)
    except NodeError:
        return False  # the weaker word for it: READ_ONLY_DEVICE
    return [target.kind for target in table] == ["verity"]


def cgroup_hierarchy(mounts: Iterable[Mount]) -> CgroupHierarchy | None:
    """How cgroups are mounted; None when they are not mounted at all."""
    cgroups = [mount for mount in mounts if mount.fs_type in {"cgroup", "cgroup2"}]
    if any(mount.fs_type == "cgroup2" and mount.mount_point == "/sys/fs/cgroup" for mount in cgroups):
        return CgroupHierarchy.V2
    types = {mount.fs_type for mount in cgroups}
    if not types:
        return None
    if types == {"cgroup2"}:
        return CgroupHierarchy.V2
    return CgroupHierarchy.V1 if types == {"cgroup"} else CgroupHierarchy.HYBRID


def read_cgroup_hierarchy(paths: NodePaths) -> CgroupHierarchy | None:
    """How the node mounts its cgroups; None when nothing tells.

    Raises:
        NodeError: mountinfo makes no sense.
    """
    mounts = read_mounts(paths)
    found = None if mounts is None else cgroup_hierarchy(mounts)
    if found is None and (paths.sys / "fs/cgroup/cgroup.controllers").exists():
        return CgroupHierarchy.V2
    return found
