# SPDX-License-Identifier: Apache-2.0
"""Runs inside the guest, started by ``tests/bench/bench_load.py``: loads with the agent and without.

With and without alternate, so that what drifts meets both. What was measured goes as JSON to
``result.json`` in the working directory; nothing is judged here.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.vm import lab

SHARE = Path("/share")
LOADER = Path("/tmp/loader")
TREE = Path("/lib/modules") / Path("/proc/sys/kernel/osrelease").read_text().strip()
ON_ROOT = Path("/root/known.ko")
BUFFER = 4 << 20  # of the map in tests/bpf/test.bpf.c


def load(path: Path, module: str, count: int, how: str = "alone") -> list[int]:
    """Load and unload; nanoseconds of each load. How: see loader.c."""
    command = [str(LOADER), "load", str(path), module, str(count), how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = []
    for line in done.stdout.splitlines():
        nanoseconds, result = line.split()
        if result != "ok":
            raise RuntimeError(f"{path}: {result}")
        found.append(int(nanoseconds))
    return found


def loads(path: Path, module: str) -> bool:
    """Whether the module loads and unloads here; also brings its file into the page cache."""
    try:
        load(path, module, 2)
    except (subprocess.CalledProcessError, RuntimeError):
        return False
    return True


def calls(count: int, *how: str) -> dict[str, float]:
    """Nanoseconds of system calls that have nothing to do with modules. How: see loader.c."""
    done = subprocess.run([LOADER, "calls", str(count), *how], check=True, capture_output=True, text=True)
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in done.stdout.splitlines())
    }


class Bench:
    """One run: what is loaded, and what was measured so far."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.median = self._first(plan["median"])
        self.spread = [self._first(candidates) for candidates in plan["spread"]]
        self.signed = SHARE / "signed" / self.median[0]
        shutil.copy(self.signed / "known.ko", ON_ROOT)
        self.result: dict[str, Any] = {
            "median": {"module": self.median[0], "size": (TREE / self.median[1]).stat().st_size},
            "trusted": {"off": [], "on": []},
            "among": {"off": [], "on": []},
            "known": {"off": [], "on": [], "size": ON_ROOT.stat().st_size, "decision_us": []},
            "first": [],
            "spread": {name: {"size": (TREE / path).stat().st_size, "off": [], "on": []}
                       for name, path in self.spread},
            "calls": {"off": [], "watched": [], "on": []},
        }  # fmt: skip

    @staticmethod
    def _first(candidates: list[list[str]]) -> tuple[str, str]:
        for name, path in candidates:
            if loads(TREE / path, name):
                return name, path
        raise RuntimeError(f"none of {candidates} loads here")

    def measure(self, state: str) -> None:
        """One turn with the agent (``on``) or without (``off``)."""
        name, path = self.median
        self.result["trusted"][state] += load(TREE / path, name, self.plan["loads"])
        self.result["among"][state] += load(TREE / path, name, self.plan["loads"], "among")
        self.result["known"][state] += load(ON_ROOT, name, self.plan["loads"])
        for module, where in self.spread:
            self.result["spread"][module][state] += load(TREE / where, module, self.plan["spread_loads"])
        self.result["calls"][state].append(calls(self.plan["calls"]))
        if state == "off":
            self.result["calls"]["watched"].append(calls(self.plan["calls"], "watched"))

    def first_loads(self, agent: lab.Agent, files: list[Path]) -> None:
        """Modules that nobody has seen, from outside the pinned root."""
        for file in files:
            copy = Path("/tmp") / file.name
            shutil.copy(file, copy)
            before = lab.metrics()
            agent.mark()
            (nanoseconds,) = load(copy, self.median[0], 1, "among")
            event = agent.next_event()
            after = lab.metrics()
            gained = {
                what: after[f"kmodgate_verify_seconds_{what}"] - before[f"kmodgate_verify_seconds_{what}"]
                for what in ("sum", "count")
            }
            if gained["count"] != 1 or event["reason"] != "trusted_signature":
                raise RuntimeError(f"{file}: {gained['count']} verifications, {event['reason']}")
            self.result["first"].append(
                {"hold_us": event["hold_us"], "verify_us": gained["sum"] * 1e6, "wall_us": nanoseconds / 1e3}
            )

    def turn(self, directory: Path, files: list[Path]) -> None:
        """Without the agent, then with it."""
        self.measure("off")
        with lab.running(directory, lab.config(lab.ENFORCE), log_all=False) as agent:
            # From tmpfs, so that it is asked about: after this its digest is known.
            shutil.copy(ON_ROOT, "/tmp/known.ko")
            load(Path("/tmp/known.ko"), self.median[0], 1, "among")
            agent.mark()
            self.measure("on")
            time.sleep(1)
            self.result["known"]["decision_us"] += [
                event["decision_us"] for event in agent.events() if event["path"] == str(ON_ROOT)
            ]
            self.first_loads(agent, files)
            self.result["resident_kib"] = agent.resident_kib()


class _Digest(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64), ("digest", ctypes.c_uint8 * 32))


def digest_alone(data: bytes, count: int) -> float:
    """Nanoseconds of SHA-256 in BPF over these bytes, without the call around it."""
    from kmodgate.hooks import libbpf  # noqa: PLC0415  # this part alone needs it

    programs = libbpf.Object(Path("/src/build/test.bpf.o").read_bytes())
    programs.load()
    memory = programs.map("buffer").memory(BUFFER)
    memory[: len(data)] = data
    program = programs.programs["test_sha256"]
    times: dict[int, list[int]] = {0: [], len(data): []}
    for _ in range(count):
        for length, found in times.items():
            arguments = _Digest(length=length)
            start = time.perf_counter_ns()
            if program.test_run(arguments):
                raise RuntimeError("the digest could not be taken")
            found.append(time.perf_counter_ns() - start)
    return min(times[len(data)]) - min(times[0])


def main() -> None:
    plan = json.loads((SHARE / "plan.json").read_text())
    shutil.copy(SHARE / "loader", LOADER)
    bench = Bench(plan)
    directory = Path("/tmp/agent")
    directory.mkdir()
    first = sorted(bench.signed.glob("first-*.ko"))
    for turn in range(plan["turns"]):
        bench.turn(directory, first[turn :: plan["turns"]])
    bench.measure("off")
    bench.result["digest_ns"] = digest_alone(ON_ROOT.read_bytes(), plan["loads"])
    (SHARE / "result.json").write_text(json.dumps(bench.result))


main()
