# SPDX-License-Identifier: Apache-2.0
"""What is true of the agent after all the other tests; then it is stopped. Last by its name."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.vm import lab


def test_the_agent_stays_small(agent: lab.Agent) -> None:
    assert agent.resident_kib() <= 60 * 1024


def test_metrics_are_written_out_for_the_host(agent: lab.Agent) -> None:
    """The host's promtool reads this file."""
    assert agent.process is not None
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
    done = subprocess.run(["kmodgate", "detach"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no longer enforces" in done.stdout
    assert lab.finit(work / "kmgtest.unsigned.ko").ok  # nobody enforces any more
    lab.unload("kmgtest")
    assert not Path("/sys/fs/bpf/kmodgate").exists()
    other = lab.Agent(tmp_path)
    other.config_path.write_text(lab.config(lab.ENFORCE, trust={"certificates": ["/nowhere.pem"]}))
    done = subprocess.run(
        ["kmodgate", "run", "--config", other.config_path], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "/nowhere.pem" in done.stderr
    assert "Traceback" not in done.stderr
