# SPDX-License-Identifier: Apache-2.0
"""A task's line of ``proc_pid_stat(5)``: the one way in which it is taken apart."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")  # a second
TICK_NS: Final = 1_000_000_000 // TICKS
# Places behind the name: the third field of the manual page is the first here.
_PARENT, _FLAGS, _START = 1, 6, 19


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


def read_task_stat(directory: Path) -> TaskStat | None:
    """The task of this directory in procfs; None when it is gone."""
    try:
        # The name stands in parentheses and may hold anything, parentheses too.
        fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()
        return TaskStat(int(fields[_PARENT]), int(fields[_FLAGS]), int(fields[_START]))
    except (OSError, ValueError, IndexError):
        return None
