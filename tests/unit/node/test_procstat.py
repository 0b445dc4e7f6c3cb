# SPDX-License-Identifier: Apache-2.0
"""A task's line is taken apart behind its name, which is the task's own to choose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmodgate.node.procstat import TaskStat, read_proc, read_task_stat

BEHIND = b"S 7 0 0 0 -1 2097152 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"


@given(name=st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_can_pose_as_the_fields(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "stat").write_bytes(b"12 (" + name + b") " + BEHIND)
    assert read_task_stat(tmp_path) == TaskStat(parent=7, flags=0x200000, start=4711)


@pytest.mark.parametrize("text", [b"", b"12 (a) S 7", b"12 (a) S x 0 0 0 -1 y" + b" 0" * 13])
def test_what_makes_no_sense_is_no_task(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "stat").write_bytes(text)
    assert read_task_stat(tmp_path) is None


def test_this_process_is_a_child_of_its_parent() -> None:
    stat = read_task_stat(Path("/proc/self"))
    assert stat is not None
    assert stat.parent == os.getppid()
    assert read_task_stat(Path("/proc/0")) is None


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65536])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "cgroup").write_bytes(b"x" * size)
    assert read_proc(f"{tmp_path}/cgroup") == b"x" * size


def test_no_file_is_read_for_ever(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_bytes(b"x" * 200_000)
    assert len(read_proc(f"{tmp_path}/cgroup")) == 65536
    assert read_proc(f"{tmp_path}/none") == b""
