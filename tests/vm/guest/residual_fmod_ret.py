# SPDX-License-Identifier: Apache-2.0
"""How much slips through the fmod_ret rung on one CPU. Run by tests/vm/test_fmod_ret.py.

Every load is of a module that must be refused. What gets in all the same is counted from outside,
and must have been noticed: nothing is rounded to nought.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

from tests.vm import lab

ATTEMPTS = int(os.environ.get("KMODGATE_RESIDUAL_ATTEMPTS", "4000"))
LOADERS = 8
TOOL = Path(os.environ.get("KMODGATE_TEST_TOOLS", "/share/tools")) / "storm"


def test_the_rung_is_the_one_that_is_measured(agent: lab.Agent) -> None:
    assert "bpf" not in Path("/sys/kernel/security/lsm").read_text().split(",")
    assert lab.metrics()['kmodgate_backend_info{backend="bpf-fmod-ret"}'] == 1
    assert "not on backend bpf-lsm:" in agent.log()


def test_what_slips_through_is_noticed(agent: lab.Agent, work: Path) -> None:
    files = []
    for number in range(LOADERS):
        path = work / f"loader-{number}.ko"
        path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + bytes([number]))
        lab.finit(path)
        files.append(path)
    lab.unload("kmgtest")
    before = lab.metrics()
    done = subprocess.run(
        ["taskset", "-c", "0", TOOL, str(LOADERS), str(ATTEMPTS), "kmgtest", "1", *files],
        check=True,
        capture_output=True,
        text=True,
    )
    *lines, last = done.stdout.splitlines()
    assert last == "done"
    results: Counter[int] = Counter()
    for line in lines:
        _, _, outcome, count = line.split()
        results[int(outcome)] += int(count)
    assert sum(results.values()) == ATTEMPTS
    after = lab.metrics()
    unseen = 'kmodgate_kernel_errors_total{kind="loaded_unseen"}'
    misses = after["kmodgate_program_misses_total"] - before["kmodgate_program_misses_total"]
    noticed = after[unseen] - before[unseen]
    # EEXIST and EBUSY come behind the signature check: another loader's module was in already.
    slipped = sum(results[outcome] for outcome in (0, 16, 17))
    figures = {
        "release": os.uname().release,
        "preemption": Path("/proc/cmdline").read_text().partition("preempt=")[2].split()[:1],
        "attempts": ATTEMPTS,
        "loaded": results[0],
        "slipped": slipped,
        "noticed": noticed,
        "misses": misses,
        "results": dict(results),
    }
    print(json.dumps(figures))
    Path("/share/residual.json").write_text(json.dumps(figures))
    assert noticed >= results[0]
    assert slipped <= misses
    if noticed:
        agent.wait_for(lambda: "got in without a decision" in agent.log(), "word of it")
