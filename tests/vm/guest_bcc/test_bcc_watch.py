# SPDX-License-Identifier: Apache-2.0
"""The bcc rung where it may refuse nothing: it sees, judges and counts every load, and leaves nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import bcclab, lab

OVERRIDES = Path("/sys/kernel/debug/error_injection/list")


@pytest.fixture(scope="module")
def agent() -> Iterator[lab.Agent]:
    assert bcclab.left_behind() == bcclab.NOTHING
    with bcclab.running(Path("/tmp/watch"), bcclab.config(lab.ENFORCE, mode="audit")) as agent:
        yield agent
    assert bcclab.left_behind() == bcclab.NOTHING


@pytest.fixture(autouse=True)
def clean(agent: lab.Agent) -> Iterator[None]:
    agent.mark()
    yield
    for name in ("kmgtest", "dummy"):
        lab.unload(name)


def test_it_says_where_it_stands(agent: lab.Agent) -> None:
    metrics = lab.metrics()
    assert metrics['kmodgate_backend_info{backend="bcc"}'] == 1
    assert metrics["kmodgate_enforcing"] == 0
    assert "ready: ENFORCE_SIGNED_MODULES, mode audit" in agent.log()
    if not OVERRIDES.exists():
        assert "loads are watched and not refused: no list of functions" in agent.log()
    start = next(line for line in agent.log().splitlines() if "start took" in line)
    bcclab.note(start=start.partition("start took ")[2], rss_kib=agent.resident_kib())
    assert agent.resident_kib() < 120 << 10
    assert subprocess.run(["pgrep", "-f", "bcccompile"], check=False).returncode == 1


def test_a_module_that_the_kernel_trusts(agent: lab.Agent) -> None:
    path = lab.in_tree("dummy")
    assert lab.finit(path).ok
    event = agent.next_event()
    told = {key: event[key] for key in ("verdict", "reason", "by", "api", "origin", "module", "result")}
    assert told == {
        "verdict": "allow",
        "reason": "trusted_signature",
        "by": "kernel",
        "api": "finit_module",
        "origin": "pinned_root",
        "module": "dummy",
        "result": "ok",
    }
    status = path.stat()
    assert (event["path"], event["inode"], event["size"]) == (
        str(path.resolve()),
        status.st_ino,
        status.st_size,
    )
    assert event["file_system"] == "ext4"
    assert event["exe"].startswith("/usr/bin/python3")
    assert event["uid"] == 0


def test_an_unsigned_one_would_be_denied(agent: lab.Agent, work: Path) -> None:
    path = work / "kmgtest.unsigned.ko"
    assert lab.finit(path).ok
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["errno"]) == ("would_deny", "unsigned", "EKEYREJECTED")
    assert (event["origin"], event["path"], event["file_system"]) == ("other_filesystem", str(path), "tmpfs")
    lab.unload("kmgtest")
    data = path.read_bytes()
    assert lab.init(data).ok
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["api"]) == ("would_deny", "unsigned", "init_module")
    assert (event["origin"], event["path"], event["size"]) == ("memory", None, len(data))


def test_what_the_agent_trusts_is_known_from_the_second_load_on(agent: lab.Agent, work: Path) -> None:
    seen = []
    for _ in range(20):
        assert lab.finit(work / "kmgtest.operator.ko").ok
        event = agent.next_event()
        seen.append((event["verdict"], event["reason"]))
        lab.unload("kmgtest")
        if seen[-1] == ("allow", "trusted_signature"):
            break
    assert seen[-1] == ("allow", "trusted_signature")
    assert set(seen[:-1]) <= {("would_deny", "untrusted_signer")}


def test_what_the_kernel_refuses_is_the_kernels(agent: lab.Agent, work: Path) -> None:
    data = lab.in_tree("dummy").read_bytes()
    path = work / "flipped.ko"
    path.write_bytes(lab.flip_payload_byte(data))
    assert lab.finit(path).result == "EKEYREJECTED"
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["by"]) == ("deny", "bad_signature", "kernel")


def test_every_attempt_is_counted_once(agent: lab.Agent, work: Path) -> None:
    before = lab.metrics()
    for _ in range(20):
        lab.finit(work / "kmgtest.unsigned.ko")
        lab.unload("kmgtest")
        lab.init(b"x" * 100)  # no module: begun, and of no verdict
    lab.finit_fd(999)  # no file: not begun
    after = lab.metrics()
    gained = {name: value - before.get(name, 0) for name, value in after.items()}
    counted = lab.counted(after) - lab.counted(before)
    assert gained["kmodgate_module_load_attempts_total"] == 40
    assert (counted, gained["kmodgate_module_loads_undecided_total"]) == (20, 20)
    assert gained['kmodgate_kernel_errors_total{kind="refused_early"}'] == 1
    assert gained['kmodgate_kernel_errors_total{kind="abandoned"}'] == 0
    assert gained['kmodgate_kernel_errors_total{kind="loaded_unseen"}'] == 0
    agent.mark()


def test_a_killed_agent_leaves_nothing(agent: lab.Agent, work: Path) -> None:
    """Probes of perf events end with their descriptors; the last test of the file."""
    seen = bcclab.left_behind()
    assert len(seen["programs"]) >= 9  # type: ignore[arg-type]  # a list
    assert seen["probes"]
    assert seen["events"] == ""
    agent.kill()
    agent.wait_for(lambda: bcclab.left_behind() == bcclab.NOTHING, "clean kernel", 30)
    assert lab.finit(work / "kmgtest.unsigned.ko").ok
