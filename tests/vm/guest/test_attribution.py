# SPDX-License-Identifier: Apache-2.0
"""Which pod, container, or request of the kernel a refused load came from, on a real kernel."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import lab

CGROUPS = Path("/sys/fs/cgroup")
UID = "0d3b1c52-95a1-4d0e-8f5e-0123456789ab"
ID = "8f2b6f0b8f3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6"
SYSTEMD = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"
UPDATES = Path("/lib/modules") / platform.release() / "updates"
CONF = Path("/etc/modprobe.d/kmgtest.conf")


@pytest.fixture(params=[f"kubepods/besteffort/pod{UID}/{ID}", f"{SYSTEMD}/cri-containerd-{ID}.scope"])
def cgroup(request: pytest.FixtureRequest) -> Iterator[Path]:
    path = CGROUPS / str(request.param)
    path.mkdir(parents=True)
    yield path
    for directory in (path, *path.parents):
        if directory == CGROUPS:
            break
        with contextlib.suppress(OSError):  # another test's are there
            directory.rmdir()


def unseen(work: Path) -> Path:
    """An unsigned module that nobody has seen before."""
    path = work / "unseen.ko"
    path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(16))
    return path


def insmod_in(cgroup: Path, module: Path) -> int:
    script = 'echo $$ > "$1/cgroup.procs" && exec insmod "$2"'
    return subprocess.run(
        ["sh", "-c", script, "sh", cgroup, module], check=False, capture_output=True
    ).returncode


def whose(event: dict[str, Any]) -> tuple[Any, ...]:
    return event["verdict"], event["workload"], event["container_id"], (event["pod"] or {}).get("uid")


def test_a_container_of_a_pod(agent: lab.Agent, work: Path, cgroup: Path) -> None:
    assert insmod_in(cgroup, unseen(work)) != 0
    assert whose(agent.next_event()) == ("deny", "pod", ID, UID)


def test_a_process_of_the_node(agent: lab.Agent, work: Path) -> None:
    assert not lab.finit(unseen(work)).ok
    assert whose(agent.next_event()) == ("deny", "host", None, None)


def test_a_process_that_is_gone_is_found_by_its_cgroup(agent: lab.Agent, work: Path, cgroup: Path) -> None:
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        time.sleep(4)  # the heartbeat's age, which ends the waits
        assert insmod_in(cgroup, unseen(work)) != 0
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert whose(agent.next_event()) == ("deny", "pod", ID, UID)


def test_a_cgroup_that_is_gone_too_is_not_guessed(agent: lab.Agent, work: Path) -> None:
    path = CGROUPS / f"kubepods/pod{UID}" / ID.replace("8", "9")
    path.mkdir(parents=True)
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        time.sleep(4)
        assert insmod_in(path, unseen(work)) != 0
        path.rmdir()
        path.parent.rmdir()
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert whose(agent.next_event()) == ("deny", None, None, None)


@pytest.fixture
def filesystem(work: Path) -> Iterator[str]:
    """A file system whose module would be an unsigned one."""
    UPDATES.mkdir(exist_ok=True)
    (UPDATES / "kmgtest.ko").write_bytes(unseen(work).read_bytes())
    CONF.parent.mkdir(exist_ok=True)
    CONF.write_text("alias fs-kmgtest kmgtest\n")
    subprocess.run(["depmod", "-a"], check=True)
    yield "kmgtest"
    (UPDATES / "kmgtest.ko").unlink()
    CONF.unlink()
    subprocess.run(["depmod", "-a"], check=True)


@pytest.mark.needs("digests")
def test_what_the_kernel_asked_for(agent: lab.Agent, filesystem: str) -> None:
    done = subprocess.run(["mount", "-t", filesystem, "none", "/mnt"], check=False, capture_output=True)
    assert done.returncode != 0
    event = agent.next_event()
    assert event["workload"] == "kernel"
    # The directory is watched, so the digest may be known: refused at once, modprobe may be gone by now.
    assert event["kernel_request"] in {"fs-kmgtest", None}
    assert event["verdict"] == "deny"
