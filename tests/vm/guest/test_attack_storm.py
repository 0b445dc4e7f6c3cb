# SPDX-License-Identifier: Apache-2.0
"""A storm of loads of known digests on both CPUs: no load gets by, and no count is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.vm import attack, lab
from tests.vm.attack import REFUSED

# 100,000 takes minutes where the guest is emulated: the number for a full run, see docs/attacks.md.
ATTEMPTS = int(os.environ.get("KMODGATE_STORM_ATTEMPTS", "10000"))
PROCESSES = 4
HOLD = 400  # attempts for which a loader keeps what it loaded
TOOL = Path(os.environ.get("KMODGATE_TEST_TOOLS", "/share/tools")) / "storm"
ALLOWED = {"ok", "EEXIST", "EBUSY", "ENOENT"}
RESIDENT_KIB = 60 * 1024

Outcomes = Counter[tuple[int, str, str]]  # file, call, errno


def storm(files: list[Path]) -> Outcomes:
    """What came of every attempt, as the loaders saw it."""
    command: list[str | Path] = [TOOL, str(PROCESSES), str(ATTEMPTS), attack.GOOD, str(HOLD), *files]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    *lines, last = done.stdout.splitlines() or [""]
    assert (done.returncode, last) == (0, "done"), done
    outcomes: Outcomes = Counter()
    for line in lines:
        index, call, number, count = line.split()
        outcomes[int(index), call, errno.errorcode[int(number)] if number != "0" else "ok"] += int(count)
    return outcomes


def wait_until_known(watch: attack.Watch, path: Path) -> None:
    watch.agent.wait_for(lambda: lab.finit(path).result in ALLOWED, "answer")
    lab.unload(attack.GOOD)


def stated(agent: lab.Agent) -> int:
    """Events that the log says are missing from it."""
    lines = Path(agent.config_path.parent / "events.jsonl").read_text().splitlines()
    told = (json.loads(line) for line in lines if '"suppressed"' in line)
    return sum(record["count"] for record in told if record["event"] == "suppressed")


def test_a_storm_loses_no_count_and_lets_nothing_by(watch: attack.Watch) -> None:
    good = [watch.signer.fresh_file(watch.directory) for _ in range(2)]
    unsigned = watch.directory / "unsigned.ko"
    unsigned.write_bytes(attack.pest_of(watch.signer.unsigned()))
    pests = [watch.pest_file(f"pest-{number}.ko") for number in range(4)]
    short = watch.directory / "short"
    short.write_bytes(os.urandom(200))
    stranger = lab.MODULES / "kmgtest.stranger.ko"
    files = [*good, unsigned, *pests, short, stranger]
    for path in files:  # from here on every digest is known
        lab.finit(path)
        lab.unload(attack.GOOD)
    for path in good:  # a busy emulated CPU may take longer to verify than a load may wait
        wait_until_known(watch, path)
    records_before = watch.agent.settled()
    before = dict(watch.moves())
    denied, allowed, shared = (
        watch.moved(verdict="deny"),
        watch.moved(verdict="allow"),
        watch.moved(by="shared"),
    )

    began = time.monotonic()
    outcomes = storm(files)
    seconds = time.monotonic() - began

    assert sum(outcomes.values()) == ATTEMPTS
    trusted = sum(n for (index, _, _), n in outcomes.items() if index < len(good))
    assert {result for index, _, result in outcomes if index < len(good)} <= ALLOWED
    assert {result for index, _, result in outcomes if index >= len(good)} == {REFUSED}
    assert any(result == "ok" for _, _, result in outcomes)
    watch.check_modules()
    # Every attempt is in the counts, once. Shared results that are no refusal have their own count.
    moved = {name: value - before[name] for name, value in watch.moves().items()}
    # Where the kernel preempts it may pass over the end of a call: those are the exported misses.
    misses = moved["misses"]
    assert 0 <= ATTEMPTS - moved["attempts"] - moved["refused_early"] <= misses, moved
    assert 0 <= moved["attempts"] - moved["counted"] <= misses, moved
    assert moved["undecided"] == moved["loaded_unseen"] == moved["redecided"] == 0, moved
    # What refuses counts where it refuses; the result that another loader shares, at the end of the call.
    assert 0 <= ATTEMPTS - trusted - (watch.moved(verdict="deny") - denied) <= misses, moved
    assert 0 <= trusted - (watch.moved(verdict="allow") - allowed + moved["refused_early"]) <= misses
    # Each decision made a record, but for shared ones. What is not in the log is stated.
    made = watch.agent.settled() - records_before
    assert 0 <= moved["counted"] - (watch.moved(by="shared") - shared) - made <= misses
    samples = lab.metrics()
    ring = samples['kmodgate_events_lost_total{kind="event_ring"}']
    print(f"storm: {ATTEMPTS} attempts, {trusted} of them trusted, {seconds:.1f} s, "
          f"{misses:.0f} misses exported, {ring:.0f} records lost in the ring, "
          f"{stated(watch.agent)} stated as left out, "
          f"RSS {watch.agent.resident_kib()} KiB")  # fmt: skip
    assert watch.agent.resident_kib() <= RESIDENT_KIB
    assert lab.get("/readyz")[0] == 200
