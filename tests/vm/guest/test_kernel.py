# SPDX-License-Identifier: Apache-2.0
"""The kernel is what tests/vm/kernels.py says, and the agent stands on the rung that it offers."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

from tests.vm import kernels, lab, matrix


def test_the_table_says_what_the_kernel_shows() -> None:
    expected = kernels.this()
    shown = kernels.seen()
    assert shown == {name: getattr(expected, name) for name in shown}


def test_the_compressed_flag_meets_what_the_table_says(agent: lab.Agent) -> None:
    """Of a file that is not compressed: a kernel that unpacks refuses what it cannot unpack."""
    result = lab.finit(lab.in_tree("dummy"), lab.COMPRESSED_FILE).result
    expected = kernels.this().without_decompression
    assert result == expected if expected else result not in {"ok", "EOPNOTSUPP"}
    agent.mark()


def test_the_agent_stands_on_the_rung_that_the_kernel_offers(agent: lab.Agent) -> None:
    rung = kernels.this().rung
    named = {name: value for name, value in lab.metrics().items() if name.startswith("kmodgate_backend_info")}
    assert {name for name, value in named.items() if value} == {f'kmodgate_backend_info{{backend="{rung}"}}'}
    assert f"backend {rung}" in agent.log()
    # What keeps it from a better one is in the log, feature by feature.
    assert ("not on backend bpf-lsm: " in agent.log()) == (rung != kernels.BPF_LSM)


def test_the_doctor_sees_the_same_rung() -> None:
    done = subprocess.run(
        ["kmodgate", "doctor", "--output", "json"], check=False, capture_output=True, text=True
    )
    document = json.loads(done.stdout)
    assert (done.returncode, document["backend"]) == (0, kernels.this().rung)


def test_the_host_is_told_what_this_kernel_is() -> None:
    rung = next(
        name.split('"')[1]
        for name, value in lab.metrics().items()
        if name.startswith("kmodgate_backend_info") and value
    )
    share = Path("/share")
    if share.is_dir():
        about = matrix.describe(kernels.this(), platform.release(), rung)
        (share / "kernel.json").write_text(json.dumps(about))
