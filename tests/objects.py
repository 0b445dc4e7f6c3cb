# SPDX-License-Identifier: Apache-2.0
"""BPF objects by the Makefile's own rules, for any machine type, out of the tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def compile_for(machine: str, source: str, out: Path) -> Path:
    """One object.

    Args:
        machine: ``x86`` or ``arm64``, as the kernel's sources call it.
        source: its name below ``agent/kmodgate/hooks``, without the ending.
        out: the file to write.
    """
    target = f"agent/kmodgate/hooks/{source}.bpf.o"
    done = subprocess.run(
        ["make", "--always-make", "--dry-run", f"ARCH={machine}", target],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    (command,) = [line for line in done.stdout.splitlines() if " -target bpf " in line]
    subprocess.run(command.replace(f"{target}.new", str(out)), shell=True, cwd=ROOT, check=True)  # noqa: S602  # our own Makefile's command
    return out
