# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests under systemd."""

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
    """A directory on tmpfs: not the pinned root."""
    return lab.laid_out(Path("/dev/shm/lab"), "kmgtest.*ko*")


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    lab.unload("kmgtest")
