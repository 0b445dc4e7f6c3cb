# SPDX-License-Identifier: Apache-2.0
"""Small files of a task in procfs, ``proc_pid_stat(5)`` above all: the one way in which that is taken apart.

A load may wait while these are read: hence descriptors and strings. ``pathlib`` costs more than the reading.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")  # a second
TICK_NS: Final = 1_000_000_000 // TICKS
# Places behind the name: the third field of the manual page is the first here.
_PARENT, _FLAGS, _START = 1, 6, 19
_CHUNK, _MAX_FILE = 4 << 10, 64 << 10


@dataclass(frozen=True, slots=True)
class TaskStat:
    """What is asked of it.

    Attributes:
        parent: process number of its parent.
        flags: ``PF_*`` of ``include/linux/sched.h``.
        start: when it began, in ticks since boot.
    """

    parent: int
    flags: int
    start: int


def read_proc(path: str) -> bytes:
    """What a file of a task says, at most 64 KiB of it; nothing when the task is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    data = b""
    try:
        while len(data) < _MAX_FILE:
            data += (part := os.read(handle, _CHUNK))
            if len(part) < _CHUNK:  # procfs makes such a file in one go
                break
    except OSError:
        return b""
    finally:
        os.close(handle)
    return data


def read_executable(process: str) -> str | None:
    """What a process runs; None when it is gone or may not be looked at."""
    try:
        return os.readlink(f"{process}/exe")  # noqa: PTH115  # a load waits, and pathlib costs more
    except OSError:
        return None


def read_task_stat(directory: Path | str) -> TaskStat | None:
    """The task of this directory in procfs; None when it is gone."""
    try:
        # The name stands in parentheses and may hold anything, parentheses too.
        fields = read_proc(f"{directory}/stat").rpartition(b")")[2].split()
        return TaskStat(int(fields[_PARENT]), int(fields[_FLAGS]), int(fields[_START]))
    except (ValueError, IndexError):
        return None
