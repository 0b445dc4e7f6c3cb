# SPDX-License-Identifier: Apache-2.0
"""The objects as the compiler made them: what they ask of a kernel, on both machine types."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from tests.objects import compile_for

pytestmark = pytest.mark.bpf

SOURCES = ("kmodgate", "kmodgate_basic")
LAST_HELPER_OF_5_10 = 155  # BPF_FUNC_redirect_peer; bpf_task_storage_get() is the next one
MAP_TYPES_OF_5_10 = range(1, 29)  # up to BPF_MAP_TYPE_INODE_STORAGE
CALL, ATOMIC = 0x85, 0xDB
PLAIN_ADD = 0  # the only atomic operation before 5.12


def instructions(path: Path) -> list[tuple[int, int, int, int]]:
    """Opcode, registers, offset and immediate of every instruction of every program."""
    found = []
    with path.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if section["sh_type"] == "SHT_PROGBITS" and section["sh_flags"] & 4:  # SHF_EXECINSTR
                found += list(struct.iter_unpack("<BBhi", section.data()))
    return found


def sections(path: Path) -> set[str]:
    with path.open("rb") as file:
        return {section.name for section in ELFFile(file).iter_sections()}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("machine", ["x86", "arm64"])
def test_the_source_builds_for_both_machines(tmp_path: Path, machine: str, source: str) -> None:
    names = sections(compile_for(machine, source, tmp_path / "object"))
    prefix = {"x86": "__x64_sys", "arm64": "__arm64_sys"}[machine]
    ends = {name for name in names if name.startswith("fexit/__")}
    assert {f"fexit/{prefix}_finit_module", f"fexit/{prefix}_init_module"} <= ends
    # int 0x80 is x86's alone.
    assert any("__ia32_" in name for name in ends) == (machine == "x86")


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_for("x86", "kmodgate_basic", tmp_path_factory.mktemp("objects") / "object")


def test_the_basic_object_calls_nothing_younger_than_5_10(basic: Path) -> None:
    called = {immediate for code, registers, _, immediate in instructions(basic)
              if code == CALL and registers >> 4 == 0}  # fmt: skip
    assert 14 in called  # bpf_get_current_pid_tgid(): the reading is right
    assert max(called) <= LAST_HELPER_OF_5_10
    atomics = {immediate for code, *_, immediate in instructions(basic) if code == ATOMIC}
    assert atomics == {PLAIN_ADD}


def test_the_full_object_does(agent_object: Path) -> None:
    """The test above can fail."""
    called = {immediate for code, registers, _, immediate in instructions(agent_object)
              if code == CALL and registers >> 4 == 0}  # fmt: skip
    assert max(called) > LAST_HELPER_OF_5_10


def test_the_basic_object_has_only_maps_and_programs_of_5_10(basic: Path) -> None:
    dump = subprocess.run(
        ["bpftool", "btf", "dump", "file", basic], check=True, capture_output=True, text=True
    ).stdout
    arrays = dict(re.findall(r"\[(\d+)\] ARRAY .* nr_elems=(\d+)", dump))
    pointers = dict(re.findall(r"\[(\d+)\] PTR .* type_id=(\d+)", dump))
    kinds = {int(arrays[pointers[to]]) for to in re.findall(r"'type' type_id=(\d+) bits_offset=0", dump)}
    assert 27 in kinds  # BPF_MAP_TYPE_RINGBUF
    assert all(kind in MAP_TYPES_OF_5_10 for kind in kinds)
    programs = {name for name in sections(basic) if "/" in name and not name.startswith(".")}
    assert {name.partition("/")[0] for name in programs} == {"lsm", "fexit", "tp_btf", "raw_tp"}
