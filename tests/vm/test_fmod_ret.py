# SPDX-License-Identifier: Apache-2.0
"""The fmod_ret rung: the verdicts of the others, and what its gates let slip on preemptible kernels."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.vm.boot import alive, need_qemu
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

GUEST = "/src/tests/vm/guest"
INSIDE = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST]
WITHOUT_BPF = "lsm=lockdown,yama,apparmor"
# suite, kernel arguments, files; 7.2 preempts lazily by default.
RUNS = [
    ("bookworm", WITHOUT_BPF, ["test_enforce.py", "residual_fmod_ret.py"]),
    ("bookworm", f"{WITHOUT_BPF} preempt=full", ["residual_fmod_ret.py"]),
    ("sid", WITHOUT_BPF, ["residual_fmod_ret.py"]),
]
CHOSEN = int(os.environ.get("KMODGATE_FMOD_RET_RUNS", "1"))


@pytest.mark.parametrize(("suite", "append", "files"), RUNS[:CHOSEN])
def test_the_rung(tmp_path: Path, suite: str, append: str, files: list[str]) -> None:
    need_qemu("test-fmod-ret")
    attempts = os.environ.get("KMODGATE_RESIDUAL_ATTEMPTS", "4000")
    command = [
        "env",
        f"KMODGATE_RESIDUAL_ATTEMPTS={attempts}",
        *INSIDE,
        *(f"{GUEST}/{file}" for file in files),
    ]
    with alive():
        status = run_in_guest(command, suite=suite, share=tmp_path, live=True, timeout=1500, append=append)
    assert status == 0
    print(json.loads((tmp_path / "residual.json").read_text()))
