# SPDX-License-Identifier: Apache-2.0
"""The off switches of an agent without hardening: noticed, counted, put back."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.vm import lab, offswitch

EVENTS = 'kmodgate_off_switch_events_total{switch="ftrace_enabled"}'


@pytest.mark.needs("off-switch")
def test_ftrace_is_noticed_counted_and_set_back(agent: lab.Agent, work: Path) -> None:
    assert lab.metrics()["kmodgate_enforcing"] == 1
    assert lab.metrics()["kmodgate_hardened"] == 0
    said = agent.log().count("enforcing again")
    before = lab.metrics()[EVENTS]
    assert offswitch.sh("sysctl -w kernel.ftrace_enabled=0").status == 0
    agent.wait_for(lambda: offswitch.FTRACE.read_text() == "1\n", "switch set back")
    agent.wait_for(lambda: agent.log().count("enforcing again") > said, "enforcing again")
    log = agent.log().rpartition("not enforcing: ")[2]
    assert "ftrace_enabled" in log.splitlines()[0]  # and /readyz said the same until then
    assert "an off switch was touched: kernel.ftrace_enabled" in log
    agent.wait_for(lambda: lab.get("/readyz")[0] == 200, "ready again")
    after = lab.metrics()
    assert after[EVENTS] == before + 1
    assert after["kmodgate_enforcing"] == 1
    agent.mark()
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    assert agent.next_event()["reason"] == "unsigned"


@pytest.mark.needs("off-switch")
def test_readyz_says_so_while_the_switch_cannot_be_set_back(agent: lab.Agent, work: Path) -> None:
    """Somebody who keeps switching it off: every time is counted, and the node never claims more."""
    before = lab.metrics()[EVENTS]
    said = agent.log().count("an off switch was touched")

    def again() -> bool:
        if offswitch.FTRACE.read_text() == "1\n":
            offswitch.FTRACE.write_text("0")
        return agent.log().count("an off switch was touched") >= said + 3

    agent.wait_for(again, "third event", 60)
    agent.wait_for(lambda: offswitch.FTRACE.read_text() == "1\n", "switch set back")
    agent.wait_for(lambda: lab.get("/readyz")[0] == 200, "ready again")
    assert lab.metrics()[EVENTS] >= before + 3
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    agent.mark()


def resumed(pid: int) -> bool:
    """Sends SIGCONT; whether the process is neither stopped nor about to be."""
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.5)
    return "State:\tT" not in Path(f"/proc/{pid}/status").read_text()


def test_without_hardening_nothing_is_denied(agent: lab.Agent) -> None:
    assert offswitch.python(offswitch.STEAL_DESCRIPTOR, agent.pid).status == 0
    assert offswitch.python(offswitch.WRITE_MEMORY, agent.pid).status == 0
    assert offswitch.python(offswitch.ATTACH, agent.pid).status == 0
    # Attaching sends SIGSTOP, and a tracer that ends leaves that behind.
    agent.wait_for(lambda: resumed(agent.pid), "agent that runs")
    assert all(offswitch.open_number("map", number) == "ok" for number in offswitch.numbers("map"))
    assert offswitch.sh("kmodgate unlock --token-file /etc/hostname").status == 3
