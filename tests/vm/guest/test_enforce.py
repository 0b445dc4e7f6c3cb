# SPDX-License-Identifier: Apache-2.0
"""ENFORCE on a real kernel: every row of the policy table that a loader can reach."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.vm import kernels, lab

Load = Callable[[Path], lab.Loaded]


def from_file(name: str) -> Load:
    return lambda work: lab.finit(work / name)


def from_memory(name: str) -> Load:
    return lambda work: lab.init((work / name).read_bytes())


def in_tree_tampered(work: Path) -> lab.Loaded:
    path = work / "dummy-tampered.ko"
    path.write_bytes(lab.flip_payload_byte(lab.in_tree("dummy").read_bytes()))
    return lab.finit(path)


def on_the_root(work: Path) -> lab.Loaded:
    path = Path("/root/kmgtest.ko")
    path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes())
    return lab.finit(path)


def through_a_memfd(name: str) -> Load:
    def load(work: Path) -> lab.Loaded:
        fd = os.memfd_create("module")
        os.write(fd, (work / name).read_bytes())
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.close(fd)  # a file open for writing cannot be loaded: ETXTBSY
        try:
            return lab.finit_fd(reader)
        finally:
            os.close(reader)

    return load


def fresh_copy(work: Path, name: str) -> Path:
    """An unsigned module that nobody has seen before."""
    path = work / name
    path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(16))
    return path


def garbage(_work: Path) -> lab.Loaded:
    return lab.init(bytes(4096))


# (what is tried, how, errno seen by the loader, verdict, reason, who decided, is the module then loaded)
ROWS = [
    ("in-tree by file", lambda _: lab.finit(lab.in_tree("dummy")), "ok", "allow", "trusted_signature", "kernel", "dummy"),
    ("in-tree from memory", lambda _: lab.init(lab.in_tree("dummy").read_bytes()), "ok", "allow", "trusted_signature", "kernel", "dummy"),
    ("operator, RSA", from_file("kmgtest.operator.ko"), "ok", "allow", "trusted_signature", "kmodgate", "kmgtest"),
    ("operator, ECDSA", from_file("kmgtest.operator-ec.ko"), "ok", "allow", "trusted_signature", "kmodgate", "kmgtest"),
    ("operator, by key id", from_file("kmgtest.operator-skid.ko"), "ok", "allow", "trusted_signature", "kmodgate", "kmgtest"),
    ("operator from memory", from_memory("kmgtest.operator.ko"), "ok", "allow", "trusted_signature", "kmodgate", "kmgtest"),
    ("operator in a memfd", through_a_memfd("kmgtest.operator.ko"), "ok", "allow", "trusted_signature", "kmodgate", "kmgtest"),
    ("unsigned", from_file("kmgtest.unsigned.ko"), "EKEYREJECTED", "deny", "unsigned", "kmodgate", None),
    ("unsigned from memory", from_memory("kmgtest.unsigned.ko"), "EKEYREJECTED", "deny", "unsigned", "kmodgate", None),
    ("unsigned in a memfd", through_a_memfd("kmgtest.unsigned.ko"), "EKEYREJECTED", "deny", "unsigned", "kmodgate", None),
    ("unsigned on the pinned root", on_the_root, "EKEYREJECTED", "deny", "unsigned", "kmodgate", None),
    ("tampered", from_file("kmgtest.tampered.ko"), "EKEYREJECTED", "deny", "bad_signature", "kmodgate", None),
    ("tampered from memory", from_memory("kmgtest.tampered.ko"), "EKEYREJECTED", "deny", "bad_signature", "kmodgate", None),
    ("tampered in-tree", in_tree_tampered, "EKEYREJECTED", "deny", "bad_signature", "kernel", None),
    ("stranger", from_file("kmgtest.stranger.ko"), "EKEYREJECTED", "deny", "untrusted_signer", "kmodgate", None),
    ("malformed trailer", from_file("kmgtest.malformed.ko"), "EBADMSG", "deny", "malformed_signature", "kernel", None),
    ("zeros", garbage, "EKEYREJECTED", "deny", "unsigned", "kmodgate", None),
    (
        "trusted, vermagic ignored",
        lambda work: lab.finit(work / "kmgtest.operator.ko", lab.IGNORE_VERMAGIC),
        "EKEYREJECTED", "deny", "unsigned", "kmodgate", None,
    ),
    (
        "trusted, modversions ignored",
        lambda work: lab.finit(work / "kmgtest.operator.ko", lab.IGNORE_MODVERSIONS),
        "EKEYREJECTED", "deny", "unsigned", "kmodgate", None,
    ),
]  # fmt: skip

# The kernel alone judges: it knows no operator, and looks no further.
_NOBODY = ("EKEYREJECTED", "deny", "untrusted_signer", "kmodgate", None)
_NO_ECDSA = ("EKEYREJECTED", "deny", "unsupported_signature", "kmodgate", None)
BY_KEYRINGS_ALONE = {
    "operator, RSA": _NOBODY,
    "operator, ECDSA": _NOBODY if "ecdsa" in kernels.this().capabilities else _NO_ECDSA,
    "operator, by key id": _NOBODY,
    "operator from memory": _NOBODY,
    "operator in a memfd": _NOBODY,
    "tampered": _NOBODY,
    "tampered from memory": _NOBODY,
}


def rows() -> list[tuple[object, ...]]:
    """What to expect on this kernel's rung."""
    if "digests" in kernels.this().capabilities:
        return [row[1:] for row in ROWS]
    return [(row[1], *BY_KEYRINGS_ALONE.get(row[0], row[2:])) for row in ROWS]


@pytest.mark.parametrize(("load", "result", "verdict", "reason", "by", "module"), rows(), ids=[row[0] for row in ROWS])  # fmt: skip
def test_verdict(
    agent: lab.Agent,
    work: Path,
    load: Load,
    result: str,
    verdict: str,
    reason: str,
    by: str,
    module: str | None,
) -> None:
    before = lab.metrics()
    outcome = load(work)
    assert outcome.result == result
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["by"]) == (verdict, reason, by)
    assert event["result"] == result
    assert event["errno"] == (None if verdict == "allow" else result)
    assert lab.is_loaded(module or "kmgtest") == (module is not None)
    moved = lab.counted(lab.metrics(), verdict=verdict, reason=reason, by=by) - lab.counted(
        before, verdict=verdict, reason=reason, by=by
    )
    assert moved == 1


def test_every_attempt_is_counted_once(agent: lab.Agent, work: Path) -> None:
    before = lab.metrics()
    for _ in range(50):
        lab.finit(work / "kmgtest.unsigned.ko")
        lab.init(b"x" * 100)
        lab.finit(work / "kmgtest.malformed.ko")
    lab.finit(lab.in_tree("dummy"))
    lab.finit(lab.in_tree("dummy"))  # EEXIST: allowed, and the kernel has it already
    after = lab.metrics()
    counted = lab.counted(after) - lab.counted(before)
    attempts = after["kmodgate_module_load_attempts_total"] - before["kmodgate_module_load_attempts_total"]
    misses = after["kmodgate_program_misses_total"] - before["kmodgate_program_misses_total"]
    undecided = (
        after["kmodgate_module_loads_undecided_total"] - before["kmodgate_module_loads_undecided_total"]
    )
    assert attempts == 152
    assert counted + undecided + misses == attempts
    assert misses == 0
    agent.mark()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("kmgtest.unsigned.ko", "Key was rejected by service"),
        ("kmgtest.stranger.ko", "Key was rejected by service"),
    ],
)
def test_insmod_says_why(agent: lab.Agent, work: Path, module: str, message: str) -> None:
    status, said = lab.insmod(work / module)
    assert status == 1
    assert said.endswith(message)
    agent.mark()


@pytest.mark.needs("digests")
def test_the_real_driver_loads_signed_and_not_unsigned(agent: lab.Agent, work: Path) -> None:
    subprocess.run(["modprobe", "videodev"], check=True)
    agent.mark()
    assert lab.finit(work / "v4l2loopback.unsigned.ko").result == "EKEYREJECTED"
    assert not lab.is_loaded("v4l2loopback")
    assert lab.finit(work / "v4l2loopback.operator.ko").ok
    assert lab.is_loaded("v4l2loopback")
    events = [agent.next_event(), agent.next_event()]
    assert [event["reason"] for event in events] == ["unsigned", "trusted_signature"]
    assert events[1]["module"] == "v4l2loopback"
    assert events[1]["signer"]["subject"].startswith("CN=kmodgate test operator")


@pytest.mark.needs("digests")
def test_an_overlay_is_no_obstacle_to_a_trusted_signature(agent: lab.Agent, work: Path) -> None:
    with lab.overlay(work / "overlay") as merged:
        (merged / "good.ko").write_bytes((work / "kmgtest.operator.ko").read_bytes())
        (merged / "bad.ko").write_bytes((work / "kmgtest.unsigned.ko").read_bytes())
        agent.mark()
        assert lab.finit(merged / "bad.ko").result == "EKEYREJECTED"
        assert lab.finit(merged / "good.ko").ok
        assert agent.next_event()["file_system"] == "overlay"
        assert agent.next_event()["origin"] == "other_filesystem"


def test_the_event_names_the_loader_and_the_file(agent: lab.Agent, work: Path) -> None:
    lab.finit(work / "kmgtest.stranger.ko")
    event = agent.next_event()
    path = work / "kmgtest.stranger.ko"
    assert event["path"] == str(path)
    assert event["inode"] == path.stat().st_ino
    assert event["size"] == path.stat().st_size
    assert event["file_system"] == "tmpfs"
    assert event["pid"] == os.getpid()
    assert event["uid"] == 0
    assert event["exe"] == str(Path("/proc/self/exe").readlink())


@pytest.mark.needs("digests")
def test_the_event_names_module_signer_and_digest(agent: lab.Agent, work: Path) -> None:
    lab.finit(work / "kmgtest.stranger.ko")
    event = agent.next_event()
    assert event["module"] == "kmgtest"
    assert event["signer"]["issuer"].startswith("CN=kmodgate test stranger")
    assert event["sha256"] == hashlib.sha256((work / "kmgtest.stranger.ko").read_bytes()).hexdigest()


@pytest.mark.needs("digests")
def test_a_known_digest_is_decided_without_asking_again(agent: lab.Agent, work: Path) -> None:
    assert lab.finit(work / "kmgtest.operator.ko").ok
    lab.unload("kmgtest")
    agent.mark()
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        time.sleep(4)  # until the programs take the agent for gone
        assert lab.finit(work / "kmgtest.operator.ko").ok
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert agent.next_event()["hold_us"] == 0


@pytest.mark.needs("digests")
def test_without_the_agent_in_tree_loads_and_the_unknown_does_not(agent: lab.Agent, work: Path) -> None:
    fresh = fresh_copy(work, "fresh.ko")
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        time.sleep(4)
        assert lab.finit(lab.in_tree("dummy")).ok
        outcome = lab.finit(fresh)
        assert outcome.result == "EKEYREJECTED"
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert agent.next_event()["by"] == "kernel"
    assert agent.next_event()["reason"] == "agent_unavailable"


@pytest.mark.needs("digests")
def test_a_stuck_agent_holds_a_load_no_longer_than_promised(agent: lab.Agent, work: Path) -> None:
    fresh = fresh_copy(work, "held.ko")
    os.kill(agent.pid, signal.SIGSTOP)  # its last heartbeat is fresh, so the programs wait for it
    try:
        outcome = lab.finit(fresh)
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert outcome.result == "EKEYREJECTED"
    event = agent.next_event()
    assert event["reason"] == "hold_timeout"
    assert 2_000_000 <= event["hold_us"] < 2_500_000
    assert outcome.micros < 4_000_000


@pytest.mark.needs("digests")
def test_failure_policy_ignore_lets_in_what_nobody_could_verify(agent: lab.Agent, work: Path) -> None:
    agent.configure(lab.config(lab.ENFORCE, failurePolicy="Ignore"))
    fresh = fresh_copy(work, "ignored.ko")
    assert lab.finit(work / "kmgtest.stranger.ko").result == "EKEYREJECTED"
    agent.mark()
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        time.sleep(4)
        assert lab.finit(fresh).ok
        # What was verified and refused before stays refused.
        assert lab.finit(work / "kmgtest.stranger.ko").result == "EKEYREJECTED"
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert agent.next_event()["reason"] == "failure_policy_ignore"


def test_many_loaders_at_once_of_one_file_all_get_a_verdict(agent: lab.Agent, work: Path) -> None:
    fresh = fresh_copy(work, "crowd.ko")
    before = lab.metrics()
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(lab.finit(fresh).result)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["EKEYREJECTED"] * 8
    after = lab.metrics()
    denied = lab.counted(after, verdict="deny") - lab.counted(before, verdict="deny")
    # A result that loaders share is seen at the end of the call, which a kernel that preempts may pass over.
    misses = after["kmodgate_program_misses_total"] - before["kmodgate_program_misses_total"]
    assert 8 - (misses if kernels.this().shares_loads else 0) <= denied <= 8
    agent.mark()


@pytest.mark.needs("digests")
def test_a_swapped_descriptor_gains_nothing(agent: lab.Agent, work: Path) -> None:
    """The agent reads a trusted file while the kernel reads another one."""
    bad = fresh_copy(work, "swap.ko")
    good = os.open(work / "kmgtest.operator.ko", os.O_RDONLY)
    stop = threading.Event()
    fd = os.open(bad, os.O_RDONLY)
    keep = os.dup(fd)

    def swap() -> None:
        while not stop.is_set():
            os.dup2(good, fd)
            os.dup2(keep, fd)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(200):
            if lab.finit_fd(fd).ok:  # the kernel itself was given the trusted file
                lab.unload("kmgtest")
    finally:
        stop.set()
        thread.join()
        for descriptor in (fd, keep, good):
            os.close(descriptor)
    agent.mark()
    inode, digest = bad.stat().st_ino, hashlib.sha256(bad.read_bytes()).hexdigest()
    of_bad = [e for e in agent.events() if e["sha256"] == digest or e["inode"] == inode]
    assert of_bad
    assert {e["verdict"] for e in of_bad} == {"deny"}
