# SPDX-License-Identifier: Apache-2.0
"""Who asked for a load, from a made-up /proc: pods, the node itself, the kernel, and those that are gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodgate import attribution
from kmodgate.attribution import UNKNOWN, Attribution, Attributor
from kmodgate.hooks.kernfs import path_of_cgroup
from kmodgate.kube.cgroups import CgroupRef
from kmodgate.workload import Pod, Workload

UID = "0d3b1c52-95a1-4d0e-8f5e-0123456789ab"
ID = "8f2b6f0b8f3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6"
TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
STARTED = 4711 * TICK
IN_POD = f"0::/kubepods/burstable/pod{UID}/{ID}\n"


class Processes:
    """A procfs with just what is looked at."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc

    def add(
        self, pid: int, cgroup: str, *, parent: int = 1, flags: int = 0, cmdline: str = "", start: int = 4711
    ) -> None:
        rest = f"S {parent} 0 0 0 -1 {flags} " + "0 " * 12 + f"{start} 0"
        for folder in (self.proc / str(pid), self.proc / str(pid) / "task" / str(pid)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "stat").write_text(f"{pid} (a) b) c) {rest}\n")
            (folder / "cgroup").write_text(cgroup)
        (self.proc / str(pid) / "cmdline").write_text(cmdline)


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    made = Processes(tmp_path)
    made.add(1, "0::/init.scope\n", parent=0)
    made.add(2, "0::/\n", parent=0, flags=0x208040)
    return made


def named(ref: CgroupRef) -> Pod | None:
    return Pod(ref.pod_uid, "ns", "name") if ref.pod_uid else None


def test_a_process_in_a_pod(processes: Processes) -> None:
    processes.add(10, IN_POD)
    assert Attributor(processes.proc, named).of(10, 10, STARTED) == Attribution(
        Workload.POD, ID, Pod(UID, "ns", "name")
    )
    assert Attributor(processes.proc).of(10, 10, STARTED) == Attribution(Workload.POD, ID, Pod(UID))


def test_a_container_in_no_pod(processes: Processes) -> None:
    processes.add(10, f"0::/system.slice/docker-{ID}.scope\n")
    assert Attributor(processes.proc, named).of(10, 10, STARTED) == Attribution(Workload.CONTAINER, ID)


def test_a_process_of_the_node(processes: Processes) -> None:
    processes.add(10, "0::/system.slice/systemd-udevd.service/udev\n")
    assert Attributor(processes.proc, named).of(10, 10, STARTED) == Attribution(Workload.HOST)


def test_what_the_kernel_asked_for(processes: Processes) -> None:
    processes.add(10, "0::/\n", parent=2, cmdline="/sbin/modprobe\0-q\0--\0fs-xfs\0")
    asked = Attribution(Workload.KERNEL, kernel_request="fs-xfs")
    assert Attributor(processes.proc).of(10, 10, STARTED) == asked
    assert Attributor(processes.proc).of(10, 10, STARTED, parent=2) == asked


@pytest.mark.parametrize(
    ("parent", "cmdline"),
    [
        (1, "/sbin/modprobe\0-q\0--\0fs-xfs\0"),  # anybody can call it so; the parent is no kernel thread
        (99, "/sbin/modprobe\0-q\0--\0fs-xfs\0"),
    ],
)
def test_what_only_looks_like_the_kernel(processes: Processes, parent: int, cmdline: str) -> None:
    processes.add(10, IN_POD, parent=parent, cmdline=cmdline)
    assert Attributor(processes.proc).of(10, 10, STARTED).workload is Workload.POD


@pytest.mark.parametrize(
    "cmdline", ["", "/sbin/modprobe\0fs-xfs\0", "/sbin/modprobe\0-q\0--\0\0", "/usr/lib/other\0"]
)
def test_what_the_kernel_started_otherwise(processes: Processes, cmdline: str) -> None:
    processes.add(10, "0::/\n", parent=2, cmdline=cmdline)
    assert Attributor(processes.proc).of(10, 10, STARTED) == Attribution(Workload.KERNEL)


def test_what_the_kernel_started_and_is_gone(processes: Processes) -> None:
    assert Attributor(processes.proc).of(10, 10, STARTED, parent=2) == Attribution(Workload.KERNEL)
    processes.add(10, "0::/\n", parent=2, cmdline="/sbin/modprobe\0-q\0--\0fs-xfs\0", start=4712)
    assert Attributor(processes.proc).of(10, 10, STARTED, parent=2) == Attribution(Workload.KERNEL)


def test_another_process_under_the_same_number_is_not_taken_for_it(processes: Processes) -> None:
    processes.add(10, IN_POD, start=4712)
    assert Attributor(processes.proc, named).of(10, 10, STARTED) == UNKNOWN


def test_nobody_there(processes: Processes) -> None:
    assert Attributor(processes.proc, named).of(10, 10, STARTED, parent=1, cgroup=5) == UNKNOWN


def test_a_cgroup_that_was_seen_is_known_when_its_processes_are_gone(processes: Processes) -> None:
    processes.add(10, IN_POD)
    attributor = Attributor(processes.proc, named)
    attributor.of(10, 10, STARTED, cgroup=77)
    expected = Attribution(Workload.POD, ID, Pod(UID, "ns", "name"))
    assert attributor.of(11, 11, STARTED, cgroup=77) == expected
    assert attributor.of(11, 11, STARTED, cgroup=78) == UNKNOWN


@pytest.mark.parametrize(
    ("path", "unified", "expected"),
    [
        (f"/kubepods/pod{UID}/{ID}", True, Attribution(Workload.POD, ID, Pod(UID))),
        (f"/kubepods/pod{UID}/{ID}", False, Attribution(Workload.POD, ID, Pod(UID))),
        ("/system.slice/x.service", True, Attribution(Workload.HOST)),
        # beside cgroup v1 the root of the v2 hierarchy may hold everybody
        ("/", False, UNKNOWN),
    ],
)
def test_a_cgroup_is_found_by_its_number(
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    unified: bool,
    expected: Attribution,
) -> None:
    root = processes.proc / "1/root/sys/fs/cgroup" / ("" if unified else "unified")
    root.mkdir(parents=True)
    (root / "cgroup.procs").touch()
    (root / "cgroup.controllers").touch()
    asked: list[tuple[Path, int]] = []

    def find(place: Path, number: int) -> str:
        asked.append((place, number))
        return path

    monkeypatch.setattr(attribution, "path_of_cgroup", find)
    attributor = Attributor(processes.proc)
    assert attributor.of(10, 10, STARTED, cgroup=99) == expected
    assert asked == [(root, 99)]


def test_what_may_not_be_looked_up_is_said_once(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = processes.proc / "1/root/sys/fs/cgroup"
    root.mkdir(parents=True)
    (root / "cgroup.procs").touch()

    def refuse(_place: Path, _number: int) -> str:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(attribution, "path_of_cgroup", refuse)
    attributor = Attributor(processes.proc)
    for _ in range(3):
        assert attributor.of(10, 10, STARTED, cgroup=99) == UNKNOWN
    assert caplog.text.count("CAP_DAC_READ_SEARCH") == 1


def test_hostile_files(processes: Processes) -> None:
    processes.add(10, "0::/" + "x" * 200_000)
    (processes.proc / "10/cmdline").write_bytes(b"\xff" * 200_000)
    assert Attributor(processes.proc).of(10, 10, STARTED, parent=1) == Attribution(Workload.HOST)
    (processes.proc / "10/task/10/stat").write_bytes(b"10 ( \xff" + b"(" * 5000)
    assert Attributor(processes.proc).of(10, 10, STARTED) == UNKNOWN


def _hierarchy() -> Path | None:
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next((Path(words[1]) for words in lines if words[2] == "cgroup2"), None)


@pytest.mark.skipif(_hierarchy() is None, reason="no cgroup2 file system is mounted here")
@pytest.mark.skipif(os.geteuid() != 0, reason="open_by_handle_at needs root")
def test_the_kernel_knows_a_cgroup_by_its_number() -> None:
    root = _hierarchy()
    assert root is not None
    assert path_of_cgroup(root, root.stat().st_ino) == "/"
    made = root / f"kmodgate-test-{os.getpid()}"
    made.mkdir()
    try:
        number = made.stat().st_ino
        assert path_of_cgroup(root, number) == f"/{made.name}"
    finally:
        made.rmdir()
    with pytest.raises(OSError, match="Stale"):
        path_of_cgroup(root, number)
