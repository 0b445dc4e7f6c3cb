# SPDX-License-Identifier: Apache-2.0
"""The path of a cgroup from the id that a BPF program saw, without a search.

An id is a kernfs node's: with it as a file handle the kernel opens the directory itself, also
when the process that was in it is gone. open_by_handle_at(2) wants CAP_DAC_READ_SEARCH in the
initial user namespace.

Sources: ``FILEID_KERNFS`` in ``include/linux/exportfs.h``, ``fs/kernfs/mount.c`` (Linux 5.5).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_FILEID_KERNFS: Final = 0xFE


class _Handle(ctypes.Structure):
    """``struct file_handle`` with the 64-bit id as its body."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint32),
        ("handle_type", ctypes.c_int32),
        ("id", ctypes.c_uint64),
    )


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.POINTER(_Handle), ctypes.c_int)
_libc.open_by_handle_at.restype = ctypes.c_int


def path_of_cgroup(root: Path, cgroup: int) -> str:
    """The path of a cgroup below the root of its hierarchy, ``"/"`` for the root itself.

    Args:
        root: where the cgroup2 file system is mounted.
        cgroup: as ``bpf_get_current_cgroup_id`` gives it.

    Raises:
        OSError: ESTALE: it is gone. EPERM: without CAP_DAC_READ_SEARCH. ENOENT: no such mount.
    """
    base = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        handle = _Handle(ctypes.sizeof(ctypes.c_uint64), _FILEID_KERNFS, cgroup)
        opened = _libc.open_by_handle_at(base, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
        if opened < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(root))
        try:
            top, path = (str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (base, opened))
        finally:
            os.close(opened)
    finally:
        os.close(base)
    return path.removeprefix(top.rstrip("/")) or "/"
