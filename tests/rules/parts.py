# SPDX-License-Identifier: Apache-2.0
"""Where the real programs are that these tests run. One that is missing is told loudly."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
}


def debian_program(name: str) -> str:
    """Path of a program of a Debian package; a skip where it is missing, and in CI a failure."""
    found = shutil.which(name)
    if found is not None:
        return found
    message = f"{name} is missing: install Debian's {_PACKAGES[name]} (sudo make deps)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
