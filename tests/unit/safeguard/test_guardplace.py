# SPDX-License-Identifier: Apache-2.0
"""The trial of the guard by a child, and what a node must have mounted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodgate.errors import HookError
from kmodgate.hooks.guardplace import need_bpffs, root_cgroup, what_works
from kmodgate.node import NodePaths


def test_a_child_that_may_do_both_says_so(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    switch.write_text("0\n")
    assert what_works(switch, tmp_path / "probe") == "both of what was tried"
    assert switch.read_text() == "1\n"
    assert not (tmp_path / "probe").exists()


def test_what_only_one_of_both_may(tmp_path: Path) -> None:
    assert what_works(tmp_path / "none", tmp_path / "probe") == "creating a pin"
    (tmp_path / "switch").write_text("0")
    assert what_works(tmp_path / "switch", tmp_path / "none/probe") == f"writing {tmp_path / 'switch'}"


def test_a_child_that_may_do_nothing(tmp_path: Path) -> None:
    assert what_works(tmp_path / "none", tmp_path / "none/probe") is None


def mounts(tmp_path: Path, *lines: str) -> NodePaths:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/mountinfo").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "1/root").symlink_to("/")
    return NodePaths(proc=tmp_path)


def test_a_cgroup_that_is_no_root_is_not_taken(tmp_path: Path) -> None:
    paths = mounts(tmp_path, f"30 1 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw")
    with pytest.raises(HookError, match="mount -t cgroup2"), root_cgroup(paths):
        pass


def test_a_node_without_cgroups_is_told_what_to_mount(tmp_path: Path) -> None:
    paths = mounts(tmp_path, "30 1 0:26 / / rw - ext4 /dev/vda rw")
    with pytest.raises(HookError, match="mount -t cgroup2"), root_cgroup(paths):
        pass


def test_pins_need_a_bpf_file_system(tmp_path: Path) -> None:
    paths = mounts(tmp_path, "30 1 0:26 / / rw - ext4 /dev/vda rw")
    with pytest.raises(HookError, match="mount -t bpf"):
        need_bpffs(tmp_path, paths)
    with pytest.raises(HookError, match="mount -t bpf"):
        need_bpffs(tmp_path / "none", paths)
