# SPDX-License-Identifier: Apache-2.0
"""The bcc rung where it may refuse: what it refuses, by what, and what is tried to get around it."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.vm import bcclab, lab
from tests.vm.guest.test_compat import int80, low

TRUST = {
    "certificates": [str(lab.CERTS / name) for name in ("kernel.pem", "operator.pem")],
    "kernelKeyrings": False,
}
ENFORCE = bcclab.config(lab.ENFORCE, trust=TRUST)
LOADPIN = bcclab.config(lab.DO_NOT_ENFORCE, loadPin="on")


@pytest.fixture(scope="module")
def agent() -> Iterator[lab.Agent]:
    assert bcclab.left_behind() == bcclab.NOTHING
    with bcclab.running(Path("/tmp/refuse"), LOADPIN) as agent:
        yield agent
    assert bcclab.left_behind() == bcclab.NOTHING


@pytest.fixture(autouse=True)
def clean(agent: lab.Agent) -> Iterator[None]:
    agent.mark()
    yield
    for name in ("kmgtest", "dummy"):
        lab.unload(name)


@pytest.fixture
def enforce(agent: lab.Agent) -> lab.Agent:
    if agent.config_path.read_text() != ENFORCE:
        agent.configure(ENFORCE)
    agent.mark()
    return agent


@pytest.fixture(scope="module")
def on_root(work: Path) -> Path:
    """A directory on the pinned root, an ext4."""
    return Path(shutil.copytree(work, "/root/lab"))


@contextmanager
def another_ext4(directory: Path) -> Iterator[Path]:
    """A second ext4, on a disk of its own."""
    (directory / "mnt").mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "/dev/ram0"], check=True)
    subprocess.run(["mount", "/dev/ram0", directory / "mnt"], check=True)
    try:
        yield directory / "mnt"
    finally:
        subprocess.run(["umount", directory / "mnt"], check=True)


# --- LoadPin: the file system decides -------------------------------------------------------


def test_it_enforces_and_says_so(agent: lab.Agent) -> None:
    assert lab.metrics()["kmodgate_enforcing"] == 1
    start = next(line for line in agent.log().splitlines() if "start took" in line)
    bcclab.note(start=start.partition("start took ")[2], rss_kib=agent.resident_kib())


def test_the_pinned_root_loads(agent: lab.Agent) -> None:
    assert lab.finit(lab.in_tree("dummy")).ok
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["module"]) == ("allow", "pinned_root", "dummy")


def test_another_file_system_is_refused(agent: lab.Agent, work: Path) -> None:
    path = work / "kmgtest.operator.ko"
    assert lab.finit(path).result == "EPERM"
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["result"]) == ("deny", "outside_pinned_root", "EPERM")
    assert (event["path"], event["by"], event["file_system"]) == (str(path), "kmodgate", "tmpfs")
    assert not lab.is_loaded("kmgtest")


def test_memory_is_refused(agent: lab.Agent, work: Path) -> None:
    assert lab.init((work / "kmgtest.operator.ko").read_bytes()).result == "EPERM"
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["api"]) == ("deny", "no_file", "init_module")


def test_int_0x80_is_no_way_around(agent: lab.Agent, work: Path) -> None:
    parameters, at = low(b"\0")
    fd = os.open(work / "kmgtest.unsigned.ko", os.O_RDONLY)
    assert int80(350, fd, at, 0) == "EPERM"
    os.close(fd)
    assert agent.next_event()["reason"] == "outside_pinned_root"
    data = (work / "kmgtest.unsigned.ko").read_bytes()
    image, image_at = low(data)
    assert int80(128, image_at, len(data), at) == "EPERM"
    assert agent.next_event()["reason"] == "no_file"
    del parameters, image


SHARED = """
import ctypes, errno, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
fd = os.open(sys.argv[1], os.O_RDONLY)
result = libc.syscall(313, fd, b"", 0)
print("ok" if result == 0 else errno.errorcode[ctypes.get_errno()])
sys.stdout.flush()
os._exit(0)
"""


def test_a_descriptor_that_a_thread_could_swap_lies_nowhere(agent: lab.Agent) -> None:
    path = lab.in_tree("dummy")
    done = subprocess.run([sys.executable, "-c", SHARED, path], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "EPERM"
    event = agent.next_event()
    assert (event["reason"], event["path"]) == ("outside_pinned_root", str(path.resolve()))


NOBODY = """
import os, sys
sys.path.insert(0, "/src")
from tests.vm import lab
fd = os.open(sys.argv[1], os.O_RDONLY)
os.setuid(65534)
print(lab.finit_fd(fd).result)
"""


def test_who_may_load_nothing_is_refused_by_the_kernel(agent: lab.Agent, work: Path) -> None:
    before = lab.metrics()
    command = [sys.executable, "-c", NOBODY, str(work / "kmgtest.unsigned.ko")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == "EPERM"
    after = lab.metrics()
    name = 'kmodgate_kernel_errors_total{kind="refused_early"}'
    assert after[name] - before.get(name, 0) == 1
    assert lab.counted(after) == lab.counted(before)
    assert agent.process is not None


# --- signatures: what is known of the file decides -----------------------------------------


def test_a_trusted_file_loads_once_it_is_known(enforce: lab.Agent, on_root: Path) -> None:
    path = on_root / "kmgtest.operator.ko"
    results = bcclab.until(lambda: lab.finit(path), "ok")
    assert set(results[:-1]) <= {"EKEYREJECTED"}
    for _ in results[:-1]:
        event = enforce.next_event()
        assert (event["verdict"], event["reason"]) == ("deny", "hold_timeout")
    event = enforce.next_event()
    assert (event["verdict"], event["reason"], event["by"]) == ("allow", "trusted_signature", "kmodgate")
    assert event["module"] == "kmgtest"


def test_the_kernels_own_modules_load_by_its_certificate(enforce: lab.Agent) -> None:
    bcclab.until(lambda: lab.finit(lab.in_tree("dummy")), "ok")
    assert enforce.process is not None


@pytest.mark.parametrize(
    ("variant", "reason"),
    [("unsigned", "unsigned"), ("stranger", "untrusted_signer"), ("tampered", "bad_signature")],
)
def test_what_is_not_trusted_is_refused(enforce: lab.Agent, on_root: Path, variant: str, reason: str) -> None:
    path = on_root / f"kmgtest.{variant}.ko"
    deadline = time.monotonic() + 60
    said = ""
    while said != reason:
        assert time.monotonic() < deadline
        assert lab.finit(path).result == "EKEYREJECTED"
        event = enforce.next_event()
        said = event["reason"]
        assert event["verdict"] == "deny"
        assert said in {"hold_timeout", reason}


def test_ignore_flags_make_it_unsigned(enforce: lab.Agent, on_root: Path) -> None:
    bcclab.until(lambda: lab.finit(on_root / "kmgtest.operator.ko"), "ok")
    lab.unload("kmgtest")
    enforce.mark()
    assert lab.finit(on_root / "kmgtest.operator.ko", lab.IGNORE_VERMAGIC).result == "EKEYREJECTED"
    assert enforce.next_event()["reason"] == "unsigned"


def test_memory_cannot_be_judged(enforce: lab.Agent, on_root: Path) -> None:
    assert lab.init((on_root / "kmgtest.operator.ko").read_bytes()).result == "EKEYREJECTED"
    assert enforce.next_event()["reason"] == "unreadable"


@pytest.mark.parametrize("where", ["tmpfs", "overlay", "disk"])
def test_elsewhere_bytes_may_change_unseen(
    enforce: lab.Agent, on_root: Path, tmp_path: Path, where: str
) -> None:
    with contextlib.ExitStack() as stack:
        place = tmp_path
        if where == "overlay":
            place = stack.enter_context(lab.overlay(tmp_path))
        if where == "disk":
            place = stack.enter_context(another_ext4(tmp_path))
        copy = place / "kmgtest.ko"
        copy.write_bytes((on_root / "kmgtest.operator.ko").read_bytes())
        for _ in range(3):
            assert lab.finit(copy).result == "EKEYREJECTED"
            assert enforce.next_event()["reason"] == "unreadable"


def test_a_file_that_was_written_is_another_one(enforce: lab.Agent, on_root: Path) -> None:
    good = (on_root / "kmgtest.operator.ko").read_bytes()
    path = on_root / "changing.ko"
    path.write_bytes(good)
    bcclab.until(lambda: lab.finit(path), "ok")
    lab.unload("kmgtest")
    # In place: inode and size stay.
    with path.open("r+b") as file:
        file.write(lab.flip_payload_byte(good))
    for _ in range(10):
        assert lab.finit(path).result == "EKEYREJECTED"
        time.sleep(0.1)
    assert not lab.is_loaded("kmgtest")
    assert enforce.process is not None


def test_a_mapping_made_before_the_answer_changes_nothing_unseen(enforce: lab.Agent, on_root: Path) -> None:
    """Bytes under a writable mapping change without the file's time: no answer counts for such a file."""
    good = (on_root / "kmgtest.operator.ko").read_bytes()
    path = on_root / "mapped.ko"
    path.write_bytes(good)
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), len(good))
    memory[len(good) // 3] = good[len(good) // 3]  # the page is dirty: later stores fault no more
    time.sleep(1)
    for _ in range(20):  # the agent has every chance to look while the bytes are good
        assert lab.finit(path).result in {"EKEYREJECTED", "ETXTBSY"}
        time.sleep(0.1)
    memory[:] = lab.flip_payload_byte(good)
    memory.close()
    for _ in range(10):
        assert lab.finit(path).result == "EKEYREJECTED"
        time.sleep(0.1)
    assert not lab.is_loaded("kmgtest")
    assert enforce.process is not None


def test_an_absent_agent_lets_in_what_is_known_only(enforce: lab.Agent, on_root: Path) -> None:
    known, unknown = on_root / "kmgtest.operator.ko", on_root / "later.ko"
    unknown.write_bytes(known.read_bytes())
    bcclab.until(lambda: lab.finit(known), "ok")
    lab.unload("kmgtest")
    assert enforce.process is not None
    enforce.process.send_signal(19)  # SIGSTOP
    time.sleep(4)
    assert lab.finit(known).ok
    lab.unload("kmgtest")
    assert lab.finit(unknown).result == "EKEYREJECTED"
    enforce.process.send_signal(18)  # SIGCONT
    enforce.wait_for(lambda: any(e["reason"] == "agent_unavailable" for e in enforce.events()), "event")


def test_every_attempt_is_counted_once(enforce: lab.Agent, on_root: Path) -> None:
    before = lab.metrics()
    for _ in range(25):
        lab.finit(on_root / "kmgtest.unsigned.ko")
        lab.init(b"x" * 100)
    after = lab.metrics()
    gained = {name: value - before.get(name, 0) for name, value in after.items()}
    assert gained["kmodgate_module_load_attempts_total"] == 50
    assert lab.counted(after) - lab.counted(before) == 50
    assert lab.counted(after, verdict="deny") - lab.counted(before, verdict="deny") == 50
    assert gained['kmodgate_kernel_errors_total{kind="refused_early"}'] == 0
    assert gained['kmodgate_kernel_errors_total{kind="loaded_unseen"}'] == 0
    enforce.mark()


def test_nothing_got_in_unseen(agent: lab.Agent) -> None:
    assert lab.metrics()['kmodgate_kernel_errors_total{kind="loaded_unseen"}'] == 0
    assert "Traceback" not in agent.log()


def test_a_killed_agent_leaves_nothing(agent: lab.Agent, on_root: Path) -> None:
    """Enforcement ends with the agent on this rung; the last test of the file."""
    assert lab.finit(on_root / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    agent.kill()
    agent.wait_for(lambda: bcclab.left_behind() == bcclab.NOTHING, "clean kernel", 30)
    assert lab.finit(on_root / "kmgtest.unsigned.ko").ok
