# SPDX-License-Identifier: Apache-2.0
"""Runs fuzz targets: ``python -m tests.fuzz TARGET…|all --runs N --seconds S``.

Each target runs in a process of its own. Without ``--corpus`` a run begins with the
committed corpus and keeps nothing, so that the same seed gives the same run. What breaks a
promise is written to ``build/fuzz`` with its name printed; run one again with ``--input FILE``.

Exit codes: 0 all is well, 1 a finding, 2 usage, 3 no atheris here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
FINDINGS = ROOT / "build" / "fuzz"
# A hang that no Python code can measure (a loop inside a library) ends here, in wall-clock seconds.
HANG_SECONDS = 20
_STATISTIC = re.compile(r"^stat::number_of_executed_units:\s+(\d+)$", re.MULTILINE)
_COVERAGE = re.compile(r"^#\d+\s.*\bcov: (\d+) ft: (\d+)", re.MULTILINE)


def fuzz(name: str, options: argparse.Namespace) -> tuple[int, int]:
    """Run one target; returns its executions, and 1 for a finding."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) if options.corpus is None else options.corpus / name
        kept.mkdir(parents=True, exist_ok=True)
        found = FINDINGS / name
        found.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"-runs={options.runs}",
            f"-max_total_time={options.seconds}",
            f"-seed={options.seed}",
            f"-timeout={HANG_SECONDS}",
            f"-artifact_prefix={found}/",
            "-rss_limit_mb=0",
            "-print_final_stats=1",
            str(kept),
            str(CORPUS / name),
        ]
        if options.input is not None:
            arguments = [str(options.input)]
        result = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.worker", name, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    counted = _STATISTIC.search(result.stdout)
    executions = int(counted[1]) if counted else 0
    reached = (_COVERAGE.findall(result.stdout) or [("?", "?")])[-1]
    print(
        f"{name:<13} {executions:>9} runs, {reached[0]} places and {reached[1]} features covered", flush=True
    )
    if result.returncode:
        sys.stdout.write("".join(_telling(result.stdout)) + "\n")
    return executions, int(result.returncode != 0)


def _telling(output: str) -> list[str]:
    """The traceback, and where the input was written; all of it when it looks otherwise."""
    start = output.find("=== Uncaught Python exception")
    chatter = ("INFO:", "WARNING:", "#", "MS:", "0x", "Base64:", "stat::")
    lines = output[max(start, 0) :].splitlines(keepends=True)
    return [line for line in lines if not line.startswith(chatter) and "artifact_prefix" not in line] + [
        line for line in lines if "Test unit written" in line
    ]


def main() -> int:
    """Parse the arguments, run the targets one after the other, and sum up."""
    names = sorted(path.name for path in CORPUS.iterdir())
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="+", choices=[*names, "all"], metavar=f"{{{','.join(names)},all}}")
    add = parser.add_argument
    add("--runs", type=int, default=20_000, help="inputs for each target (default: %(default)s)")
    add("--seconds", type=int, default=0, help="end a target after this time (default: never)")
    add("--seed", type=int, default=1, help="of the mutations; the same gives the same run")
    add("--corpus", type=Path, help="a folder that keeps what reached new code")
    add("--input", type=Path, help="run one file instead")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("fuzzing needs atheris; run: pip install '.[dev]' (CPython 3.11-3.13)", file=sys.stderr)
        return 3
    chosen = names if "all" in options.targets else list(dict.fromkeys(options.targets))
    results = [fuzz(name, options) for name in chosen]
    findings = sum(failed for _, failed in results)
    print(f"{sum(runs for runs, _ in results)} runs, {findings} targets with findings")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
