# SPDX-License-Identifier: Apache-2.0
"""What the running kernel offers BPF programs: functions by name, bpffs, pinned objects.

Sources: ``include/uapi/linux/btf.h``, ``kernel/bpf/inode.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from .mounts import read_mounts
from .paths import NodePaths, read_bytes

# struct btf_header: magic, version, flags, hdr_len, type_off, type_len, str_off, str_len.
_HEADER = struct.Struct("=HBBIIIII")
_MAGIC = 0xEB9F
_PREFIXES = ("kmodgate", "kmg_")


def names_in_btf(data: bytes | memoryview, names: Iterable[str]) -> frozenset[str] | None:
    """Those of the names that stand in a BTF blob's strings; None when it is no BTF.

    Kinds are not looked at: ask for names that only functions have. A helper that the kernel
    was built without, or a function that the compiler inlined everywhere, has no name there.
    """
    if len(data) < _HEADER.size:
        return None
    magic, _, _, header, _, _, offset, length = _HEADER.unpack_from(data)
    start = header + offset
    if magic != _MAGIC or start + length > len(data):
        return None
    strings = memoryview(data)[start : start + length].tobytes()
    return frozenset(name for name in names if b"\0" + name.encode() + b"\0" in strings)


def find_btf(kernel: bytes) -> memoryview | None:
    """The BTF inside an uncompressed kernel image: of all that looks like one, the largest."""
    # Version 1, no flags, a header of 24 bytes: the only one that there is.
    start = struct.pack("=HBBI", _MAGIC, 1, 0, _HEADER.size)
    view = memoryview(kernel)
    found: list[memoryview] = []
    position = kernel.find(start)
    while position >= 0:
        if position + _HEADER.size <= len(kernel):
            _, _, _, header, _, _, offset, length = _HEADER.unpack_from(kernel, position)
            found.append(view[position : position + header + offset + length])
        position = kernel.find(start, position + 1)
    return max(found, key=len, default=None)


def read_btf_names(paths: NodePaths, names: Iterable[str]) -> frozenset[str] | None:
    """Those of the names that the running kernel's BTF knows; None when it cannot be read."""
    data = read_bytes(paths.sys / "kernel/btf/vmlinux")
    return None if data is None else names_in_btf(data, names)


def read_bpffs(paths: NodePaths) -> tuple[str, ...] | None:
    """Where bpffs is mounted for process 1; None when its mounts cannot be read.

    Raises:
        NodeError: mountinfo makes no sense.
    """
    mounts = read_mounts(paths)
    if mounts is None:
        return None
    return tuple(mount.mount_point for mount in mounts if mount.fs_type == "bpf")


def read_pinned(paths: NodePaths) -> tuple[str, ...] | None:
    """Names of kmodgate's objects in ``/sys/fs/bpf``; None when it cannot be listed."""
    try:
        entries = [path.name for path in (paths.sys / "fs/bpf").iterdir()]
    except OSError:
        return None
    return tuple(sorted(entry for entry in entries if entry.startswith(_PREFIXES)))
