# SPDX-License-Identifier: Apache-2.0
"""Runs inside the guest, started by ``tests/bench/bench_idle.py``: an agent that has nothing to do.

Counts how often each thread woke up, the time that the processor was not idle (with the agent and
without), and the process's memory. The kernel's clock for the time of single tasks is of no use
here: without a steady TSC it loses time. That of idling is the wall clock.
What was measured goes as JSON to ``result.json`` in the working directory.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.vm import lab

SHARE = Path("/share")
SETTLE_SECONDS = 10


def wakes(pid: int) -> dict[str, int]:
    """Voluntary switches by thread."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        switches = re.search(
            r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.MULTILINE
        )
        if switches is None:
            raise RuntimeError(f"{task}/status names no switches")
        found[task.name] = int(switches[1])
    return found


def busy(seconds: float) -> float:
    """Seconds that the processor was not idle in the next ``seconds``, the wait for disks left out."""

    def look() -> float:
        with open("/proc/stat", encoding="ascii") as stat:  # noqa: PTH123  # the least work
            fields = stat.readline().split()
        return time.monotonic() - (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")

    before = look()
    time.sleep(seconds)
    return look() - before


def storm(loads: int) -> None:
    """Loads that the agent must verify, trusted and not, each with a digest of its own."""
    good = (lab.MODULES / "kmgtest.operator.ko").read_bytes()
    path = Path("/tmp/storm.ko")
    for number in range(loads):
        # Behind the marker: unsigned from then on, and each another digest.
        path.write_bytes(good if number % 2 else good + number.to_bytes(4, "little"))
        outcome = lab.finit(path)
        if outcome.result != ("ok" if number % 2 else "EKEYREJECTED"):
            raise RuntimeError(f"load {number}: {outcome.result}")
        lab.unload("kmgtest")


def main() -> None:
    plan = json.loads((SHARE / "plan.json").read_text())
    directory = Path("/tmp/agent")
    directory.mkdir()
    result: dict[str, Any] = {"seconds": plan["seconds"], "busy_without": busy(plan["seconds"])}
    with lab.running(directory, lab.config(lab.ENFORCE), log_all=False) as agent:
        result["resident_kib"] = agent.resident_kib()
        storm(plan["loads"])
        lab.metrics()  # so that the thread of an HTTP connection has been there, and is gone
        time.sleep(SETTLE_SECONDS)
        result["resident_after_kib"] = agent.resident_kib()
        before = wakes(agent.pid)
        result["busy"] = busy(plan["seconds"])
        after = wakes(agent.pid)
        result["wakes"] = sorted(after[name] - count for name, count in before.items())
    (SHARE / "result.json").write_text(json.dumps(result))


main()
