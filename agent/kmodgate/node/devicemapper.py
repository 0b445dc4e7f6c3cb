# SPDX-License-Identifier: Apache-2.0
"""Asks the device mapper for the live table of a device.

Sources: ``include/uapi/linux/dm-ioctl.h``, ``table_status()`` in ``drivers/md/dm-ioctl.c``.
Nothing is changed and nothing loaded: a device that sysfs does not show as one of the device
mapper's is not asked about.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from typing import Final

from kmodgate.errors import NodeError

from .paths import NodePaths
from .verity import TargetLine

# struct dm_ioctl: version (three numbers), sizes of all and up to the data, number of targets, openers,
# flags, event number, device, name, uuid.
_HEADER: Final = struct.Struct("=3I2IIiII4xQ128s129s7x")
# struct dm_target_spec: first sector, length, status, where the next one is, type.
_TARGET: Final = struct.Struct("=QQiI16s")
_VERSION: Final = (4, 0, 0)
_TABLE_STATUS: Final = 0xC138FD0C  # _IOWR(0xfd, 12, struct dm_ioctl)
_STATUS_TABLE: Final = 1 << 4
_ACTIVE_PRESENT: Final = 1 << 5
_BUFFER_FULL: Final = 1 << 8
_CONTROL: Final = os.makedev(10, 236)  # MISC_MAJOR, MAPPER_CTRL_MINOR
_SIZE: Final = 16 << 10  # a table of one target needs a few hundred bytes


def is_mapped(paths: NodePaths, major: int, minor: int) -> bool:
    """Whether a block device is one of the device mapper's."""
    return (paths.sys / f"dev/block/{major}:{minor}/dm").is_dir()


def live_table(paths: NodePaths, major: int, minor: int) -> tuple[TargetLine, ...]:
    """The targets of a device's live table.

    Raises:
        NodeError: the device mapper cannot be asked, has no such device, or it has no table.
    """
    path = paths.dev / "mapper/control"
    device = f"{major}:{minor}"
    try:
        control = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NodeError(f"the device mapper cannot be asked: {path}: {error.strerror}") from error
    try:
        status = os.fstat(control)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _CONTROL:
            raise NodeError(f"the device mapper cannot be asked: {path} is another device")
        request = bytearray(_SIZE)
        _HEADER.pack_into(
            request,
            0,
            *_VERSION,
            _SIZE,
            _HEADER.size,
            0,
            0,
            _STATUS_TABLE,
            0,
            os.makedev(major, minor),
            b"",
            b"",
        )
        fcntl.ioctl(control, _TABLE_STATUS, request)
    except OSError as error:
        raise NodeError(f"the table of device {device} cannot be read: {error.strerror}") from error
    finally:
        os.close(control)
    return parse_table_status(bytes(request), device)


def parse_table_status(answer: bytes, device: str) -> tuple[TargetLine, ...]:
    """What DM_TABLE_STATUS answered.

    Raises:
        NodeError: no live table, or an answer that makes no sense.
    """
    nonsense = NodeError(
        f"the device mapper's answer on device {device} makes no sense; report this as a bug"
    )
    if len(answer) < _HEADER.size:
        raise nonsense
    _, _, _, _, start, count, _, flags, _, _, _, _ = _HEADER.unpack_from(answer)
    if flags & _BUFFER_FULL:
        raise NodeError(f"the table of device {device} is too long to be that of one dm-verity target")
    if not flags & _ACTIVE_PRESENT:
        raise NodeError(f"device {device} has no live table")
    targets = []
    at = start
    for _ in range(count):
        if not _HEADER.size <= at <= len(answer) - _TARGET.size:
            raise nonsense
        _, _, _, following, kind = _TARGET.unpack_from(answer, at)
        end = answer.find(b"\0", at + _TARGET.size)
        if end < 0:
            raise nonsense
        targets.append(
            TargetLine(
                kind.split(b"\0")[0].decode("ascii", "backslashreplace"),
                answer[at + _TARGET.size : end].decode("ascii", "backslashreplace"),
            )
        )
        # Offsets count from the start of the data, the last one is that of the end, and none leads back.
        if start + following <= end:
            raise nonsense
        at = start + following
    return tuple(targets)
