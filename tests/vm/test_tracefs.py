# SPDX-License-Identifier: Apache-2.0
"""Boots guests for the tracefs rung and runs tests/vm/guest_tracefs inside them.

KMODGATE_TRACEFS_KERNELS names the Debian suites whose kernels boot. No BPF program is attached in
these guests but in the test of a rung that breaks; type information is hidden by a mount over it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.vm import kernels
from vmtool import VmDied, VmToolError
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

SUITES = os.environ.get("KMODGATE_TRACEFS_KERNELS", "bookworm").split()
GUEST = "/src/tests/vm/guest_tracefs"
OPTIONS = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST]
INSIDE = ["env", "PYTHONPATH=/src", "python3", "-m", "pytest", *OPTIONS]


@pytest.mark.parametrize("suite", SUITES)
def test_the_rung_that_watches(tmp_path: Path, suite: str) -> None:
    if shutil.which("qemu-system-x86_64") is None or os.geteuid() != 0:
        message = "QEMU and root are needed; run: sudo make deps, and test as root"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    try:
        status = run_in_guest(
            [*INSIDE, GUEST],
            suite=suite,
            share=tmp_path,
            live=True,
            timeout=2100,
            append=kernels.of_suite(suite).append,
        )
    except VmDied as error:
        pytest.fail(f"the machine died: {error}\n{error.tail}")
    except VmToolError as error:
        pytest.fail(str(error))
    assert status == 0
    for name in ("storm.json", "syscall.json"):
        print(suite, json.loads((tmp_path / name).read_text()))
