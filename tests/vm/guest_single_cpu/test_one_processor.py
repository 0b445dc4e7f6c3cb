# SPDX-License-Identifier: Apache-2.0
"""One processor: the wait must let the agent run, or nothing could ever be answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import lab

# The longest there is: one emulated processor has the agent, the loader and this test to run.
HOLD_US = 5_000_000


@pytest.fixture(scope="module")
def session_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Agent]:
    assert os.cpu_count() == 1
    Path("/tmp/staging").mkdir()
    directory = tmp_path_factory.mktemp("agent")
    config = lab.config(lab.ENFORCE, preverify=["/tmp/staging"], holdTimeout="5s")
    with lab.running(directory, config) as agent:
        yield agent
        assert "Traceback" not in agent.log()


@pytest.fixture
def agent(session_agent: lab.Agent) -> Iterator[lab.Agent]:
    session_agent.mark()
    yield session_agent
    lab.unload("kmgtest")


def asked() -> float:
    return sum(value for name, value in lab.metrics().items() if name.startswith("kmodgate_questions_total{"))


def test_a_trusted_file_loads_at_the_first_try(agent: lab.Agent, work: Path) -> None:
    before = lab.metrics()["kmodgate_hold_seconds_count"]
    assert lab.finit(work / "kmgtest.operator.ko").ok
    assert lab.metrics()["kmodgate_hold_seconds_count"] == before + 1
    event = agent.next_event()
    assert (event["reason"], event["by"]) == ("trusted_signature", "kmodgate")
    assert 0 < event["hold_us"] < HOLD_US
    print(f"\nfirst load of a file: held {event['hold_us']} us")


def test_the_second_load_of_it_asks_nobody_and_does_not_wait(agent: lab.Agent, work: Path) -> None:
    before = asked()
    assert lab.finit(work / "kmgtest.operator.ko").ok
    assert agent.next_event()["hold_us"] == 0
    assert asked() == before


def test_an_unsigned_file_is_refused_with_its_reason(agent: lab.Agent, work: Path) -> None:
    path = work / "fresh.ko"
    path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(16))
    assert lab.finit(path).result == "EKEYREJECTED"
    assert agent.next_event()["reason"] == "unsigned"


def test_loads_at_the_same_time_all_get_their_answer(agent: lab.Agent, work: Path) -> None:
    names = ("kmgtest.operator-ec.ko", "kmgtest.operator-skid.ko", "kmgtest.stranger.ko")
    results: dict[str, str] = {}

    def load(name: str) -> None:
        results[name] = lab.finit(work / name).result

    threads = [threading.Thread(target=load, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = [agent.next_event() for _ in names]
    assert sorted(event["verdict"] for event in events) == ["allow", "allow", "deny"]
    assert results["kmgtest.stranger.ko"] == "EKEYREJECTED"
    # One name: who comes second finds it loaded.
    assert {results[name] for name in names[:2]} <= {"ok", "EEXIST"}


def test_a_driver_in_a_watched_directory_does_not_wait(agent: lab.Agent, work: Path) -> None:
    path = Path("/tmp/staging/kmgtest.ko")
    name = 'kmodgate_preverified_modules{outcome="trusted"}'
    # Its own bytes, unknown so far: what follows the DER inside the signature is not looked at.
    path.write_bytes((work / "kmgtest.operator.ko").read_bytes())
    agent.wait_for(lambda: lab.metrics()[name] == 1, "verified file", 60)
    before = asked()
    assert lab.finit(path).ok
    assert agent.next_event()["hold_us"] == 0
    assert asked() == before


def test_from_memory_the_answer_is_there_at_the_second_try(agent: lab.Agent, work: Path) -> None:
    """``kernel_load_data`` is no hook that may sleep, so the first try may spin in vain, bounded."""
    data = (work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(16)
    first = lab.init(data)
    event = agent.next_event()
    assert first.result == "EKEYREJECTED"
    assert event["reason"] in {"unsigned", "hold_timeout"}
    assert event["hold_us"] < HOLD_US + 500_000
    print(f"\nfirst load from memory: {event['reason']}, held {event['hold_us']} us")

    def known() -> bool:
        lab.init(data)
        return bool(agent.next_event()["reason"] == "unsigned")

    agent.wait_for(known, "answer", 30)
    assert lab.init(data).result == "EKEYREJECTED"
    assert agent.next_event()["hold_us"] == 0
