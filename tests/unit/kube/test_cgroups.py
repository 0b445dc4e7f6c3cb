# SPDX-License-Identifier: Apache-2.0
"""Cgroup names of every runtime and driver, and names that somebody made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodgate.kube.cgroups import HOST, CgroupRef, parse_path, parse_proc_cgroup

UID = "0d3b1c52-95a1-4d0e-8f5e-0123456789ab"
OTHER = "ffffffff-95a1-4d0e-8f5e-0123456789ab"
STATIC = "7a1f1e35f6f2d1b3a7f0c5f3d2b19e84"
ID = "8f2b6f0b8f3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6"
ID2 = ID[::-1]
SYSTEMD = UID.replace("-", "_")

BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice"
BEST_EFFORT = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice"

PATHS = {
    # kubelet and runtime with the cgroupfs driver
    f"/kubepods/burstable/pod{UID}/{ID}": CgroupRef(UID, ID),
    f"/kubepods/besteffort/pod{UID}/{ID}": CgroupRef(UID, ID),
    f"/kubepods/pod{UID}/{ID}": CgroupRef(UID, ID),
    f"/kubepods/burstable/pod{UID}/crio-{ID}": CgroupRef(UID, ID),
    f"/kubelet/kubepods/burstable/pod{UID}/{ID}": CgroupRef(UID, ID),
    f"/kubepods/burstable/pod{STATIC}/{ID}": CgroupRef(STATIC, ID),
    # systemd driver: containerd, CRI-O, Docker
    f"{BURSTABLE}/cri-containerd-{ID}.scope": (CgroupRef(UID, ID)),
    f"/kubepods.slice/kubepods-pod{SYSTEMD}.slice/cri-containerd-{ID}.scope": CgroupRef(UID, ID),
    f"{BEST_EFFORT}/crio-{ID}.scope": (CgroupRef(UID, ID)),
    f"{BEST_EFFORT}/crio-{ID}.scope/container": (CgroupRef(UID, ID)),
    f"/kubepods.slice/kubepods-pod{SYSTEMD}.slice/docker-{ID}.scope": CgroupRef(UID, ID),
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/crio-{ID}.scope": (
        CgroupRef(STATIC, ID)
    ),
    # a cluster inside containers
    f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SYSTEMD}.slice/cri-containerd-{ID}.scope": (
        CgroupRef(UID, ID)
    ),
    # the kubelet with systemd's driver, containerd without
    f"/system.slice/containerd.service/kubepods-burstable-pod{SYSTEMD}.slice:cri-containerd:{ID}": (
        CgroupRef(UID, ID)
    ),
    # read from a cgroup namespace of the reader's own
    f"/../../kubepods-burstable-pod{SYSTEMD}.slice/cri-containerd-{ID}.scope": CgroupRef(UID, ID),
    f"/../../pod{UID}/{ID}": CgroupRef(UID, ID),
    f"/../{ID}": CgroupRef(None, ID),
    f"/../cri-containerd-{ID}.scope": CgroupRef(None, ID),
    "/../../../../system.slice/ssh.service": HOST,
    # the pod's own cgroup, and what lies below a container's
    f"/kubepods/burstable/pod{UID}": CgroupRef(UID),
    f"/kubepods/burstable/pod{UID}/{ID}/init.scope": CgroupRef(UID, ID),
    # containers without a pod
    f"/docker/{ID}": CgroupRef(None, ID),
    f"/system.slice/docker-{ID}.scope": CgroupRef(None, ID),
    f"/machine.slice/libpod-{ID}.scope/container": CgroupRef(None, ID),
    # the node itself
    "/": HOST,
    "/init.scope": HOST,
    "/system.slice/systemd-udevd.service/udev": HOST,
    "/user.slice/user-0.slice/session-1.scope": HOST,
    "/kubepods.slice": HOST,
    f"/machine.slice/crio-conmon-{ID}.scope": HOST,
    f"/system.slice/conmon-{ID}.scope": HOST,
    # not quite
    f"/kubepods/burstable/pod{UID[:-1]}/x": HOST,
    f"/kubepods/burstable/pod{UID.upper()}": HOST,
    f"/kubepods/burstable/pod{UID[:8]}_{UID[9:]}": HOST,
    f"/kubepods/burstable/evilpod{UID}": HOST,
    f"/docker/{ID[:-1]}": HOST,
    f"/docker/{ID}0": HOST,
}

MADE_UP = {
    f"/kubepods/burstable/pod{UID}/{ID}/kubepods/pod{OTHER}/{ID2}": CgroupRef(UID, ID),
    f"/kubepods/burstable/pod{UID}/kubepods/pod{OTHER}/{ID2}": CgroupRef(UID, ID2),
    f"/docker/{ID}/kubepods/pod{OTHER}/{ID2}": CgroupRef(None, ID),
    f"/kubepods/pod{UID}/kubepods-pod{OTHER.replace('-', '_')}.slice:cri-containerd:{ID2}": CgroupRef(UID),
}


@pytest.mark.parametrize("path", [*PATHS, *MADE_UP])
def test_a_path_tells_whom_it_belongs_to(path: str) -> None:
    assert parse_path(path) == (PATHS | MADE_UP)[path]


def test_cgroup_v1() -> None:
    path = f"/kubepods/burstable/pod{UID}/{ID}"
    text = "".join(f"{n}:{c}:{path}\n" for n, c in ((12, "pids"), (11, "cpu,cpuacct"), (1, "name=systemd")))
    assert parse_proc_cgroup(text) == CgroupRef(UID, ID)


def test_cgroup_v2() -> None:
    assert parse_proc_cgroup(f"0::/kubepods/pod{UID}/{ID}\n") == CgroupRef(UID, ID)
    assert parse_proc_cgroup("0::/\n") == HOST


def test_hybrid_where_the_unified_hierarchy_knows_nothing() -> None:
    path = f"/kubepods/pod{UID}/{ID}"
    text = f"11:pids:{path}\n1:name=systemd:{path}\n0::/system.slice/containerd.service\n"
    assert parse_proc_cgroup(text) == CgroupRef(UID, ID)


def test_hybrid_where_only_the_unified_hierarchy_knows() -> None:
    assert parse_proc_cgroup(f"4:pids:/\n0::/kubepods/pod{UID}/{ID}\n") == CgroupRef(UID, ID)


def test_a_pod_and_its_container_go_before_a_container_alone() -> None:
    text = f"3:pids:/../{ID2}\n0::/kubepods/pod{UID}/{ID}\n"
    assert parse_proc_cgroup(text) == CgroupRef(UID, ID)


def test_a_cgroup_that_was_removed_under_its_process() -> None:
    assert parse_proc_cgroup(f"0::/kubepods/pod{UID}/{ID} (deleted)\n") == CgroupRef(UID, ID)


@pytest.mark.parametrize("text", ["", "\n", "nonsense", "0:/x", "x::/docker/" + ID, "0::relative/" + ID])
def test_what_is_no_cgroup_file_says_nothing(text: str) -> None:
    assert parse_proc_cgroup(text) is None


@given(st.text())
def test_no_text_does_any_harm(text: str) -> None:
    parse_path(text)
    parse_proc_cgroup(text)


@given(
    st.lists(st.sampled_from(["..", "kubepods", f"pod{OTHER}", ID2, f"crio-{ID2}.scope", "x"]), max_size=8)
)
def test_nothing_below_a_container_changes_whose_it_is(below: list[str]) -> None:
    for path, expected in PATHS.items():
        if expected.container_id:
            assert parse_path("/".join([path, *below])) == expected


@given(st.integers(min_value=1, max_value=200_000))
def test_long_names_are_bounded(length: int) -> None:
    assert parse_path("/" * length) == HOST
    assert parse_path(f"/{'z' * length}/pod{UID}").container_id is None
