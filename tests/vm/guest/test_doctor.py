# SPDX-License-Identifier: Apache-2.0
"""``kmodgate doctor`` on a kernel that can do everything, and on the same one after harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.vm import kernels, lab


def doctor(*options: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        ["kmodgate", "doctor", "--output", "json", *options], check=False, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def states(document: dict[str, Any]) -> dict[str, str]:
    return {line["code"]: line["state"] for line in document["checks"]}


def test_a_node_that_enforces_is_said_to(agent: lab.Agent) -> None:
    status, document = doctor("--config", str(agent.config_path))
    assert (status, document["answer"], document["because"]) == (0, "yes", [])
    offered = {rung["backend"]: rung["offered"] for rung in document["rungs"]}
    full = "digests" in kernels.this().capabilities
    best = "yes" if full else "no"
    assert document["backend"] == kernels.this().rung
    whole = {"bpf-lsm": best, "bpf-fmod-ret": best, "bpf-lsm-basic": "yes", "bcc": "no", "tracefs": "yes"}
    assert offered == whole
    found = states(document)
    # The kernel's verifier took the programs beside those of the agent that runs.
    wanted = ("lsm", "btf", "programs", "ftrace", "jit", "module-sig", "agent", "capabilities")
    assert {code: found[code] for code in wanted} == dict.fromkeys(wanted, "ok")
    assert found["helpers"] == ("ok" if full else "warning")
    assert found["pinned-root"] in {"ok", "warning"}
    assert "problem" not in found.values()


def test_looking_leaves_no_programs_and_no_maps(agent: lab.Agent, work: Path) -> None:
    before = objects()
    assert doctor()[0] == 0
    assert objects() == before
    agent.mark()
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    assert agent.next_event()["reason"] == "unsigned"


def objects() -> int:
    """BPF programs, maps and links that some process holds."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            count += sum(str(entry.readlink()).startswith("anon_inode:bpf") for entry in folder.iterdir())
    return count


@pytest.mark.needs("off-switch")
def test_what_silences_the_programs_is_found(agent: lab.Agent) -> None:
    switch = Path("/proc/sys/kernel/ftrace_enabled")
    os.kill(agent.pid, signal.SIGSTOP)  # it would put the switch back
    switch.write_text("0")
    try:
        status, document = doctor()
        assert (status, document["answer"]) == (1, "no")
        assert states(document)["ftrace"] == "problem"
        assert any("sysctl kernel.ftrace_enabled=1" in reason for reason in document["because"])
    finally:
        switch.write_text("1")
        os.kill(agent.pid, signal.SIGCONT)
    agent.wait_for(lambda: doctor()[0] == 0, "doctor that says yes")
