# SPDX-License-Identifier: Apache-2.0
"""What the chart's pod can do, and what each capability of it is for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.vm import lab
from tests.vm.guest_container.conftest import Runtime, lay

READY = 240.0
PROFILE = Path(__file__).parents[3] / "docs/examples/seccomp.json"


def ready() -> bool:
    return lab.get("/readyz")[0] == 200


def start(agent: lab.Agent) -> None:
    agent.wait_for(ready, "ready", READY)


def test_it_enforces_and_goes_on_without_the_pod(runtime: Runtime, work: Path) -> None:
    with runtime.started(runtime.spec("agent"), "enforce") as agent:
        start(agent)
        agent.mark()
        assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
        event = agent.next_event(90)
        assert (event["verdict"], event["reason"], event["node"]) == ("deny", "unsigned", "guest")
        assert event["path"] == str(work / "kmgtest.unsigned.ko")
        assert lab.finit(work / "kmgtest.operator.ko").ok
        lab.unload("kmgtest")
        assert lab.init((work / "kmgtest.operator-ec.ko").read_bytes()).ok
        lab.unload("kmgtest")
        status, text = lab.get("/metrics")
        assert status == 200
        assert "kmodgate_enforcing 1" in text
        (pid,) = pids("kmodgate")
        held = Path(f"/proc/{pid}/status").read_text()
        assert "Seccomp:\t2" in held
        assert "NoNewPrivs:\t1" in held
        Path("/share/status.txt").write_text(held)

        # The sysctl is read-only in the container, and yet put back.
        Path("/proc/sys/kernel/ftrace_enabled").write_text("0")
        agent.wait_for(
            lambda: Path("/proc/sys/kernel/ftrace_enabled").read_text().strip() == "1", "repair", 60
        )
        agent.wait_for(ready, "ready", 60)

        # An edit of the ConfigMap takes effect in the running agent.
        files = json.loads(Path("/share/pods.json").read_text())["files"]
        changed = files["config.yaml"].replace("mode: enforce", "mode: audit")
        assert changed != files["config.yaml"]
        lay(runtime.config, {**files, "config.yaml": changed}, "second")
        agent.wait_for(lambda: "config reloaded" in agent.log(), "reload")
        assert lab.finit(work / "kmgtest.unsigned.ko").ok
        lab.unload("kmgtest")
        lay(runtime.config, files, "third")
        agent.wait_for(lambda: agent.log().count("config reloaded") == 2, "reload")
        runtime.signal(runtime.last(), "KILL")
        assert agent.process is not None
        agent.process.wait(60)

    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    with runtime.started(runtime.spec("detach", init=True), "detach") as leaving:
        assert leaving.process is not None
        assert leaving.process.wait(READY) == 0, leaving.log()
    assert lab.finit(work / "kmgtest.unsigned.ko").ok


def pids(word: str) -> list[int]:
    """Processes of the node whose command line says so, containers' own runtime left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(argument.endswith(f"/{word}".encode()) for argument in arguments[:2]) and b"run" in arguments:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("capability", "said"),
    [("BPF", "CAP_BPF"), ("PERFMON", ""), ("SYS_MODULE", "CAP_SYS_MODULE"), ("SYS_PTRACE", "CAP_SYS_PTRACE")],
)
def test_without_one_of_these_it_does_not_start(runtime: Runtime, capability: str, said: str) -> None:
    with runtime.started(runtime.spec("agent", without=capability), f"without-{capability}") as agent:
        assert agent.process is not None
        assert agent.process.wait(READY) == 3, agent.log()
        assert said in agent.log()
        assert "Traceback" not in agent.log()


@pytest.mark.parametrize("without", [None, "DAC_READ_SEARCH"])
def test_a_file_that_root_does_not_own(runtime: Runtime, work: Path, without: str | None) -> None:
    """CAP_DAC_READ_SEARCH: an owner who lets nobody else read a trusted module keeps it from loading."""
    with runtime.started(runtime.spec("agent", without=without), f"owner-{without}") as agent:
        start(agent)
        agent.mark()
        private = work / "private.ko"
        private.write_bytes((work / "kmgtest.operator.ko").read_bytes())
        private.chmod(0o600)
        os.chown(private, 1000, 1000)
        outcome = lab.finit(private)
        private.unlink()
        if without is None:
            assert outcome.ok
        else:
            assert outcome.result == "EKEYREJECTED"
            assert agent.next_event(90)["reason"] != "trusted_signature"


def test_hardened_needs_one_more(runtime: Runtime) -> None:
    given = json.loads(Path("/share/pods.json").read_text())
    lay(runtime.config, given["hardened"], "hardened")
    try:
        spec = runtime.spec("hardened", without="NET_ADMIN")
        with runtime.started(spec, "without-NET_ADMIN") as agent:
            assert agent.process is not None
            assert agent.process.wait(READY) == 3, agent.log()
            assert "CAP_NET_ADMIN" in agent.log()
        for turn in ("first", "again"):  # the second one takes over from the first one's guard
            with runtime.started(runtime.spec("hardened"), f"hardened-{turn}") as agent:
                start(agent)
                assert "kmodgate_hardened 1" in lab.get("/metrics")[1]
                done = subprocess.run(
                    ["sysctl", "-w", "kernel.ftrace_enabled=0"], check=False, capture_output=True, text=True
                )
                assert Path("/proc/sys/kernel/ftrace_enabled").read_text().strip() == "1"
                assert done.returncode != 0, done.stdout
                runtime.signal(runtime.last(), "KILL")
                assert agent.process is not None
                agent.process.wait(60)
        with runtime.started(runtime.spec("hardened-detach", init=True), "hardened-detach") as leaving:
            assert leaving.process is not None
            assert leaving.process.wait(READY) == 0, leaving.log()
        assert Path("/proc/sys/kernel/ftrace_enabled").write_text("1") == 1
    finally:
        lay(runtime.config, given["files"], "usual")


def test_a_runtime_that_knows_no_cap_bpf_is_told_at_start(runtime: Runtime) -> None:
    """Profiles from before containerd 1.7 tie bpf(2) to CAP_SYS_ADMIN."""
    with runtime.started(runtime.spec("agent", bpf_by_capability=False), "old-profile") as agent:
        assert agent.process is not None
        assert agent.process.wait(READY) == 3, agent.log()
        assert "Traceback" not in agent.log()


def test_with_the_profile_of_the_documentation_it_starts_there(runtime: Runtime, work: Path) -> None:
    """docs/examples/seccomp.json is for such runtimes, and is narrower than theirs."""
    profile = json.loads(PROFILE.read_text())
    with runtime.started(runtime.spec("agent", localhost=profile), "own-profile") as agent:
        start(agent)
        assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
        assert lab.finit(work / "kmgtest.operator.ko").ok
        (pid,) = pids("kmodgate")
        assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
