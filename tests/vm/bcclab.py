# SPDX-License-Identifier: Apache-2.0
"""What the tests of the bcc rung have in common; runs inside the guest."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vm import lab

# An emulated processor compiles with LLVM for a minute and more.
START_SECONDS = 1200.0
OUT = Path("/share/bcc.json")


def config(policy: str, **ours: Any) -> str:
    """A node config for this rung."""
    return lab.config(policy, **{"backend": "bcc", **ours})


@contextmanager
def running(directory: Path, text: str) -> Iterator[lab.Agent]:
    """An agent on this rung for the time of the block; its log and events stay in /share."""
    directory.mkdir(exist_ok=True)
    agent = lab.Agent(directory, extra=("--log-all",))
    try:
        agent.start(text, wait=START_SECONDS)
        yield agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.stop()
        log = Path("/share/agent.log")
        log.write_text((log.read_text() if log.exists() else "") + agent.log())


def note(**figures: object) -> None:
    """Keep figures for whoever reads the run's results."""
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps(found | figures))


def until(load: Callable[[], lab.Loaded], result: str, seconds: float = 60.0) -> list[str]:
    """Try a load until it ends in this way: all results. The first tries may come before the answer."""
    results: list[str] = []
    deadline = time.monotonic() + seconds
    while not results or results[-1] != result:
        assert time.monotonic() < deadline, results[-5:]
        results.append(load().result)
        time.sleep(0.1)
    return results


def left_behind() -> dict[str, object]:
    """What there is in the kernel of anybody's probes, programs and maps."""
    probes = Path("/sys/kernel/debug/kprobes/list").read_text()
    events = Path("/sys/kernel/tracing/kprobe_events")
    listed = json.loads(
        subprocess.run(["bpftool", "-j", "prog", "list"], check=True, capture_output=True).stdout
    )
    maps = json.loads(
        subprocess.run(["bpftool", "-j", "map", "list"], check=True, capture_output=True).stdout
    )
    return {
        "probes": [line for line in probes.splitlines() if "module" in line or "security_" in line],
        "events": events.read_text() if events.exists() else "",
        "programs": [one.get("name") for one in listed if str(one.get("name", "")).startswith("kmg_")],
        "maps": [one.get("name") for one in maps if one.get("name") in {"decisions", "verdicts", "loads"}],
        "headers": [str(path) for path in Path("/tmp").glob("k*headers-*")],
    }


NOTHING: dict[str, object] = {"probes": [], "events": "", "programs": [], "maps": [], "headers": []}
