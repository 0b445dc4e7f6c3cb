# SPDX-License-Identifier: Apache-2.0
"""Modules that load while the policy changes: each event is judged by the policy that it names."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.vm import attack, lab
from tests.vm.attack import REFUSED

LoadedBy = Counter[tuple[str, str]]


@contextmanager
def loaders(files: list[Path], *, memory: bytes) -> Iterator[LoadedBy]:
    """One thread for each file and one for the bytes load all the time, and unload what got in."""
    seen: LoadedBy = Counter()
    over = threading.Event()

    def repeat(name: str, path: Path | None) -> None:
        while not over.is_set():
            outcome = lab.init(memory) if path is None else lab.finit(path)
            seen[name, outcome.result] += 1
            if outcome.ok:
                for module in (attack.GOOD, attack.PEST):
                    lab.unload(module)

    threads = [threading.Thread(target=repeat, args=(path.name, path)) for path in files]
    threads.append(threading.Thread(target=repeat, args=("memory", None)))
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def flip(watch: attack.Watch, texts: list[str], times: int) -> None:
    """Each config is in force for a moment, several times over."""
    for _ in range(times):
        for text in texts:
            attack.configure(watch.agent, text)
            time.sleep(0.2)


def events_of(watch: attack.Watch, path: Path) -> list[dict[str, Any]]:
    """The events of a file's loads that the log has. Loaders keep the agent busy: they may come late."""
    last = watch.directory / "last.ko"
    last.write_bytes(lab.in_tree("dummy").read_bytes())
    assert lab.finit(last).ok
    watch.agent.wait_for(lambda: bool(told(watch, last)), "event of the last load", 180)
    return told(watch, path)


def told(watch: attack.Watch, path: Path) -> list[dict[str, Any]]:
    return [event for event in watch.agent.events() if event["path"] == str(path)]


def test_enforce_and_audit_in_turn(watch: attack.Watch) -> None:
    """What a table in force refuses is out; what got in was judged by an audit table, and says so."""
    pest = watch.pest_file()
    enforce, audit = watch.signer.config(), watch.signer.config(mode="audit")
    with loaders([pest], memory=watch.pest_file("memory").read_bytes()) as seen:
        flip(watch, [audit, enforce], 2)
    results = {result for _, result in seen}
    assert {"ok", REFUSED} <= results
    events = events_of(watch, pest)
    judged = {(event["mode"], event["verdict"], event["errno"]) for event in events}
    assert judged == {("audit", "would_deny", REFUSED), ("enforce", "deny", REFUSED)}
    for event in events:
        assert (event["result"] == REFUSED) == (event["mode"] == "enforce"), event
    assert lab.finit(pest).result == REFUSED


def test_enforce_and_loadpin_and_nothing_in_turn(watch: attack.Watch) -> None:
    """Three policies that disagree on the same file. Each event fits the one that it names, whole."""
    pest = watch.pest_file()
    texts = [
        watch.signer.config(lab.DO_NOT_ENFORCE, loadPin="off"),
        watch.signer.config(lab.DO_NOT_ENFORCE),
        watch.signer.config(),
    ]
    with loaders([pest], memory=watch.pest_file("memory").read_bytes()) as seen:
        flip(watch, texts, 1)
    assert {"ok", "EPERM", REFUSED} <= {result for _, result in seen}
    fits = {
        (lab.ENFORCE, "deny", "bad_signature" if attack.DIGESTS else "unsigned", REFUSED),
        # Each change voids what was known, and the agent is busy with the changes.
        (lab.ENFORCE, "deny", "hold_timeout", REFUSED),
        (lab.ENFORCE, "deny", "agent_unavailable", REFUSED),
        (lab.DO_NOT_ENFORCE, "deny", "outside_pinned_root", "EPERM"),
        (lab.DO_NOT_ENFORCE, "deny", "no_file", "EPERM"),
        (lab.DO_NOT_ENFORCE, "allow", "not_restricted", None),
    }
    events = events_of(watch, pest)
    assert events
    for event in events:
        assert (event["policy"], event["verdict"], event["reason"], event["errno"]) in fits, event
        refused = event["verdict"] == "deny"
        assert (event["result"] in {"EPERM", REFUSED}) == refused, event
    assert lab.finit(pest).result == REFUSED


@pytest.mark.needs("digests")
def test_a_certificate_that_comes_and_goes(watch: attack.Watch) -> None:
    """Answers of the time when it was there are void when it is not, in the middle of loads too."""
    good = watch.signer.fresh_file(watch.directory)
    without = lab.config(lab.ENFORCE)
    with loaders([good], memory=watch.signer.fresh()) as seen:
        flip(watch, [without, watch.signer.config()], 1)
        attack.configure(watch.agent, without)
        # A load that began before may end now; those that begin now are refused.
        time.sleep(2.5)
        before, deadline = Counter(seen), time.monotonic() + 60
        while not (late := Counter(seen) - before):
            assert time.monotonic() < deadline, "nobody loads any more"
            time.sleep(0.5)
    assert {"ok", REFUSED} <= {result for _, result in seen}
    assert {result for _, result in late} == {REFUSED}
    assert lab.finit(good).result == REFUSED
