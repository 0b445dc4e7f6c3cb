# SPDX-License-Identifier: Apache-2.0
"""The suite for every rung needs what the tests of the bcc rung need, inside the guest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.vm import lab

if os.uname().nodename != "kmodgate-vm":  # loads modules: nowhere but in the guest
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def work() -> Path:
    """A directory on tmpfs, not the pinned root; one of the modules lies on the root as well."""
    path = lab.laid_out(Path("/tmp/lab"), "kmgtest.*ko")
    tampered = lab.flip_payload_byte(lab.in_tree("dummy").read_bytes())
    (path / "dummy.tampered.ko").write_bytes(tampered)
    Path("/root/kmgtest.unsigned.ko").write_bytes((path / "kmgtest.unsigned.ko").read_bytes())
    return path
