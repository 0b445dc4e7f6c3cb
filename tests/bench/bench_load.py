# SPDX-License-Identifier: Apache-2.0
"""What enforcement costs a module load, in a virtual machine that counts instructions.

Guest time follows instructions (one a nanosecond, one processor), so figures repeat whatever else
the host does; loads with the agent and without alternate in one boot. Compares:

* a module that the kernel trusts, from the root: the one of median size, and some of every size;
* the same module signed by the operator, its digest known: over SHA-256 in BPF alone;
* the same, never seen before: how long it waits, over the agent's own verification;
* system calls that load no module.

Usage: ``PYTHONPATH=.:vm-images bench_load.py [--kernel SUITE] [--json FILE]`` (root; builds the machine)
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vmtool import VmDied, VmToolError, artifacts
from vmtool.runner import Options, run, to_descriptor

from kmodgate.signature import load_certificates
from kmodgate.signature.sign import append, load_private_key, sign
from kmodgate.signature.trailer import split

HERE = Path(__file__).parent
DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
# Loading these does more than load them.
UNWANTED = re.compile(r"test|torture|kunit|bench|selftest|softdog|hang")
CANDIDATES = 8  # tried in the guest for each place: some need hardware

Result = dict[str, Any]


def independent(modules: Path) -> list[tuple[int, str, str]]:
    """Size, name and path of the modules that need no other one, by size."""
    found = []
    for path in modules.rglob("kernel/**/*.ko"):
        depends = DEPENDS.search(path.read_bytes())
        if depends and not depends[1] and not UNWANTED.search(str(path.relative_to(modules))):
            found.append((path.stat().st_size, path.stem.replace("-", "_"), str(path.relative_to(modules))))
    return sorted(found)


def nearest(found: list[tuple[int, str, str]], size: int) -> list[tuple[str, str]]:
    """The candidates for a place in the distribution of sizes."""
    order = sorted(found, key=lambda entry: (abs(entry[0] - size), entry[2]))
    return [(name, path) for _, name, path in order[:CANDIDATES]]


def prepare(share: Path, suite: str, options: argparse.Namespace) -> None:
    """The plan, the loader and the signed copies, for the guest."""
    modules, certs = artifacts.path("modules", suite), artifacts.path("certs", suite)
    sizes = sorted(path.stat().st_size for path in modules.rglob("kernel/**/*.ko"))
    if not sizes:
        sys.exit(f"{modules} has no plain .ko files; take a kernel whose modules are not compressed")
    found = independent(modules)
    median = nearest(found, sizes[len(sizes) // 2])
    places = [sizes[int(len(sizes) * (index + 0.5) / options.spread)] for index in range(options.spread)]
    plan = {
        "median": median,
        "spread": [nearest(found, size) for size in places],
        "turns": options.turns,
        "loads": options.loads,
        "spread_loads": options.spread_loads,
        "calls": options.calls,
    }
    (share / "plan.json").write_text(json.dumps(plan))
    (share / "certs").mkdir()
    for name in ("operator.pem", "operator-ec.pem"):
        shutil.copy(certs / name, share / "certs")
    (anchor,) = load_certificates((certs / "operator.pem").read_bytes(), "operator.pem")
    key = load_private_key((certs / "operator.key").read_bytes(), None, "operator.key")
    for name, path in median:
        payload = split((modules / path).read_bytes()).payload
        folder = share / "signed" / name
        folder.mkdir(parents=True)
        for number in range(options.first + 1):
            # Behind the last section, where nobody looks: another digest, the same module.
            variant = bytes(payload) + number.to_bytes(16, "little")
            target = folder / (f"first-{number}.ko" if number else "known.ko")
            target.write_bytes(append(variant, sign(variant, anchor, key)))
    source = HERE / "guest" / "loader.c"
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-o", share / "loader", source], check=True)


def row(*cells: object) -> None:
    """One line of a table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def table(title: str, *columns: str) -> None:
    """The head of a table."""
    print(f"\n{title}\n")
    row(*columns)
    row(*("---" for _ in columns))


def medians(samples: dict[str, list[int]]) -> tuple[float, float]:
    """Nanoseconds without the agent and with it."""
    return statistics.median(samples["off"]), statistics.median(samples["on"])


def micros(nanoseconds: float) -> str:
    """As a table shows it."""
    return f"{nanoseconds / 1e3:,.1f}"


def tell(result: Result) -> None:
    """Print what was measured, as medians. With instructions counted a microsecond is 1,000 of them."""
    trusted, known = result["trusted"], result["known"]
    name, size = result["median"]["module"], result["median"]["size"]
    table(f"finit_module of {name} ({size} bytes), µs", "", "off", "on", "more", "on / off")
    pairs = [
        ("kernel-trusted", trusted),
        ("kernel-trusted, agent may run before it returns", result["among"]),
        ("operator-signed, digest known", known),
    ]
    for label, samples in pairs:
        off, on = medians(samples)
        row(label, micros(off), micros(on), micros(on - off), f"{on / off:.4f}")
    off, on = medians(known)
    digest = result["digest_ns"]
    decision = statistics.median(known["decision_us"]) * 1e3
    table(f"A known digest, file of {known['size']} bytes", "", "µs", "of the digest")
    row("SHA-256 in BPF alone", micros(digest), "1.000")
    row("decision", micros(decision), f"{decision / digest:.3f}")
    row("all that enforcement adds", micros(on - off), f"{(on - off) / digest:.3f}")

    ratios = []
    table("Kernel-trusted modules of every size", "module", "bytes", "off", "on", "more", "on / off")
    for module, samples in sorted(result["spread"].items(), key=lambda item: item[1]["size"]):
        off, on = medians(samples)
        ratios.append(on / off)
        row(module, samples["size"], micros(off), micros(on), micros(on - off), f"{on / off:.4f}")
    row("median", "", "", "", "", f"{statistics.median(ratios):.4f}")
    row("worst", "", "", "", "", f"{max(ratios):.4f}")

    table("First load of an operator-signed module", "", "µs", "of verification")
    hold, verify = (
        statistics.median(one[what] for one in result["first"]) for what in ("hold_us", "verify_us")
    )
    row("verification by the agent", f"{verify:.0f}", "1.00")
    row("wait of the load", f"{hold:.0f}", f"{hold / verify:.2f}")
    worst = max(one["hold_us"] / one["verify_us"] for one in result["first"])
    row("worst of", len(result["first"]), f"{worst:.2f}")

    # The agent watches directories of the root with inotify; so do others on most nodes.
    table("Other system calls, ns", "", "off", "off, another's watch", "on", "on / off", "on / watched")
    for call in result["calls"]["off"][0]:
        off, watched, on = (
            statistics.median(turn[call] for turn in result["calls"][state])
            for state in ("off", "watched", "on")
        )
        row(call, f"{off:.1f}", f"{watched:.1f}", f"{on:.1f}", f"{on / off:.4f}", f"{on / watched:.4f}")


def main() -> None:
    """Run the guest, print tables."""
    parser = argparse.ArgumentParser(description="Cost of enforcement for a module load.")
    parser.add_argument("--kernel", default="bookworm", help="Debian suite whose kernel boots")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--two-cpus", action="store_true", help="in real time; figures do not repeat")
    parser.add_argument("--turns", type=int, default=2, help="with and without the agent")
    parser.add_argument("--loads", type=int, default=10, help="of the median module in each turn")
    parser.add_argument("--spread", type=int, default=30, help="modules of other sizes")
    parser.add_argument("--spread-loads", type=int, default=3, help="of each in each turn")
    parser.add_argument("--first", type=int, default=10, help="modules that nobody has seen")
    parser.add_argument("--calls", type=int, default=20_000, help="of each system call in each turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kmodgate-bench-") as name:
        share = Path(name)
        prepare(share, options.kernel, options)
        try:
            done = run(
                ["python3", "/src/tests/bench/guest/load_cost.py"],
                Options(suite=options.kernel, share=share, icount=not options.two_cpus, timeout=1200),
                stdout=to_descriptor(sys.stdout.fileno()),
                stderr=to_descriptor(sys.stderr.fileno()),
                env={"KMODGATE_TEST_CERTS": "/share/certs"},
            )
        except VmDied as error:
            sys.exit(f"the machine died: {error}\n{error.tail}")
        except VmToolError as error:
            sys.exit(str(error))
        if done.status:
            sys.exit(done.status)
        result = json.loads((share / "result.json").read_text())
    if options.json:
        options.json.write_text(json.dumps(result))
    tell(result)


if __name__ == "__main__":
    main()
