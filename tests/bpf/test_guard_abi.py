# SPDX-License-Identifier: Apache-2.0
"""The guard's contract: its Python mirror, and what can be run of it with nothing attached."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from kmodgate.hooks import bpfcall, guardabi, libbpf

pytestmark = pytest.mark.bpf

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "bpf/guard.h"
OBJECT = ROOT / "agent/kmodgate/hooks/guard.bpf.o"
STRUCTS = {
    "kmg_guard_control": guardabi.Control,
    "kmg_guard_denied": guardabi.Denied,
    "kmg_guard_candidate": guardabi.Candidate,
}
ENUMS: dict[str, tuple[str, type[IntEnum]]] = {
    "kmg_switch": ("KMG_SWITCH_", guardabi.Switch),
    "kmg_object": ("KMG_OBJECT_", guardabi.ObjectKind),
}


def unavailable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def types() -> dict[int, dict[str, Any]]:
    if not OBJECT.exists():
        unavailable("the guard's object is not built; run: make bpf")
    done = subprocess.run(["bpftool", "-j", "btf", "dump", "file", OBJECT], check=True, capture_output=True)
    return {entry["id"]: entry for entry in json.loads(done.stdout)["types"]}


@pytest.mark.parametrize("name", STRUCTS)
def test_every_member_lies_where_the_mirror_says(types: dict[int, dict[str, Any]], name: str) -> None:
    (struct,) = [t for t in types.values() if t["kind"] == "STRUCT" and t["name"] == name]
    mirror = STRUCTS[name]
    assert struct["size"] == ctypes.sizeof(mirror)
    in_c = {member["name"]: member["bits_offset"] // 8 for member in struct["members"]}
    assert {field[0]: getattr(mirror, field[0]).offset for field in mirror._fields_} == in_c
    assert sum(getattr(mirror, field[0]).size for field in mirror._fields_) == struct["size"]


@pytest.mark.parametrize("name", ENUMS)
def test_every_enumerator_has_its_twin(types: dict[int, dict[str, Any]], name: str) -> None:
    prefix, twin = ENUMS[name]
    (enum,) = [t for t in types.values() if t["kind"] == "ENUM" and t["name"] == name]
    in_object = {value["name"].removeprefix(prefix): value["val"] for value in enum["values"]}
    assert in_object.pop("COUNT") == len(twin)
    assert in_object == {member.name: member.value for member in twin}


def test_sizes_agree() -> None:
    numbers = dict(re.findall(r"^#define (KMG_\w+) (\d+)$", HEADER.read_text(), re.MULTILINE))
    assert numbers == {
        "KMG_GUARD_COMM_LEN": str(guardabi.COMM_LEN),
        "KMG_GUARD_DIGEST_LEN": str(guardabi.DIGEST_LEN),
        "KMG_GUARD_OBJECTS": str(guardabi.OBJECTS),
    }


class Loaded:
    """The programs that are no LSM programs, loaded and attached nowhere."""

    def __init__(self) -> None:
        self.object = libbpf.Object(OBJECT.read_bytes(), lambda section: not section.startswith("lsm/"))
        self.object.load()
        self.control = guardabi.Control.from_buffer(
            self.object.map("guard_control").memory(ctypes.sizeof(guardabi.Control))
        )
        self.program = self.object.programs["kmg_guard_register"]

    def register(self, fd: int) -> int:
        return self.program.test_run(guardabi.Candidate(fd=fd))


@pytest.fixture
def guard() -> Iterator[Loaded]:
    if not OBJECT.exists():
        unavailable("the guard's object is not built; run: make bpf")
    if os.geteuid() != 0:
        unavailable("BPF test-runs need root; run: sudo make test-bpf")
    loaded = Loaded()
    yield loaded
    loaded.object.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield handle
    os.close(handle)


def in_a_child(handle: int, fd: int) -> int:
    """Registers a child, which ends at once; the program's return value."""
    child = os.fork()
    if child == 0:
        os._exit(-bpfcall.run(handle, guardabi.Candidate(fd=fd)))
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _waiting_child() -> int:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return child


def test_who_registers_is_noted_with_what_is_to_be_protected(guard: Loaded, directory: int) -> None:
    assert guard.register(directory) == 0
    assert guard.control.leader
    assert guard.control.start_time
    assert guard.control.mount
    assert guard.control.directory
    device = os.fstat(directory).st_dev
    assert (guard.control.device >> 20, guard.control.device & 0xFFFFF) == (
        os.major(device),
        os.minor(device),
    )


def test_registering_again_is_fine_for_the_same_process(guard: Loaded, directory: int) -> None:
    assert guard.register(directory) == 0
    leader = guard.control.leader
    assert guard.register(directory) == 0
    assert guard.control.leader == leader


def test_nobody_registers_beside_a_living_agent(guard: Loaded, directory: int) -> None:
    assert guard.register(directory) == 0
    leader = guard.control.leader
    assert in_a_child(guard.program.fd, directory) == -errno.EBUSY
    assert guard.control.leader == leader


def test_the_place_of_a_dead_agent_is_free(guard: Loaded, directory: int) -> None:
    assert in_a_child(guard.program.fd, directory) == 0
    dead = guard.control.leader
    assert guard.register(directory) == 0
    assert guard.control.leader != dead


def test_the_place_stays_free_when_others_have_its_memory(guard: Loaded, directory: int) -> None:
    """The kernel gives a dead process's parts to the next ones, each at its own time."""
    for _ in range(120):
        assert in_a_child(guard.program.fd, directory) == 0
        time.sleep(0.03)  # it is freed after a grace period
        others = [_waiting_child() for _ in range(30)]
        try:
            assert in_a_child(guard.program.fd, directory) == 0
        finally:
            for other in others:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)


def test_a_zombie_holds_no_place(guard: Loaded, directory: int) -> None:
    """Its parent may never wait for it."""
    child = os.fork()
    if child == 0:
        os._exit(-bpfcall.run(guard.program.fd, guardabi.Candidate(fd=directory)))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert guard.register(directory) == 0
    assert os.waitpid(child, 0)[1] == 0


def test_a_traced_process_cannot_register(guard: Loaded, directory: int) -> None:
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(-bpfcall.run(guard.program.fd, guardabi.Candidate(fd=directory)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0x4206, child, None, None) < 0:  # PTRACE_SEIZE
        os.kill(child, 9)
        os.waitpid(child, 0)
        unavailable(f"ptrace does not work here: {os.strerror(ctypes.get_errno())}")
    os.close(ready)
    os.close(go)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EPERM
    assert guard.control.leader == 0


@pytest.mark.parametrize("fd", [99, 1 << 30, 0xFFFFFFFF])
def test_a_bad_descriptor_registers_nobody(guard: Loaded, fd: int) -> None:
    assert guard.register(fd) == -errno.EINVAL
    assert guard.control.leader == 0


def test_numbers_and_names_of_a_program(guard: Loaded) -> None:
    number, maps = bpfcall.program_numbers(guard.program.fd)
    assert len(maps) >= 1
    again = bpfcall.program_by_id(number)
    assert bpfcall.program_numbers(again) == (number, maps)
    os.close(again)
    with pytest.raises(bpfcall.BpfCallError) as caught:
        bpfcall.program_by_id(0xFFFFFFF0)
    assert caught.value.number == errno.ENOENT


def test_the_first_value_of_a_map_is_read(guard: Loaded) -> None:
    digest = bytes(range(32))
    guard.control.used[:] = digest
    assert bpfcall.first_value(guard.object.map("guard_control").fd)[:32] == digest
