# SPDX-License-Identifier: Apache-2.0
"""Runs inside the arm64 lab's guest: loads each file under each rung, and writes down what happened.

Prints one JSON object a line, each after the word ``said``. Uses what the guest's tests use (lab.py).
"""

from __future__ import annotations

import json
import platform
import subprocess
import traceback
from pathlib import Path
from typing import Any

from tests.vm import lab

FILES = Path("/files")
NAMES = ("intree", "unsigned", "tampered", "stranger", "operator")
BACKEND = "kmodgate_backend_info"


def say(**what: Any) -> None:
    print("said", json.dumps(what), flush=True)


def loads(agent: lab.Agent, rung: str) -> None:
    """Every file through both system calls."""
    for name in NAMES:
        path = Path("/tmp") / f"{name}.ko"
        path.write_bytes((FILES / path.name).read_bytes())
        for api in ("finit_module", "init_module"):
            agent.mark()
            outcome = lab.finit(path) if api == "finit_module" else lab.init(path.read_bytes())
            event = agent.next_event(120)
            lab.unload("dummy")
            say(
                rung=rung,
                file=name,
                result=outcome.result,
                **{key: event[key] for key in ("api", "verdict", "reason", "by")},
            )


def cycle(rung: str) -> None:
    """One agent from its start to the end of its pins."""
    folder = Path("/tmp") / rung
    folder.mkdir()
    trust = {"certificates": [str(FILES / "operator.pem")]} if rung == "bpf-lsm" else {}
    text = lab.config(lab.ENFORCE, trust=trust)
    agent = lab.Agent(folder, extra=("--log-all", "--backend", rung))
    agent.start(text, wait=400)
    loads(agent, rung)
    samples = lab.metrics()
    say(
        rung=rung,
        attempts=samples["kmodgate_module_load_attempts_total"],
        counted=lab.counted(samples),
        misses=samples["kmodgate_program_misses_total"],
        enforcing=samples["kmodgate_enforcing"],
    )
    agent.kill()
    # Nobody is there, and the programs go on.
    say(rung=rung, alone=lab.finit(Path("/tmp/unsigned.ko")).result)
    subprocess.run(["kmodgate", "detach"], check=True, capture_output=True)
    say(rung=rung, detached=lab.finit(Path("/tmp/unsigned.ko")).result)
    lab.unload("dummy")


def main() -> None:
    say(machine=platform.machine(), release=platform.release())
    for rung in ("bpf-lsm", "bpf-lsm-basic"):
        try:
            cycle(rung)
        except Exception:  # noqa: BLE001  # the other rung runs all the same, and the host fails on this
            say(rung=rung, failed=traceback.format_exc()[-3000:])


main()
