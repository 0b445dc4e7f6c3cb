# SPDX-License-Identifier: Apache-2.0
"""The bcc rung in guests that have BCC: on Debian's kernel, which it may only watch, and where it may refuse.

The second is built from Debian's source (vm-images/override-kernel.config), without type information,
which takes a quarter of an hour when the cache has none: `make test-bcc`, not a part of `make test`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.vm.boot import alive, need_qemu
from vmtool import artifacts
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(5400)]

GUEST = "/src/tests/vm/guest_bcc"
INSIDE = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST]
# KMODGATE_TEST_BCC leaves some out.
RUNS = {
    "bookworm": (f"bookworm{artifacts.BCC}", ("test_bcc_refusals.py", "test_bcc_watch.py")),
    "override": (artifacts.OVERRIDE, ("test_bcc_refusals.py", "test_bcc_refuse.py")),
}
CHOSEN = os.environ.get("KMODGATE_TEST_BCC", " ".join(RUNS)).split()


@pytest.mark.parametrize("name", CHOSEN)
def test_the_rung(tmp_path: Path, name: str) -> None:
    need_qemu("test-bcc")
    suite, files = RUNS[name]
    command = [*INSIDE, "-x", "-rs", "--durations", "5", *(f"{GUEST}/{file}" for file in files)]
    with alive():
        status = run_in_guest(command, suite=suite, share=tmp_path, live=True, timeout=3600)
    assert status == 0
    assert "Traceback" not in (tmp_path / "agent.log").read_text()
    print(json.loads((tmp_path / "bcc.json").read_text()))
