# SPDX-License-Identifier: Apache-2.0
"""What is true of the agent after all the other tests; then it is stopped. Last by its name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.vm import lab

from kmodgate.hooks import bpfcall

PINS = Path("/sys/fs/bpf/kmodgate")


def test_the_agent_stays_small(agent: lab.Agent) -> None:
    assert agent.resident_kib() <= 60 * 1024


def test_metrics_are_written_out_for_the_host(agent: lab.Agent, work: Path) -> None:
    """The host's promtool reads this file. Whatever ran before may have left fresh counters."""
    assert agent.process is not None
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    share = Path("/share")
    if share.is_dir():
        (share / "metrics.txt").write_text(lab.get("/metrics")[1])
        (share / "agent.log").write_text(agent.log())


def test_sigterm_stops_cleanly_and_enforcement_stays(
    tmp_path: Path, work: Path, session_agent: lab.Agent
) -> None:
    """Last: the session's agent ends here."""
    assert session_agent.stop() == 0
    assert "enforcement goes on without the agent" in session_agent.log()
    assert "Traceback" not in session_agent.log()
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    held = bpfcall.pinned(next(iter(sorted(PINS.glob("abi-*/links/*/*")))))
    try:
        done = subprocess.run(["kmodgate", "detach"], check=False, capture_output=True, text=True)
    finally:
        os.close(held)
    assert done.returncode == 3
    assert "go on enforcing: another process holds them" in done.stderr
    done = subprocess.run(["kmodgate", "detach"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing was attached" in done.stdout
    assert lab.finit(work / "kmgtest.unsigned.ko").ok  # nobody enforces any more
    lab.unload("kmgtest")
    with lab.running(tmp_path, lab.config(lab.ENFORCE)):
        pass
    # As soon as the command has ended, so has enforcement.
    assert lab.finit(work / "kmgtest.unsigned.ko").ok
    lab.unload("kmgtest")
    assert not PINS.exists()
    other = lab.Agent(tmp_path)
    other.config_path.write_text(lab.config(lab.ENFORCE, trust={"certificates": ["/nowhere.pem"]}))
    done = subprocess.run(
        ["kmodgate", "run", "--config", other.config_path], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "/nowhere.pem" in done.stderr
    assert "Traceback" not in done.stderr
