# SPDX-License-Identifier: Apache-2.0
"""The agent with the capabilities of the chart's pod and of the systemd unit, and no other."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import lab

CAPABILITIES = ["bpf", "perfmon", "sys_module", "sys_ptrace", "dac_read_search"]
if platform.release().startswith("5.10."):
    CAPABILITIES.append("sys_resource")  # BPF memory counts against a limit until 5.11
GUARD = Path("/sys/fs/bpf/kmodgate/guard")
FTRACE = Path("/proc/sys/kernel/ftrace_enabled")


def with_only(*capabilities: str) -> list[str]:
    """A command's beginning: it has these capabilities and no other."""
    bounding = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all"]


@pytest.fixture
def confined(agent: lab.Agent) -> Iterator[lab.Agent]:
    usual = agent._command
    agent.kill()
    agent._command = [*with_only(*CAPABILITIES), *usual]
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


@pytest.mark.needs("hardening")
def test_hardened_takes_one_capability_more(confined: lab.Agent) -> None:
    usual = confined._command[len(with_only()) :]
    hardened = lab.config(lab.ENFORCE, hardened=True)
    confined.kill()
    with pytest.raises(AssertionError, match=r"ended with 3:[^$]*CAP_NET_ADMIN"):
        confined.start(hardened)

    confining = with_only(*CAPABILITIES, "net_admin")
    confined._command = [*confining, *usual]
    confined.start(hardened)
    assert lab.metrics()["kmodgate_hardened"] == 1
    with pytest.raises(PermissionError):
        FTRACE.write_text("0")
    confined.kill()
    (former,) = GUARD.iterdir()
    confined.start(hardened)  # in the place of the guard that is there
    assert lab.metrics()["kmodgate_hardened"] == 1
    (present,) = GUARD.iterdir()
    assert present.name != former.name
    with pytest.raises(PermissionError):
        FTRACE.write_text("0")

    # Neither the next agent, which shall not be hardened, nor the way out needs it.
    confined.kill()
    confined._command = [*with_only(*CAPABILITIES), *usual]
    confined.start(lab.config(lab.ENFORCE))
    assert not GUARD.exists()
    assert FTRACE.write_text("1") == 1
    confined.kill()
    confined._command = [*confining, *usual]
    confined.start(hardened)
    confined.kill()
    subprocess.run([*with_only(*CAPABILITIES), "kmodgate", "detach"], check=True, capture_output=True)
    assert not GUARD.exists()
    assert FTRACE.write_text("1") == 1
