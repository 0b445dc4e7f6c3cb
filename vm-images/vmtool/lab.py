# SPDX-License-Identifier: Apache-2.0
"""One run in a guest that finds test modules, certificates and tools under /share."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import artifacts, guesttools
from .runner import run, to_descriptor


def run_in_guest(
    command: Sequence[str],
    *,
    suite: str,
    share: Path | None = None,
    live: bool = False,
    timeout: float = 900,
    append: str = "",
    smp: int = 2,
    boot: float = 120,
    in_turn: bool = False,
) -> int:
    """Run a command with the lab's files at /share; its exit status.

    Args:
        command: program and arguments.
        suite: Debian suite of the kernel, or another word of ``artifacts.parts``.
        share: directory to use for /share, kept afterwards; None for a throw-away one.
        live: pass the command's output on as it comes; False drops it.
        timeout: seconds for the whole run.
        append: kernel arguments.
        smp: number of CPUs.
        boot: seconds until the command begins.
        in_turn: emulated processors run one after another.

    Raises:
        VmDied: the machine ended without a status from the command.
        VmToolError: it could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="kmodgate-lab-") as name:
        root = share or Path(name)
        parts = artifacts.parts(suite)
        for what, folder in ((parts.testmodules, "modules"), (parts.certs, "certs")):
            target = root / folder
            shutil.copytree(what, target, dirs_exist_ok=True)
            for key in target.glob("*.key"):
                key.unlink()
        shutil.copytree(guesttools.get(), root / "tools", dirs_exist_ok=True)
        return run(
            command,
            suite=suite,
            share=root,
            timeout=timeout,
            append=append,
            smp=smp,
            boot=boot,
            in_turn=in_turn,
            stdout=to_descriptor(sys.stdout.fileno()) if live else None,
            stderr=to_descriptor(sys.stderr.fileno()) if live else None,
        ).status
