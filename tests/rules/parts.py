# SPDX-License-Identifier: Apache-2.0
"""Where the real programs are that these tests run. One that is missing is told loudly."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.need import unavailable

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
}


def debian_program(name: str) -> str:
    """Path of a program of a Debian package; a skip where it is missing, and in CI a failure."""
    found = shutil.which(name)
    if found is None:
        unavailable(f"{name} is missing: install Debian's {_PACKAGES[name]} (sudo make deps)")
    return found
