# SPDX-License-Identifier: Apache-2.0
"""kmodgate's own source for the guest: a byte-compiled copy, keyed by its contents.

A source edit therefore needs no new disk, and the guest does not compile under emulation.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import cache
from .host import PROJECT

AGENT = PROJECT / "agent"
GUEST_SOURCE = "/opt/kmodgate/src"
_KEEP_SECONDS = 7 * 24 * 3600


def get() -> Path:
    """The folder to share as ``/opt/kmodgate/src``."""

    def build(target: Path) -> None:
        shutil.copytree(AGENT, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        # A half-edited file must not stop the run: it fails in the guest where it is imported.
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash",
             "-s", target, "-p", GUEST_SOURCE, target],
            stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        for old in cache.root().glob("stage-*"):
            if time.time() - old.stat().st_mtime > _KEEP_SECONDS:
                shutil.rmtree(old, ignore_errors=True)

    return cache.entry(f"stage-{cache.digest([AGENT, '.'.join(map(str, sys.version_info[:2]))])}", build)
