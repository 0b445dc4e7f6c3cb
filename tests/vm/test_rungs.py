# SPDX-License-Identifier: Apache-2.0
"""One suite on every rung: in Debian's 6.1 with BCC all five, and in two small kernels those that work there.

The small kernels are built from Debian's source (vm-images/*-kernel.config), a quarter of an hour each
when the cache has none: `make test-rungs`, not a part of `make test`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.vm.boot import alive, need_qemu
from tests.vm.scenarios import STANCES
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(5400)]

GUEST = "/src/tests/vm/guest_rungs"
OPTIONS = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST, "-rs"]
CHOSEN = os.environ.get("KMODGATE_TEST_RUNGS", " ".join(STANCES)).split()


@pytest.mark.parametrize("suite", CHOSEN)
def test_every_rung(tmp_path: Path, suite: str) -> None:
    need_qemu("test-rungs")
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
    with alive():
        status = run_in_guest(command, suite=suite, share=tmp_path, live=True, timeout=3600, in_turn=True)
    assert status == 0
    print(suite, json.loads((tmp_path / "rungs.json").read_text()))
