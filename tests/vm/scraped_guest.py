# SPDX-License-Identifier: Apache-2.0
"""Runs inside the guest, started by ``test_scraped.py``: an agent that is scraped, and one refusal.

Files in the working directory are the signals: ``ready`` and ``denied`` are written here, ``go`` and ``end``
by the test.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.vm import lab

SHARE = Path("/share")
LIMIT = 600.0


def wait(name: str) -> None:
    """Until the file is there."""
    end = time.monotonic() + LIMIT
    while not (SHARE / name).exists():
        if time.monotonic() > end:
            raise TimeoutError(name)
        time.sleep(0.05)


def put(name: str, text: str) -> None:
    """Write a file so that it is whole once it is seen."""
    fresh = SHARE / f"{name}.new"
    fresh.write_text(text)
    fresh.rename(SHARE / name)


def main() -> None:
    """One agent, one refusal."""
    directory = Path("/tmp/agent")
    directory.mkdir()
    module = Path("/tmp/unsigned.ko")
    module.write_bytes((lab.MODULES / "kmgtest.unsigned.ko").read_bytes())
    with lab.running(directory, lab.config(lab.ENFORCE, listen=f"0.0.0.0:{lab.PORT}")) as agent:
        put("ready", "")
        wait("go")
        agent.mark()
        status, said = lab.insmod(module)
        ended = time.monotonic()
        event = agent.next_event()
        told = time.monotonic() - ended
        result = {"status": status, "said": said, "told_seconds": told}
        put(
            "denied",
            json.dumps(result | {key: event[key] for key in ("verdict", "reason", "module", "sequence")}),
        )
        wait("end")


if __name__ == "__main__":
    main()
