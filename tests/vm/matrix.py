# SPDX-License-Identifier: Apache-2.0
"""One table of what every kernel's guest said: a line for each test, a column for each kernel.

    python -m tests.vm.matrix [DIRECTORY]

Reads SUITE.xml (JUnit, written by pytest in the guest) and SUITE.json (what the kernel is).
Exits 1 where a test failed, or one is missing from a guest that others ran it in.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET  # what it reads was written by our own guest
from dataclasses import dataclass
from pathlib import Path

from .kernels import KERNELS, Kernel

RESULTS = Path(__file__).parents[2] / "build/vm"
LACKS = "this kernel lacks "
"""How the message begins with which the guest leaves a test out."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test in one guest.

    Attributes:
        name: file and test, as pytest writes them.
        result: ``pass``, ``FAIL``, ``lacks …`` (left out because of the table), or ``LEFT OUT``.
        said: the first line of a failure or of a reason.
    """

    name: str
    result: str
    said: str = ""


def read_cases(text: str) -> list[Case]:
    """The cases of one JUnit file."""
    cases = []
    for case in ET.fromstring(text).iter("testcase"):  # noqa: S314  # see above
        file = (case.get("classname") or "").rpartition(".")[2]
        name = f"{file}::{case.get('name')}"
        failed = case.find("failure")
        failed = case.find("error") if failed is None else failed
        skipped = case.find("skipped")
        if failed is not None:
            cases.append(Case(name, "FAIL", (failed.get("message") or "").splitlines()[0]))
        elif skipped is not None:
            said = skipped.get("message") or ""
            known = said.startswith(LACKS)
            cases.append(Case(name, f"lacks {said.removeprefix(LACKS)}" if known else "LEFT OUT", said))
        else:
            cases.append(Case(name, "pass"))
    return cases


def by_name(cases: list[Case]) -> dict[str, Case]:
    """One for each test; of a test that failed and also failed to clean up, the failure."""
    found: dict[str, Case] = {}
    for case in cases:
        if found.get(case.name, case).result != "FAIL":
            found[case.name] = case
    return found


def table(results: dict[str, list[Case]], heads: dict[str, list[str]]) -> list[list[str]]:
    """Rows of cells: the kernels' own lines first, then one for each test, last the sums."""
    suites = list(results)
    indexed = {suite: by_name(cases) for suite, cases in results.items()}
    names = list(dict.fromkeys(case.name for cases in results.values() for case in cases))
    rows = [["", *suites]]
    rows += [[label, *cells] for label, cells in heads.items()]
    for name in names:
        found = [indexed[suite].get(name) for suite in suites]
        rows.append([name, *("MISSING" if case is None else case.result for case in found)])
    sums = []
    for suite in suites:
        passed = sum(case.result == "pass" for case in indexed[suite].values())
        left_out = sum(case.result.startswith("lacks ") for case in indexed[suite].values())
        others = len(names) - passed - left_out
        sums.append(f"{passed} pass, {left_out} left out, {others} not right")
    return [*rows, ["", *sums]]


def heads_of(described: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """The lines that say what each kernel is."""
    labels = dict.fromkeys(label for told in described.values() for label in told)
    return {label: [told.get(label, "?") for told in described.values()] for label in labels}


def describe(kernel: Kernel, release: str, rung: str) -> dict[str, str]:
    """What stands above a kernel's column."""
    return {
        "release": release,
        "rung": rung,
        "has": ", ".join(sorted(kernel.capabilities)) or "none of these",
    }


def as_text(rows: list[list[str]]) -> str:
    """Columns padded with blanks."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def main(directory: Path) -> int:
    """Write and print the table; the exit status."""
    results: dict[str, list[Case]] = {}
    described: dict[str, dict[str, str]] = {}
    for kernel in KERNELS.values():
        path = directory / f"{kernel.suite}.xml"
        if path.exists():
            results[kernel.suite] = read_cases(path.read_text())
            about = directory / f"{kernel.suite}.json"
            described[kernel.suite] = json.loads(about.read_text()) if about.exists() else {}
    if not results:
        print(f"{directory}: no results; run make test-matrix", file=sys.stderr)
        return 2
    rows = table(results, heads_of(described))
    text = as_text(rows)
    (directory / "matrix.txt").write_text(text)
    print(text, end="")
    bad = [row for row in rows[1:-1] if {"FAIL", "LEFT OUT", "MISSING"}.intersection(row[1:])]
    for suite, cases in results.items():
        for case in cases:
            if case.result in {"FAIL", "LEFT OUT"}:
                print(f"{suite}: {case.name}: {case.said}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS))
