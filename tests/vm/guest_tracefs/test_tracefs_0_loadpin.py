# SPDX-License-Identifier: Apache-2.0
"""A kernel that takes no BPF program and has LoadPin: its own switch does what the policy asks for.

First of the files here: what is loaded first from a file pins a file system until the next boot.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import lab
from tests.vm.guest_tracefs.test_tracefs_1_watching import INSTANCES, hold

SWITCH = Path("/proc/sys/kernel/loadpin/enforce")
LSM = Path("/sys/kernel/security/lsm").read_text().strip().split(",")
PINNED = lab.config(lab.DO_NOT_ENFORCE, loadPin="on", onExit="detach", trust={})
FREE = lab.config(lab.DO_NOT_ENFORCE, loadPin="off", onExit="detach", trust={})
AUDIT = lab.config(lab.DO_NOT_ENFORCE, loadPin="on", mode="audit", onExit="detach", trust={})
ELSEWHERE = "kmodgate.pin=elsewhere" in Path("/proc/cmdline").read_text()

pytestmark = pytest.mark.skipif("loadpin" not in LSM, reason="this kernel has no LoadPin")
of_the_root = pytest.mark.skipif(ELSEWHERE, reason="in this boot another file system is pinned")


def switch() -> str:
    """What the kernel's switch says; before 6.3 it is not there until something was pinned."""
    return SWITCH.read_text().strip() if SWITCH.exists() else "absent"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Agent]:
    """Nobody names a backend."""
    agent = lab.Agent(tmp_path_factory.mktemp("agent"), extra=("--log-all",))
    agent.start(PINNED)
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.stop()


def doctor(directory: Path, text: str) -> tuple[int, dict[str, object]]:
    path = directory / "doctor.yaml"
    path.write_text(text)
    command = ["kmodgate", "doctor", "--config", str(path), "--output", "json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


@of_the_root
def test_this_kernel_takes_no_programs() -> None:
    assert not Path("/sys/kernel/btf").exists()
    assert "bpf_prog_load" not in Path("/proc/kallsyms").read_text()
    assert switch() in {"absent", "0"}


@of_the_root
def test_the_doctor_says_so_and_pins_nothing(tmp_path: Path) -> None:
    status, document = doctor(tmp_path, PINNED)
    assert (status, document["answer"], document["backend"]) == (0, "yes", "tracefs")
    rungs = document["rungs"]
    assert isinstance(rungs, list)
    offered = {rung["backend"]: rung["offered"] for rung in rungs}
    assert offered == dict.fromkeys(("bpf-lsm", "bpf-fmod-ret", "bpf-lsm-basic", "bcc"), "no") | {
        "tracefs": "yes"
    }
    assert all(rung["problems"] for rung in rungs[:4])
    assert "its own LoadPin" in rungs[4]["enforces"]
    assert switch() in {"absent", "0"}


@of_the_root
def test_the_rung_is_chosen_by_itself_and_the_kernel_enforces(agent: lab.Agent) -> None:
    samples = lab.metrics()
    assert samples['kmodgate_backend_info{backend="tracefs"}'] == 1
    assert (samples["kmodgate_enforcing"], lab.get("/readyz")[0], switch()) == (1, 200, "1")
    assert "not on backend bpf-lsm: the kernel's type information" in agent.log()
    assert "not on backend bcc: " in agent.log()
    assert f"{SWITCH} is 1 from now on: the policy asks for it" in agent.log()


@of_the_root
def test_the_pinned_root_loads_and_nothing_else_does(agent: lab.Agent, work: Path) -> None:
    agent.mark()
    result, event = hold(lab.in_tree("dummy"), lambda: agent.next_event(60))
    assert (result, event["verdict"], event["reason"]) == ("ok", "allow", "pinned_root")
    result, event = hold(work / "kmgtest.operator.ko", lambda: agent.next_event(60))
    assert (result, event["verdict"], event["by"]) == ("EPERM", "deny", "kernel")
    assert (event["reason"], event["errno"], event["file_system"]) == (
        "outside_pinned_root",
        "EPERM",
        "tmpfs",
    )
    assert lab.init((work / "kmgtest.operator.ko").read_bytes()).result == "EPERM"
    event = agent.next_event(60)
    assert (event["verdict"], event["reason"], event["by"]) == ("deny", "no_file", "kernel")
    assert not lab.is_loaded("kmgtest")


@of_the_root
def test_the_switch_follows_the_policy(agent: lab.Agent, work: Path) -> None:
    agent.configure(FREE)
    assert switch() == "0"
    assert lab.finit(work / "kmgtest.unsigned.ko").ok
    lab.unload("kmgtest")
    agent.configure(PINNED)
    assert switch() == "1"
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EPERM"
    agent.configure(AUDIT)
    assert (switch(), lab.metrics()["kmodgate_enforcing"]) == ("0", 0)
    agent.mark()
    result, event = hold(work / "kmgtest.unsigned.ko", lambda: agent.next_event(60))
    assert (result, event["verdict"], event["reason"]) == ("ok", "would_deny", "outside_pinned_root")
    lab.unload("kmgtest")
    agent.configure(PINNED)


@of_the_root
def test_somebody_who_switches_it_off_is_too_late(agent: lab.Agent, work: Path) -> None:
    SWITCH.write_text("0")
    agent.wait_for(lambda: switch() == "1", "switch that is on again", 10)
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EPERM"


@of_the_root
def test_a_killed_agent_leaves_the_kernel_enforcing_and_the_next_one_cleans_up(
    agent: lab.Agent, work: Path
) -> None:
    agent.kill()
    (left,) = INSTANCES.iterdir()
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EPERM"
    agent.start(PINNED)
    (own,) = INSTANCES.iterdir()
    assert (own.name != left.name, switch()) == (True, "1")
    assert agent.stop() == 0
    assert list(INSTANCES.iterdir()) == []
    # The killed one set it: nobody knows any more that it was off before.
    SWITCH.write_text("0")


@of_the_root
def test_a_clean_end_leaves_the_switch_as_it_was(agent: lab.Agent, work: Path) -> None:
    assert switch() == "0"
    agent.start(PINNED)
    assert switch() == "1"
    assert agent.stop() == 0
    assert switch() == "0"
    assert lab.finit(work / "kmgtest.unsigned.ko").ok


@pytest.mark.skipif(not ELSEWHERE, reason="the boot with kmodgate.pin=elsewhere has this")
def test_a_file_system_that_is_not_the_root_is_no_pinned_root(tmp_path: Path, work: Path) -> None:
    """Somebody has loaded from tmpfs before the agent came: that is what the kernel would enforce."""
    assert lab.finit(work / "kmgtest.unsigned.ko").ok
    lab.unload("kmgtest")
    assert switch() == "0"
    path = tmp_path / "node.yaml"
    path.write_text(PINNED)
    done = subprocess.run(
        ["kmodgate", "run", "--config", path], check=False, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 3
    assert "has pinned another file system than the node's root" in done.stderr
    assert (switch(), list(INSTANCES.iterdir())) == ("0", [])
