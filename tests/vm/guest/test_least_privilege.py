# SPDX-License-Identifier: Apache-2.0
"""The agent with the capabilities of the chart's pod and of the systemd unit, and no other."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import lab

CAPABILITIES = ["bpf", "perfmon", "sys_module", "sys_ptrace", "dac_read_search"]
if platform.release().startswith("5.10."):
    CAPABILITIES.append("sys_resource")  # BPF memory counts against a limit until 5.11
BOUNDING = ",".join(["-all", *(f"+{name}" for name in CAPABILITIES)])


@pytest.fixture
def confined(agent: lab.Agent) -> Iterator[lab.Agent]:
    usual = agent._command
    agent.kill()
    agent._command = ["setpriv", f"--bounding-set={BOUNDING}", "--inh-caps=-all", *usual]
    agent.start(lab.config(lab.ENFORCE))
    yield agent
    agent._command = usual
    agent.stop()
    agent.start(lab.config(lab.ENFORCE))


def test_it_takes_over_pinned_programs_and_starts_again(confined: lab.Agent, work: Path) -> None:
    """By a program's number the kernel gives it to nobody without CAP_SYS_ADMIN: not what this relies on."""
    status = Path(f"/proc/{confined.pid}/status").read_text()
    (effective,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff")]
    assert effective.bit_count() == len(CAPABILITIES)
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    confined.kill()
    confined.start(lab.config(lab.ENFORCE))
    assert lab.metrics()["kmodgate_enforcing"] == 1
    assert lab.metrics()["kmodgate_enforcement_gap_seconds"] == 0
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
