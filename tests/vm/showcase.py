# SPDX-License-Identifier: Apache-2.0
"""The main job, in the guest: tries loads under ENFORCE and prints what came of each.

Run by ``make demo``. Exits 0 only if every row went as the policy says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.vm import lab

WORK = Path("/tmp/demo")
ROWS_WIDTH = 44


@dataclass(frozen=True, slots=True)
class Row:
    """One load to try, and what must come of it."""

    what: str
    load: Callable[[], lab.Loaded]
    verdict: str
    reason: str
    result: str
    by: str
    module: str = "kmgtest"


def prepare() -> None:
    """Copies on tmpfs, and variants of an in-tree module."""
    WORK.mkdir()
    for module in lab.MODULES.glob("*.ko"):
        (WORK / module.name).write_bytes(module.read_bytes())
    (WORK / "dummy.flipped.ko").write_bytes(lab.flip_payload_byte(lab.in_tree("dummy").read_bytes()))
    subprocess.run(["modprobe", "videodev"], check=True)


def rows(merged: Path) -> list[Row]:
    """What is tried, in order."""

    def file(name: str) -> Callable[[], lab.Loaded]:
        return lambda: lab.finit(WORK / name)

    def memory(name: str) -> Callable[[], lab.Loaded]:
        return lambda: lab.init((WORK / name).read_bytes())

    trusted, refused = ("allow", "trusted_signature", "ok"), "EKEYREJECTED"
    return [
        Row("in-tree module (dummy) from the root", lambda: lab.finit(lab.in_tree("dummy")), *trusted, "kernel", "dummy"),
        Row("operator-signed module from tmpfs", file("kmgtest.operator.ko"), *trusted, "kmodgate"),
        Row("the same again: its digest is known", file("kmgtest.operator.ko"), *trusted, "kmodgate"),
        Row("real driver v4l2loopback, operator-signed", file("v4l2loopback.operator.ko"), *trusted, "kmodgate", "v4l2loopback"),
        Row("real driver v4l2loopback, unsigned", file("v4l2loopback.unsigned.ko"), "deny", "unsigned", refused, "kmodgate", "v4l2loopback"),
        Row("operator-signed, one payload byte flipped", file("kmgtest.tampered.ko"), "deny", "bad_signature", refused, "kmodgate"),
        Row("in-tree, one payload byte flipped", file("dummy.flipped.ko"), "deny", "bad_signature", refused, "kernel", "dummy"),
        Row("signed by an unknown key", file("kmgtest.stranger.ko"), "deny", "untrusted_signer", refused, "kmodgate"),
        Row("init_module of an operator-signed buffer", memory("kmgtest.operator.ko"), *trusted, "kmodgate"),
        Row("init_module of an unsigned buffer", memory("kmgtest.unsigned.ko"), "deny", "unsigned", refused, "kmodgate"),
        Row("operator-signed from an overlay mount", lambda: lab.finit(merged / "kmgtest.ko"), *trusted, "kmodgate"),
        Row("operator-signed, vermagic ignored", lambda: lab.finit(WORK / "kmgtest.operator.ko", lab.IGNORE_VERMAGIC), "deny", "unsigned", refused, "kmodgate"),
        Row("broken signature trailer", file("kmgtest.malformed.ko"), "deny", "malformed_signature", "EBADMSG", "kernel"),
    ]  # fmt: skip


def cells(values: tuple[object, ...]) -> str:
    """One line of the table."""
    widths = (ROWS_WIDTH, 26, 26, 13, 9, 9)
    return "  ".join(f"{value!s:<{width}}" for value, width in zip(values, widths, strict=True)).rstrip()


def attempt(agent: lab.Agent, row: Row) -> tuple[bool, dict[str, Any]]:
    """Try one row, print its line; whether it went as expected, and its event."""
    agent.mark()
    outcome = row.load()
    event = agent.next_event()
    loaded = lab.is_loaded(row.module)
    seen = (event["verdict"], event["reason"], outcome.result, event["by"])
    good = seen == (row.verdict, row.reason, row.result, row.by) and loaded == outcome.ok
    expected, found = f"{row.verdict} {row.reason}", f"{event['verdict']} {event['reason']}"
    mark = "" if good else "  <-- not as expected"
    print(
        cells((row.what, expected, found, outcome.result, event["by"], f"{outcome.micros:.0f}")) + mark,
        flush=True,
    )
    lab.unload(row.module)
    return good, event


def main() -> int:
    """Everything; the exit status."""
    prepare()
    directory = Path("/tmp/agent")
    directory.mkdir()
    began = time.monotonic()
    with lab.running(directory, lab.config(lab.ENFORCE)) as agent, lab.overlay(WORK / "overlay") as merged:
        print(
            f"kmodgate is ready after {time.monotonic() - began:.1f} s:",
            agent.log().split("ready: ")[1].strip(),
        )
        (merged / "kmgtest.ko").write_bytes((WORK / "kmgtest.operator.ko").read_bytes())
        before = lab.metrics()
        print()
        print(cells(("tried", "expected", "verdict and reason", "loader saw", "decided", "µs")))
        print("-" * 140)
        results = [attempt(agent, row) for row in rows(merged)]
        status, said = lab.insmod(WORK / "kmgtest.unsigned.ko")
        print(f"\n$ insmod kmgtest.unsigned.ko\n{said}")
        denial = next(event for _, event in results if event["reason"] == "untrusted_signer")
        print("\nthe event of one denial:\n" + json.dumps(denial, indent=2))
        print("\nthe metrics that moved:")
        for name, value in sorted(lab.metrics().items()):
            if name.startswith("kmodgate_module_load") and value != before.get(name, 0):
                print(f"{name} {value:g}  (+{value - before.get(name, 0):g})")
        good = [ok for ok, _ in results]
        good.append(status == 1 and said.endswith("Key was rejected by service"))
    print(f"\n{sum(good)} of {len(good)} as expected")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
