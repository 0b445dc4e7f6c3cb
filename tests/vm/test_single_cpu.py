# SPDX-License-Identifier: Apache-2.0
"""Boots the VM with one processor and runs tests/vm/guest_single_cpu inside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.vm.boot import alive, need_qemu
from vmtool import artifacts
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

SUITE = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm")
GUEST = "/src/tests/vm/guest_single_cpu"
OPTIONS = ["-q", "-s", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST]
INSIDE = ["python3", "-m", "pytest", *OPTIONS]


def test_everything_on_one_processor_passed(tmp_path: Path) -> None:
    need_qemu("test-vm")
    shutil.copy(artifacts.path("kernel", SUITE), tmp_path / "vmlinuz")
    with alive():
        status = run_in_guest([*INSIDE, GUEST], suite=SUITE, share=tmp_path, live=True, smp=1, timeout=1200)
    assert status == 0
