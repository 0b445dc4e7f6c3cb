# SPDX-License-Identifier: Apache-2.0
"""One suite on every rung: in Debian's 6.1 with BCC all five, and in two small kernels those that work there.

The small kernels are built from Debian's source (vm-images/*-kernel.config), a quarter of an hour each
when the cache has none: `make test-rungs`, not a part of `make test`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.vm.scenarios import STANCES
from vmtool import VmDied, VmToolError
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(5400)]

GUEST = "/src/tests/vm/guest_rungs"
OPTIONS = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST, "-rs"]
CHOSEN = os.environ.get("KMODGATE_TEST_RUNGS", " ".join(STANCES)).split()


@pytest.mark.parametrize("suite", CHOSEN)
def test_every_rung(tmp_path: Path, suite: str) -> None:
    if shutil.which("qemu-system-x86_64") is None or os.geteuid() != 0:
        message = "QEMU and root are needed; run: sudo make deps, and test as root"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    command = [
        "env",
        "PYTHONPATH=/src",
        f"KMODGATE_GUEST={suite}",
        "python3",
        "-m",
        "pytest",
        *OPTIONS,
        GUEST,
    ]
    try:
        status = run_in_guest(command, suite=suite, share=tmp_path, live=True, timeout=3600)
    except VmDied as error:
        pytest.fail(f"the machine died: {error}\n{error.tail}")
    except VmToolError as error:
        pytest.fail(str(error))
    assert status == 0
    print(suite, json.loads((tmp_path / "rungs.json").read_text()))
