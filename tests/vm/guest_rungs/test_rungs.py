# SPDX-License-Identifier: Apache-2.0
"""Every rung of this guest, every policy and every load of tests/vm/scenarios.py; then they are compared."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import bcclab, lab
from tests.vm.scenarios import INSTEAD, POLICIES, SCENARIOS, STANCES, VOLATILE, Scenario, Stance

from kmodgate.hooks.capabilities import CAPABILITIES
from kmodgate.model import Backend

GUEST = STANCES[os.environ["KMODGATE_GUEST"]]
INSTANCES = Path("/sys/kernel/tracing/instances")

Seen = dict[tuple[Backend, str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def seen() -> Seen:
    """The event of each load, by rung, policy and scenario."""
    return {}


def text(policy: str, backend: Backend) -> str:
    ours = dict(POLICIES[policy])
    return lab.config(ours.pop("policy"), backend=backend.value, onExit="detach", **ours)


def attempt_us() -> float:
    """Microseconds of an attempt that every hook sees and that cannot succeed: the least of many."""
    return min(lab.init(bytes(128)).micros for _ in range(300))


@pytest.fixture(scope="module")
def costs() -> dict[str, float]:
    """Of an attempt, by rung; without any agent first."""
    return {"no agent": attempt_us()}


@pytest.fixture(scope="module", params=GUEST, ids=str)
def rung(request: pytest.FixtureRequest, costs: dict[str, float]) -> Iterator[tuple[Backend, lab.Agent]]:
    assert costs
    backend = request.param
    directory = Path("/tmp/rungs") / backend.value
    directory.mkdir(parents=True)
    agent = lab.Agent(directory, extra=("--log-all",))
    try:
        agent.start(text(next(iter(POLICIES)), backend), wait=bcclab.START_SECONDS)
        yield backend, agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.stop()
        Path(f"/share/{backend.value}.log").write_text(agent.log())
        subprocess.run(["kmodgate", "detach"], check=True, capture_output=True)
    assert left_behind() == []


def left_behind() -> list[str]:
    """Instances, pinned objects and probes that are still there when the agent is gone."""
    kprobes = Path("/sys/kernel/debug/kprobes/list")
    probes = kprobes.read_text().splitlines() if kprobes.exists() else []
    return [
        *(str(path) for path in INSTANCES.iterdir()),
        *(str(path) for path in Path("/sys/fs/bpf").glob("kmodgate/*")),
        *(line for line in probes if "module" in line or "security_" in line),
    ]


def act(scenario: Scenario, work: Path, agent: lab.Agent) -> tuple[str, dict[str, Any]]:
    """Do a load and wait for its event; the caller keeps the file open until then."""
    if scenario.path is None:
        result = scenario.load(work, -1).result
        return result, agent.next_event(60)
    fd = os.open(scenario.path(work), os.O_RDONLY | os.O_CLOEXEC)
    try:
        result = scenario.load(work, fd).result
        return result, agent.next_event(60)
    finally:
        os.close(fd)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_rung_does(
    rung: tuple[Backend, lab.Agent], policy: str, work: Path, seen: Seen, costs: dict[str, float]
) -> None:
    backend, agent = rung
    stance = GUEST[backend][policy]
    if stance is Stance.CANNOT:
        before = agent.log().count("not reloaded")
        agent.rewrite(text(policy, backend))
        agent.wait_for(lambda: agent.log().count("not reloaded") > before, "refusal")
        assert f"backend {backend} " in agent.log().rpartition("not reloaded")[2]
        return
    if agent.config_path.read_text() != text(policy, backend):
        agent.configure(text(policy, backend))
    samples = lab.metrics()
    assert samples[f'kmodgate_backend_info{{backend="{backend}"}}'] == 1
    audit = POLICIES[policy].get("mode") == "audit"
    enforcing = not audit and not (policy == "nothing" and backend is Backend.BCC and not refuses(backend))
    assert samples["kmodgate_enforcing"] == enforcing
    agent.mark()
    problems = []
    for scenario in SCENARIOS:
        result, event = act(scenario, work, agent)
        seen[backend, policy, scenario.name] = event
        found = (result, *(event[name] for name in ("result", "verdict", "reason", "errno", "by")))
        expected = expect(scenario, policy, stance)
        reasons = {expected[3], INSTEAD.get((backend, policy), {}).get(expected[3])}
        same = (*found[:3], found[4]) == (*expected[:3], expected[4])
        if not same or found[3] not in reasons or found[5] not in expected[5]:
            problems.append(f"{scenario.name}: {found}, expected {expected}")
        for name in ("kmgtest", "dummy"):
            lab.unload(name)
    assert not problems, "\n".join(problems)
    if policy == "audit signatures":
        costs[backend.value] = attempt_us()


def refuses(backend: Backend) -> bool:
    return GUEST[backend]["LoadPin"] is Stance.REFUSES


def expect(scenario: Scenario, policy: str, stance: Stance) -> tuple[Any, ...]:
    """Result twice, verdict, reason, errno, and who may have decided."""
    denied, by_kernel = scenario.denied.get(policy), scenario.by_kernel
    if by_kernel is not None and denied in {None, by_kernel}:
        reason, number = by_kernel
        return number, number, "deny", reason, number, {"kernel"}
    if denied is not None:
        reason, number = denied
        if stance is Stance.WATCHES:
            result = "ok" if by_kernel is None else by_kernel[1]
            return result, result, "would_deny", reason, number, {"kmodgate"}
        by = {"kmodgate"} if stance is Stance.REFUSES else {"kernel"}
        return number, number, "deny", reason, number, by
    return "ok", "ok", "allow", scenario.allowed[policy], None, {"kmodgate", "kernel"}


def test_the_same_load_gives_the_same_event(seen: Seen, costs: dict[str, float]) -> None:
    """But for what a rung cannot know, and for who refused it."""
    best = next(iter(GUEST))
    problems, more = [], set()
    for (backend, policy, name), event in seen.items():
        reference = seen.get((best, policy, name))
        if reference is None or backend is best:
            continue
        assert set(event) == set(reference)
        able = CAPABILITIES[backend]
        for key, value in event.items():
            if key in VOLATILE or value == reference[key]:
                continue
            if value is None and key in able.unknown:
                continue
            if value is None and event["verdict"] in {"deny", "would_deny"} and key in able.unasked:
                continue
            if key == "reason" and INSTEAD.get((backend, policy), {}).get(reference[key]) == value:
                continue
            if reference[key] is None:
                more.add((backend.value, key))  # a rung that reads every file knows its digest
                continue
            if key == "by" and GUEST[backend][policy] is not GUEST[best][policy]:
                continue
            problems.append(f"{backend}, {policy}, {name}: {key} is {value!r}, not {reference[key]!r}")
    Path("/share/rungs.json").write_text(
        json.dumps({"events": len(seen), "known to a lower rung alone": sorted(more), "attempt in us": costs})
    )
    assert not problems, "\n".join(problems)


def test_what_a_rung_never_knows_is_null(seen: Seen) -> None:
    for (backend, policy, name), event in seen.items():
        null = {key for key, value in event.items() if value is None}
        assert null >= set(CAPABILITIES[backend].unknown), (backend, policy, name)
