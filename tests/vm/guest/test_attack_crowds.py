# SPDX-License-Identifier: Apache-2.0
"""Attacks with numbers: many loaders of one file and of many, forks in the wait, two on one CPU."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
from tests.vm import attack, kernels, lab
from tests.vm.attack import REFUSED

# A trusted module that another loader was faster with; loading, loaded, or on its way out.
TAKEN = {"ok", "EEXIST", "EBUSY", "ENOENT"}
CROWD = 64


def crowd(acts: Sequence[Callable[[], lab.Loaded]], *, patience: int = 120) -> list[str]:
    """The outcomes of loads that as many processes begin at the same moment.

    One that takes longer than ``patience`` seconds is ended, and its outcome is missing.
    """
    start_reader, start_writer = os.pipe()
    reader, writer = os.pipe()
    children = []
    for number, act in enumerate(acts):
        child = os.fork()
        if child == 0:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(patience)
                os.close(start_writer)
                os.read(start_reader, 1)  # ends when the parent closes its end
                os.write(writer, f"{number} {act().result}\n".encode())
            finally:
                os._exit(0)
        children.append(child)
    os.close(writer)
    os.close(start_reader)
    os.close(start_writer)
    with os.fdopen(reader) as said:
        lines = sorted((int(number), result) for number, result in map(str.split, said))
    for child in children:
        os.waitpid(child, 0)
    return [result for _, result in lines]


def expected(watch: attack.Watch, before: dict[str, float], attempts: int) -> None:
    """All of them are in the counts: as attempts, or shared and failed for another reason than a refusal.

    Shared results are seen at the end of a call alone. The kernel may pass over that program where it
    preempts, and says so: those are the exported misses.
    """
    after = watch.moves()
    moved = {name: after[name] - before[name] for name in after}
    shared = kernels.this().shares_loads
    missing = attempts - moved["attempts"] - (moved["refused_early"] if shared else 0)
    assert 0 <= missing <= (moved["misses"] if shared else 0), moved


def test_a_crowd_of_loaders_of_one_file(watch: attack.Watch) -> None:
    """One that nobody trusts; one that all may have, while nobody knows it and then when it is known."""
    good = watch.signer.fresh_file(watch.directory)
    # The agent may be too busy for a file that nobody knows: refused as well.
    for path, outcomes in ((watch.pest_file(), {REFUSED}), (good, {REFUSED, *TAKEN}), (good, TAKEN)):
        before = dict(watch.moves())
        results = crowd([partial(lab.finit, path)] * CROWD)
        assert len(results) == CROWD
        assert set(results) <= outcomes
        expected(watch, before, CROWD)
        if outcomes is not TAKEN:
            known_by_now(watch, path)
    assert "ok" in results
    assert lab.is_loaded(attack.GOOD)


def known_by_now(watch: attack.Watch, path: Path) -> None:
    """Wait until the agent has answered for a file; nothing of it stays loaded."""
    if path.name.startswith("pest"):
        return
    watch.agent.wait_for(lambda: lab.finit(path).result in {"ok", "EEXIST"}, "answer")
    lab.unload(attack.GOOD)


def test_a_crowd_of_loaders_of_many_files(watch: attack.Watch) -> None:
    """Each gets the verdict on its own file, whoever else is on the same CPU."""
    good = [watch.signer.fresh_file(watch.directory) for _ in range(4)]
    known = lab.finit(good[0])
    assert known.ok
    pests = []
    for number in range(CROWD - len(good)):
        path = watch.directory / f"pest-{number}.ko"
        path.write_bytes(attack.pest_of(watch.signer.unsigned()) + os.urandom(16))
        pests.append(path)
    before = dict(watch.moves())
    files = [*pests[:30], *good, *pests[30:]]
    results = crowd([partial(lab.finit, path) for path in files])
    for path, result in zip(files, results, strict=True):
        # Under such a load a file that nobody knows may find the agent too busy: refused as well.
        assert result in ({REFUSED, *TAKEN} if path in good else {REFUSED}), path
    assert results[files.index(good[0])] in TAKEN  # known: no wait, and no busy agent
    expected(watch, before, CROWD)


def test_loaders_that_fork_and_die_while_they_wait(watch: attack.Watch) -> None:
    """The agent is stopped, so every load waits; parents die, threads of state must not be mixed up."""
    lab.finit(watch.signer.fresh_file(watch.directory))
    lab.unload(attack.GOOD)
    pest = attack.pest_of(watch.signer.unsigned())
    os.kill(watch.agent.pid, signal.SIGSTOP)
    children = []
    try:
        for _ in range(6):
            child = os.fork()
            if child == 0:
                for _ in range(3):
                    if os.fork() == 0:
                        lab.init(pest + os.urandom(16))
                        os._exit(0)
                os._exit(0)  # the loaders get another parent while they load
            children.append(child)
        for _ in range(4):
            child = os.fork()
            if child == 0:
                while True:
                    lab.init(pest + os.urandom(16))
            children.append(child)
        time.sleep(1)
        for child in children[6:]:
            os.kill(child, signal.SIGKILL)
    finally:
        os.kill(watch.agent.pid, signal.SIGCONT)
    for child in children:
        os.waitpid(child, 0)
    orphans_are_done(watch)
    path = watch.signer.fresh_file(watch.directory)
    watch.agent.wait_for(lambda: lab.finit(path).ok, "agent that answers again")


def orphans_are_done(watch: attack.Watch) -> None:
    """Wait until no load is under way: the counts stand still."""
    deadline, last = time.monotonic() + 60, None
    while (now := dict(watch.moves())) != last:
        assert time.monotonic() < deadline
        last = now
        time.sleep(3)  # longer than a load may wait


@contextmanager
def preemption(mode: str) -> Iterator[None]:
    """Another preemption model for the time of the block (``CONFIG_PREEMPT_DYNAMIC``)."""
    setting = Path("/sys/kernel/debug/sched/preempt")
    usual = setting.read_text().partition("(")[2].partition(")")[0]
    setting.write_text(mode)
    try:
        yield
    finally:
        setting.write_text(usual)


def tally(path: Path) -> lab.Loaded:
    """Load again and again on the first CPU; every outcome with its number, as one word."""
    os.sched_setaffinity(0, {0})
    seen: Counter[str] = Counter()
    end = time.monotonic() + 2
    while time.monotonic() < end or sum(seen.values()) < 50:
        seen[lab.finit(path).result] += 1
    return lab.Loaded(",".join(f"{name}={count}" for name, count in seen.items()), 0)


def outcomes_of(word: str) -> Counter[str]:
    return Counter({name: int(count) for name, count in (part.split("=") for part in word.split(","))})


@pytest.mark.parametrize("mode", ["usual", pytest.param("full", marks=pytest.mark.needs("preemption-modes"))])
def test_loaders_on_one_cpu(watch: attack.Watch, mode: str) -> None:
    """Some load what is trusted and some what is not; neither's digest is ever taken for the other's.

    Where the kernel preempts, a program that was skipped leads to a refusal, never to a load.
    """
    good, pest = watch.signer.fresh_file(watch.directory), watch.pest_file()
    assert lab.finit(good).ok
    assert lab.finit(pest).result == REFUSED
    before = dict(watch.moves())
    watch.preempted = mode == "full"
    with preemption(mode) if watch.preempted else nullcontext():
        words = crowd([partial(tally, path) for path in (good, pest, pest, good)])
    assert len(words) == 4
    of_good = outcomes_of(words[0]) + outcomes_of(words[3])
    of_pest = outcomes_of(words[1]) + outcomes_of(words[2])
    assert of_good["EEXIST"] > 0
    assert set(of_pest) <= {REFUSED, "EPERM"}
    after = watch.moves()
    skipped = sum(after[name] - before[name] for name in ("misses", "state_missing"))
    assert of_good.total() - of_good["EEXIST"] + of_pest["EPERM"] <= skipped, (of_good, of_pest, skipped)
