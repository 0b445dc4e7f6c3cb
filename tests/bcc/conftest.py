# SPDX-License-Identifier: Apache-2.0
"""The programs of the bcc rung for this machine: compiled against the headers of a guest's kernel.

Nothing is attached. The kernel's verifier sees them as programs of another type, which every kernel
with BPF has and which may be run on request: what they read of their registers is read from that
type's arguments instead, and what would override a system call's result notes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.need import unavailable
from vmtool import VmToolError, artifacts

from kmodgate.hooks import bccheaders
from kmodgate.hooks.bcccompile import binding_path

ROOT = Path(__file__).parents[2]
SUITE = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm").split()[0]
# What stands in the programs, and what stands in its place here.
HERE = {
    "PT_REGS_PARM1(ctx)": "((u64 *)ctx)[0]",
    "PT_REGS_RC(ctx)": "((u64 *)ctx)[0]",
    "bpf_override_return(ctx, -(u64)error);": (
        "{ u32 at_ = 0; struct kmg_introduction *out_ = introduction.lookup(&at_);"
        " if (out_) out_->task = error; }"
    ),
    # The headers are those of another kernel: this one keeps its credentials elsewhere.
    "if (!kmg_may_load())": "if (((u64 *)ctx)[1])",
}


@pytest.fixture(scope="session")
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
    then = ("arch/x86/include/uapi", "arch/x86/include/generated/uapi")
    last = ("include/uapi", "include/generated/uapi")
    folders = [
        tree / part for part in (*first, *then, *last) for tree in (common, own) if (tree / part).is_dir()
    ]
    time = bccheaders.inode_time((common,))
    return [*(f"-I{folder}" for folder in folders), "-DKMG_X86", "-DKMG_OVERRIDE", *([time] if time else [])]


@pytest.fixture(scope="session")
def text() -> str:
    joined = subprocess.run(
        [sys.executable, ROOT / "bpf/bcc/join.py"], check=True, capture_output=True, text=True
    ).stdout
    for theirs, ours in HERE.items():
        assert theirs in joined
        joined = joined.replace(theirs, ours)
    return joined
