# SPDX-License-Identifier: Apache-2.0
"""systemd's own words about its units."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

AGENT = "kmodgate.service"


def systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *words], check=False, capture_output=True, text=True, timeout=300)


def show(unit: str) -> Mapping[str, str]:
    """A unit's properties."""
    lines = systemctl("show", unit).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def moment(unit: str, what: str) -> int:
    """A time stamp of a unit, in microseconds since boot; 0 for never."""
    return int(show(unit)[f"{what}TimestampMonotonic"])


def until(condition: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s:\n{journal()[-4000:]}"
        time.sleep(0.2)


def journal() -> str:
    """What the agent has written in this boot, log and events."""
    command = ["journalctl", "-b", "-u", AGENT, "-o", "cat", "--no-pager"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def events() -> list[dict[str, Any]]:
    """The module_load events in the journal."""
    records = [json.loads(line) for line in journal().splitlines() if line.startswith("{")]
    return [record for record in records if record["event"] == "module_load"]
