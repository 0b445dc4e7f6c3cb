# SPDX-License-Identifier: Apache-2.0
"""Enforcement and counts outlive the agent: killed, starved of memory, replaced under fire."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import kernels, lab

PINS = Path("/sys/fs/bpf/kmodgate")
TOOLS = Path(os.environ.get("KMODGATE_TEST_TOOLS", "/share/tools"))
ATTEMPTS = int(os.environ.get("KMODGATE_TEST_FIRE", "10000"))


def restart(agent: lab.Agent, text: str | None = None) -> None:
    agent.start(text or lab.config(lab.ENFORCE))


@pytest.fixture
def shot(agent: lab.Agent, work: Path) -> Iterator[lab.Agent]:
    """The agent, killed; both digests were known to it. A new one runs afterwards."""
    if "digests" in kernels.this().capabilities:
        assert lab.finit(work / "kmgtest.operator.ko").ok
        lab.unload("kmgtest")
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    agent.kill()
    yield agent
    if agent.process is None or agent.process.poll() is not None:
        restart(agent)


def totals() -> tuple[float, float, float, float]:
    """Attempts, and what they must add up to: counted, undecided, misses."""
    samples = lab.metrics()
    return (
        samples["kmodgate_module_load_attempts_total"]
        + samples['kmodgate_kernel_errors_total{kind="redecided"}'],
        lab.counted(samples),
        samples["kmodgate_module_loads_undecided_total"],
        samples["kmodgate_program_misses_total"],
    )


def test_a_killed_agent_opens_nothing_and_loses_no_count(agent: lab.Agent, work: Path) -> None:
    before = lab.metrics()
    operators = 2 if "digests" in kernels.this().capabilities else 0
    if operators:
        assert lab.finit(work / "kmgtest.operator.ko").ok
        lab.unload("kmgtest")
    agent.kill()
    for _ in range(5):
        assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    if operators:
        assert lab.finit(work / "kmgtest.operator.ko").ok  # its digest is known
        lab.unload("kmgtest")
    assert lab.finit(lab.in_tree("dummy")).ok  # the kernel's own need nobody
    lab.unload("dummy")
    restart(agent)
    after = lab.metrics()
    for labels, number in (
        ({"verdict": "deny"}, 5),
        ({"verdict": "allow", "by": "kmodgate"}, operators),
        ({"verdict": "allow", "by": "kernel"}, 1),
    ):
        assert lab.counted(after, **labels) - lab.counted(before, **labels) == number, labels
    assert after["kmodgate_enforcement_gap_seconds"] == 0
    assert after["kmodgate_agent_gap_seconds"] > 0
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"


def told_of(agent: lab.Agent, path: Path) -> list[dict[str, Any]]:
    return [event for event in agent.events() if event["path"] == str(path)]


def test_what_happened_without_an_agent_is_told_by_the_next(shot: lab.Agent, work: Path) -> None:
    path = work / "kmgtest.unsigned.ko"
    before = len(told_of(shot, path))
    assert lab.finit(path).result == "EKEYREJECTED"
    restart(shot)
    shot.wait_for(lambda: len(told_of(shot, path)) > before, "event")
    assert told_of(shot, path)[-1]["verdict"] == "deny"


@pytest.mark.needs("digests")
def test_an_unknown_module_is_refused_while_nobody_can_verify_it(shot: lab.Agent, work: Path) -> None:
    path = work / "never-seen.ko"
    path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(8))
    time.sleep(4)  # the age at which a heartbeat counts no more is three seconds
    outcome = lab.finit(path)
    assert outcome.result == "EKEYREJECTED"
    restart(shot)
    shot.wait_for(lambda: told_of(shot, path) != [], "event")
    (event,) = told_of(shot, path)
    assert (event["reason"], event["hold_us"]) == ("agent_unavailable", 0)


@pytest.mark.needs("digests")
def test_failure_policy_ignore_lets_the_unknown_in_and_the_known_bad_not(
    agent: lab.Agent, work: Path
) -> None:
    agent.configure(lab.config(lab.ENFORCE, failurePolicy="Ignore"))
    assert lab.finit(work / "kmgtest.stranger.ko").result == "EKEYREJECTED"
    before = lab.counted(lab.metrics(), reason="failure_policy_ignore")
    agent.kill()
    path = work / "never-seen-ignored.ko"
    path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(8))
    assert lab.finit(path).ok
    lab.unload("kmgtest")
    assert lab.finit(work / "kmgtest.stranger.ko").result == "EKEYREJECTED"
    restart(agent, lab.config(lab.ENFORCE, failurePolicy="Ignore"))
    assert lab.counted(lab.metrics(), reason="failure_policy_ignore") == before + 1
    assert lab.finit(work / "kmgtest.stranger.ko").result == "EKEYREJECTED"


def test_out_of_memory_is_a_death_like_any_other(agent: lab.Agent, work: Path) -> None:
    group = Path("/sys/fs/cgroup/starved")
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+memory")
    group.mkdir(exist_ok=True)
    assert agent.process is not None
    (group / "cgroup.procs").write_text(str(agent.pid))
    (group / "memory.max").write_text("0")  # the next page that it touches is one too many
    agent.process.wait(60)
    assert "oom_kill 0" not in (group / "memory.events").read_text()
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    restart(agent)
    group.rmdir()
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"


@pytest.mark.needs("digests")
def test_a_full_answer_map_refuses_the_unknown_and_counts_on(agent: lab.Agent, work: Path) -> None:
    """The agent bounds its answers far below the map's size: fill it behind its back."""
    agent.configure(lab.config(lab.ENFORCE, maxModuleSize="32MiB"))
    assert lab.finit(work / "kmgtest.operator.ko").ok
    lab.unload("kmgtest")
    program = """
        import os
        from pathlib import Path
        from kmodgate.errors import HookError
        from kmodgate.hooks import libbpf
        answers = libbpf.pinned_map(next(Path("/sys/fs/bpf/kmodgate").glob("abi-*/maps/answers")))
        made = []
        try:
            while len(made) < 20000:
                made.append(os.urandom(32))
                answers.update(made[-1], bytes(16))
        except HookError as error:
            made.pop()
            print(error)
        print(len(made), flush=True)
        input()
        for key in made:
            answers.delete(key)
    """
    filler = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "/src/agent"},
    )
    assert filler.stdin is not None
    assert filler.stdout is not None
    assert "E2BIG" in filler.stdout.readline()
    assert int(filler.stdout.readline()) > 1000
    before = totals()
    fresh = work / "full.ko"
    fresh.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(8))
    assert lab.finit(fresh).result == "EKEYREJECTED"
    assert lab.finit(work / "kmgtest.operator.ko").ok
    lab.unload("kmgtest")
    after = totals()
    filler.communicate("\n", timeout=120)
    assert after[0] - before[0] == sum(after[1:]) - sum(before[1:]) == 2
    assert lab.finit(fresh).result == "EKEYREJECTED"


def forget_the_programs() -> None:
    """As if the next agent came with other programs than those that are in force."""
    program = """
        import ctypes, mmap
        from pathlib import Path
        from kmodgate.hooks import abi, libbpf
        control = libbpf.pinned_map(next(Path("/sys/fs/bpf/kmodgate").glob("abi-*/maps/control")))
        abi.Control.from_buffer(control.memory(ctypes.sizeof(abi.Control))).programs += 1
    """
    environment = {**os.environ, "PYTHONPATH": "/src/agent"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, env=environment)


@pytest.mark.parametrize("upgrade", [False, True], ids=["restarts", "upgrade"])
def test_nothing_slips_through_and_nothing_counts_twice(agent: lab.Agent, work: Path, upgrade: bool) -> None:
    """Known digests, refused and allowed, as fast as two loaders can, while agents come and go."""
    files = [work / "kmgtest.unsigned.ko", work / "kmgtest.stranger.ko", lab.in_tree("dummy")]
    for path in files:  # from here on every digest is known
        lab.finit(path)
    lab.unload("dummy")
    before, denied = totals(), lab.counted(lab.metrics(), verdict="deny")
    generation = [path.name for path in PINS.glob("abi-*/links/*")]
    early = lab.metrics()['kmodgate_kernel_errors_total{kind="refused_early"}']
    results: Counter[tuple[str, str]] = Counter()
    stop = threading.Event()

    def fire() -> None:
        while not stop.is_set() or sum(results.values()) < ATTEMPTS:
            done = subprocess.run(
                [TOOLS / "storm", "2", "1000", "dummy", "1", *files],
                check=True,
                capture_output=True,
                text=True,
            )
            *lines, last = done.stdout.splitlines()
            assert last == "done"
            for line in lines:
                index, _, number, count = line.split()
                results[files[int(index)].name, number] += int(count)

    shooter = threading.Thread(target=fire)
    shooter.start()
    ends = (agent.kill, agent.stop, agent.kill)
    for number, end in enumerate(ends):
        time.sleep(0.5)
        end()
        if upgrade and number == len(ends) - 1:
            forget_the_programs()
        restart(agent)
    stop.set()
    shooter.join()
    print(f"fired: {dict(results)}")
    fired = sum(results.values())
    assert fired >= ATTEMPTS
    trusted = files[2].name
    assert {name for name, number in results if number == "0"} == {trusted}
    assert {number for name, number in results if name != trusted} == {str(errno.EKEYREJECTED)}
    samples, after = lab.metrics(), totals()
    shared = samples['kmodgate_kernel_errors_total{kind="refused_early"}'] - early
    assert samples['kmodgate_kernel_errors_total{kind="loaded_unseen"}'] == 0
    attempts, counted, undecided, misses = (now - then for now, then in zip(after, before, strict=True))
    # What refuses counts where it refuses: exact, whatever happens to agents and programs. Where the kernel
    # preempts it may pass over a program, and says so.
    refused = sum(count for (_, number), count in results.items() if number == str(errno.EKEYREJECTED))
    assert 0 <= refused - (lab.counted(samples, verdict="deny") - denied) <= misses
    assert attempts >= refused + results[trusted, "0"] - misses
    # What shares another loader's result comes to no hook, and counts at the end of the call. The kernel
    # passes over the ends of calls that are under way while programs are replaced.
    passed_over = misses + (8 if upgrade else 0)
    assert 0 <= fired - (attempts + shared) <= passed_over
    assert 0 <= fired - (counted + undecided + shared) <= passed_over
    print(f"{misses:.0f} misses; {fired - attempts - shared:.0f}, {fired - counted - shared:.0f} not counted")
    links = [path.name for path in PINS.glob("abi-*/links/*")]
    assert len(links) == 1
    assert (links != generation) == upgrade


def test_a_full_event_ring_loses_detail_and_no_count(shot: lab.Agent, work: Path) -> None:
    for _ in range(1500):  # a record has above 800 bytes, the ring a megabyte
        assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    restart(shot)
    samples = lab.metrics()
    assert samples['kmodgate_events_lost_total{kind="event_ring"}'] > 0
    assert lab.counted(samples, reason="unsigned") >= 1500


@pytest.mark.usefixtures("agent")
def test_only_one_agent_runs_on_a_node(tmp_path: Path) -> None:
    other = tmp_path / "node.yaml"
    other.write_text(lab.config(lab.ENFORCE, listen="127.0.0.1:9465"))
    done = subprocess.run(
        ["kmodgate", "run", "--config", other], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3
    assert "another agent runs on this node" in done.stderr
    done = subprocess.run(["kmodgate", "detach"], check=False, capture_output=True, text=True)
    assert done.returncode == 3
    assert "another agent runs" in done.stderr
    assert lab.get("/readyz")[0] == 200


def test_pins_of_other_records_are_never_read_and_go(agent: lab.Agent, work: Path) -> None:
    old = PINS / "abi-1"
    (old / "links" / "4").mkdir(parents=True)
    (old / "maps").mkdir()
    agent.kill()
    restart(agent)
    assert not old.exists()
    assert "abi-1: other records than this version's" in agent.log()
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"


def test_a_removed_pin_is_made_anew(agent: lab.Agent) -> None:
    (pin,) = PINS.glob("abi-*/links/*/kmg_locked_down")
    pin.unlink()
    agent.wait_for(pin.exists, "pin")
    agent.wait_for(
        lambda: "pins were removed, and were made anew (kmg_locked_down)" in agent.log(), "word of it"
    )


def test_on_exit_detach_pins_nothing(agent: lab.Agent, work: Path) -> None:
    agent.stop()
    subprocess.run(["kmodgate", "detach"], check=True, capture_output=True)
    agent.start(lab.config(lab.ENFORCE, onExit="detach"))
    assert not PINS.exists()
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    assert agent.stop() == 0
    assert lab.finit(work / "kmgtest.unsigned.ko").ok
    lab.unload("kmgtest")
    restart(agent)
    gap = lab.metrics()["kmodgate_enforcement_gap_seconds"]
    assert 0 < gap < float(Path("/proc/uptime").read_text().split()[0])
