# SPDX-License-Identifier: Apache-2.0
"""docs/signing.md, word for word: its commands in order in one shell, and what they print."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.vm import lab

PAGE = Path(__file__).parents[3] / "docs/signing.md"
END = "@@ end of the output @@"


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the page, and the lines that it prints there."""

    line: int
    command: str
    shown: tuple[str, ...]


def steps(text: str) -> Iterator[Step]:
    """The commands in the fenced ``console`` blocks; ``$`` begins one and ``>`` continues it."""
    inside, start, typed, shown = False, 0, list[str](), list[str]()
    for number, line in enumerate([*text.splitlines(), "```"], start=1):
        if inside and line.startswith("> ") and not shown:
            typed.append(line[2:])
        elif inside and not line.startswith(("$ ", "```")):
            shown.append(line)
        else:
            if typed:
                yield Step(start, "\n".join(typed), tuple(shown))
            typed, shown, start = [], [], number
            inside = line == "```console" or (inside and line != "```")
            if inside and line.startswith("$ "):
                typed.append(line[2:])


def pattern(shown: tuple[str, ...]) -> str:
    """A line that is … alone stands for any lines, … in a line for any text; runs of blanks are alike."""
    lines = []
    for line in shown:
        if line == "…":
            lines.append(r"(?:[^\n]*\n)*")
        else:
            pieces = (r"\s+".join(map(re.escape, re.split(" +", piece))) for piece in line.split("…"))
            lines.append(r"[^\n]*".join(pieces) + r"\n")
    return "".join(lines)


def test_every_block_on_the_page_is_run() -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) == {"console"}
    assert len(list(steps(text))) == len(re.findall(r"^\$ ", text, re.MULTILINE)) > 12


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """One bash for the whole page; what it started ends with it."""
    assert lab.get("/readyz")[0] == 0, "another agent runs; this page starts its own"
    (tmp_path / "driver.ko").write_bytes((lab.MODULES / "kmgtest.unsigned.ko").read_bytes())
    process = subprocess.Popen(
        ["bash"],
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.write("kill %1 2>/dev/null; wait; exit\n")
        process.stdin.close()
        process.wait(60)
        subprocess.run(["kmodgate", "detach"], check=True, capture_output=True)
        lab.unload("kmgtest")


@pytest.mark.needs("digests")
def test_the_page_word_for_word(shell: subprocess.Popen[str], tmp_path: Path) -> None:
    assert shell.stdin is not None
    assert shell.stdout is not None
    for step in steps(PAGE.read_text()):
        shell.stdin.write(f"{step.command}\necho; echo '{END}'\n")
        shell.stdin.flush()
        printed = ""
        while not printed.endswith(f"{END}\n"):
            line = shell.stdout.readline()
            assert line, f"the shell ended at docs/signing.md:{step.line}"
            printed += line
        printed = printed.removesuffix(f"\n{END}\n")
        log = tmp_path / "agent.log"
        assert re.fullmatch(pattern(step.shown), printed), (
            f"docs/signing.md:{step.line}: $ {step.command}\nprinted:\n{printed}\n"
            f"agent: {log.read_text() if log.exists() else 'not started'}"
        )
