# SPDX-License-Identifier: Apache-2.0
"""BCC compiles the programs, the kernel's verifier takes them, and both sides mean the same records."""

from __future__ import annotations

import ctypes
import resource
import time
from typing import Any

import pytest

from kmodgate.hooks import abi, bccabi
from kmodgate.hooks.bcccompile import Compiled, binding

pytestmark = [pytest.mark.bpf, pytest.mark.timeout(600)]

PROGRAMS = (
    "kmg_finit_module",
    "kmg_finit_module_compat",
    "kmg_init_module",
    "kmg_init_module_compat",
    "kmg_read_file",
    "kmg_load_data",
    "kmg_signature_return",
    "kmg_return",
    "kmg_superblock_freed",
    "kmg_module_load",
    "kmg_introduce",
)


@pytest.fixture(scope="module")
def compiled(flags: list[str], text: str) -> Compiled:
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = Compiled(binding(), text, flags)
    for name in PROGRAMS:
        found.program(name, "tracepoint")
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"\ncompile and load: {time.perf_counter() - start:.1f} s, {seconds:.1f} s of processor time, "
        f"{(after.ru_maxrss - before.ru_maxrss) >> 10} MiB more at the most"
    )
    assert seconds < 5
    return found


def test_the_kernel_takes_every_program(compiled: Compiled) -> None:
    assert all(compiled.program(name, "tracepoint") > 0 for name in PROGRAMS)


@pytest.mark.parametrize(
    ("table", "part", "twin"),
    [
        ("verdicts", "Key", bccabi.Version),
        ("verdicts", "Leaf", abi.Answer),
        ("no_question", "Leaf", bccabi.Question),
        ("control", "Leaf", abi.Control),
        ("decisions", "Leaf", abi.Decision),
        ("pinned", "Key", abi.Pin),
        ("introduction", "Leaf", abi.Introduction),
    ],
)
def test_records_are_the_same_on_both_sides(
    compiled: Compiled, table: str, part: str, twin: type[ctypes.Structure]
) -> None:
    theirs: Any = getattr(compiled._module[table.encode()], part)
    assert ctypes.sizeof(theirs) == ctypes.sizeof(twin)
    offsets = {name: getattr(theirs, name).offset for name, *_ in theirs._fields_}
    ours = {str(field[0]): getattr(twin, str(field[0])).offset for field in twin._fields_}
    assert {name: offset for name, offset in offsets.items() if not name.startswith("__")} == ours


def test_an_event_has_the_length_that_the_agent_expects(flags: list[str], text: str) -> None:
    check = f'\n_Static_assert(sizeof(struct kmg_event) == {ctypes.sizeof(abi.Event)}, "length");\n'
    check += f'_Static_assert(offsetof(struct kmg_event, path) == {abi.Event.path.offset}, "path");\n'
    assert Compiled(binding(), text + check, flags)
