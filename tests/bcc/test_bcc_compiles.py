# SPDX-License-Identifier: Apache-2.0
"""The programs of the bcc rung, compiled by BCC here against the headers of a guest's kernel.

Nothing is attached. The kernel's verifier sees them as programs of another type, which every kernel
with BPF has: what they read of their registers is read from that type's arguments instead.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from vmtool import VmToolError, artifacts

from kmodgate.hooks import abi, bccabi, bccheaders
from kmodgate.hooks.bcccompile import Compiled, binding, binding_path

pytestmark = [pytest.mark.bpf, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SUITE = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm").split()[0]
ARGUMENTS = {"PT_REGS_PARM1(ctx)": "((u64 *)ctx)[0]", "PT_REGS_RC(ctx)": "((u64 *)ctx)[0]"}
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


def unavailable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def flags() -> list[str]:
    """What makes BCC take a kernel's headers from a folder that is not this machine's."""
    if binding_path() is None:
        unavailable("BCC's Python binding is missing; run: apt-get install python3-bpfcc")
    if os.geteuid() != 0:
        unavailable("loading BPF programs needs root; run: sudo make test-bcc")
    try:
        own = artifacts.path("headers", SUITE)
    except VmToolError as error:
        unavailable(str(error))
    common = own.with_name(own.name.rpartition("-")[0] + "-common")
    os.environ["BCC_KERNEL_SOURCE"] = str(common)
    first = ("arch/x86/include", "arch/x86/include/generated", "include")
    then = (
        "arch/x86/include/uapi",
        "arch/x86/include/generated/uapi",
        "include/uapi",
        "include/generated/uapi",
    )
    folders = [tree / part for part in (*first, *then) for tree in (common, own) if (tree / part).is_dir()]
    return [f"-I{folder}" for folder in folders] + ["-DKMG_X86", bccheaders.inode_time((common,))]


@pytest.fixture(scope="module")
def text() -> str:
    joined = subprocess.run(
        [sys.executable, ROOT / "bpf/bcc/join.py"], check=True, capture_output=True, text=True
    ).stdout
    for theirs, ours in ARGUMENTS.items():
        assert theirs in joined
        joined = joined.replace(theirs, ours)
    return joined


@pytest.fixture(scope="module")
def compiled(flags: list[str], text: str) -> Compiled:
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = Compiled(binding(), text, [flag for flag in flags if flag])
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
    assert Compiled(binding(), text + check, [flag for flag in flags if flag])
