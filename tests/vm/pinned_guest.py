# SPDX-License-Identifier: Apache-2.0
"""Runs inside the guest: asks kmodgate what tests/vm/test_loadpin.py asks the real LoadPin.

The file system to pin is a disk image, so that it can be unmounted. The agent is the real one with
the real programs; it is only told that this file system is the root of process 1: it gets a /proc
whose ``1/root`` leads there.

    pinned_guest.py DISK PROGRAM OUT
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.vm import lab

AGENT = """
import logging, sys
from pathlib import Path
from kmodgate.agent import Agent
from kmodgate.node import NodePaths
logging.basicConfig(level=logging.INFO)
paths = NodePaths(proc=Path(sys.argv[2]))
Agent(Path(sys.argv[1]), events=sys.stdout.buffer, log_all=True, paths=paths).run()
"""
# What loads modules of its own accord, before kmodgate could refuse them: they lie on the guest's root.
NEEDED = ("loop", "dm-verity", "overlay")
PIN, ROOM = Path("/pin"), Path("/room")


class PinnedAgent(lab.Agent):
    """An agent that is told what the root is."""

    def __init__(self, directory: Path, proc: Path) -> None:
        super().__init__(directory)
        self._command = [sys.executable, "-c", AGENT, str(self.config_path), str(proc)]


def told(directory: Path, root: Path) -> Path:
    """A /proc in which process 1 has another root, and everything else is as it is."""
    proc = directory / "proc"
    (proc / "1").mkdir(parents=True)
    for entry in Path("/proc").iterdir():
        if entry.name != "1":
            (proc / entry.name).symlink_to(entry)
    (proc / "1/mountinfo").symlink_to("/proc/1/mountinfo")
    (proc / "1/root").symlink_to(root)
    return proc


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(disk: Path, program: Path, out: Path) -> None:
    for name in NEEDED:
        run("modprobe", name)
    for point in (PIN, ROOM):
        point.mkdir()
    run("mount", "-t", "tmpfs", "none", ROOM)
    copy, cases = ROOM / "disk", ROOM / "cases"
    copy.write_bytes(disk.read_bytes())
    cases.write_bytes(program.read_bytes())
    cases.chmod(0o755)
    device = run("losetup", "--find", "--show", copy).strip()
    run("mount", "-t", "ext4", device, PIN)

    def ask(*phases: str) -> str:
        done = subprocess.run([cases, device, *phases], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr
        return done.stdout

    directory = Path("/tmp/pinned")
    directory.mkdir()
    agent = PinnedAgent(directory, told(directory, PIN))
    # Nothing is pinned: the BPF file system would have to be one below this root.
    text = lab.config(lab.DO_NOT_ENFORCE, loadPin="on", onExit="detach")
    try:
        agent.start(text)
        said = ask("before", "first", "elsewhere", "root", "others", "untrusted")
        agent.configure(
            lab.config(
                lab.DO_NOT_ENFORCE,
                loadPin="on",
                loadPinTrustedVerityDigests=str(PIN / "digests"),
                onExit="detach",
            )
        )
        said += ask("verity")
        told_before = {key: value for key, value in lab.metrics().items() if "pinned" in key}
        said += ask("gone")
        agent.wait_for(lambda: lab.metrics()["kmodgate_pinned_root_current"] == 0, "notice of the lost root")
        told_after = {key: value for key, value in lab.metrics().items() if "pinned" in key}
        # The metric is of the moment, readiness of the last probe, which comes once a second.
        agent.wait_for(lambda: lab.get("/readyz")[0] != 200, "loss of readiness", 5)
        ready = lab.get("/readyz")
    finally:
        if agent.process is not None:
            agent.stop()
        (out / "pinned-agent.log").write_text(agent.log())
        (out / "pinned-events.json").write_text(json.dumps(agent.events()))
    (out / "cases.txt").write_text(said)
    result = {"before": told_before, "after": told_after, "ready": ready, "release": os.uname().release}
    (out / "pinned.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
