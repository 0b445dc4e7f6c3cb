# SPDX-License-Identifier: Apache-2.0
"""Boots guests for the tracefs rung and runs tests/vm/guest_tracefs inside them.

KMODGATE_TRACEFS_KERNELS names the Debian suites whose kernels boot, and ``nobpf``: a small kernel without
bpf(2), with LoadPin. No BPF program is attached in these guests but in the test of a rung that
breaks; Debian's type information is hidden by a mount over it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.vm import kernels
from tests.vm.boot import alive, need_qemu
from vmtool import artifacts
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

SUITES = os.environ.get("KMODGATE_TRACEFS_KERNELS", "bookworm").split()
GUEST = "/src/tests/vm/guest_tracefs"
FILES = Path(__file__).parent / "guest_tracefs"
LOADPIN = FILES / "test_tracefs_0_loadpin.py"
OPTIONS = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST]
INSIDE = ["env", "PYTHONPATH=/src", "python3", "-m", "pytest", *OPTIONS]


@pytest.mark.parametrize("suite", SUITES)
def test_the_rung_that_watches(tmp_path: Path, suite: str) -> None:
    append = "" if suite == artifacts.NOBPF else kernels.of_suite(suite).append
    # LoadPin comes first where there is one: what is loaded first from a file is pinned.
    chosen = [
        path.name for path in sorted(FILES.glob("test_*.py")) if suite == artifacts.NOBPF or path != LOADPIN
    ]
    assert run(suite, tmp_path, [f"{GUEST}/{name}" for name in chosen], append) == 0
    for name in ("storm.json", "syscall.json"):
        print(suite, json.loads((tmp_path / name).read_text()))


@pytest.mark.skipif(
    artifacts.NOBPF not in SUITES, reason="LoadPin is in the kernel nobpf; run: make test-tracefs"
)
def test_a_root_that_is_not_pinned(tmp_path: Path) -> None:
    assert run(artifacts.NOBPF, tmp_path, [f"{GUEST}/{LOADPIN.name}"], "kmodgate.pin=elsewhere") == 0


def run(suite: str, share: Path, arguments: list[str], append: str) -> int:
    """Pytest's status inside the guest."""
    need_qemu("test-tracefs")
    with alive():
        return run_in_guest(
            [*INSIDE, *arguments],
            suite=suite,
            share=share,
            live=True,
            timeout=2100,
            append=append,
            in_turn=True,
        )
