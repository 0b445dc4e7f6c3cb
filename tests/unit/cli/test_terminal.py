# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from kmodgate.cli import terminal

HOSTILE = "[red]\x1b[2J:smile:\n\u202e\udcff.ko"
ESCAPED = r"[red]\x1b[2J:smile:\x0a\u202e\xff.ko"

DRAW = f"""
from kmodgate.cli import terminal
table = terminal.table(["module", "files"], numbers=["files"])
table.add_row(terminal.cell({HOSTILE!r}, terminal.BAD), "7")
table.add_row(terminal.cell("x" * 200), "1234")
terminal.show(table)
with terminal.progress("reading [b]", 3) as advance:
    advance(3)
"""


def in_terminal(code: str, **environment: str) -> str:
    """What a program writes to a terminal of 80 columns that is its output and its errors."""
    master, slave = pty.openpty()
    settings = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color", **environment}
    settings.pop("NO_COLOR", None) if "NO_COLOR" not in environment else None
    child = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=settings)
    os.close(slave)
    out = b""
    try:
        while chunk := os.read(master, 1 << 16):
            out += chunk
    except OSError:  # EIO: the child has closed its side
        pass
    os.close(master)
    assert child.wait() == 0, out
    return out.decode()


def test_a_pipe_gets_whole_plain_lines() -> None:
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split() for line in lines] == [["module", "files"], [ESCAPED, "7"], ["x" * 200, "1234"]]
    assert all(line == line.rstrip() for line in lines)
    assert done.stderr == ""


def test_a_terminal_gets_colour_and_a_bar_and_keeps_long_names() -> None:
    out = in_terminal(DRAW)
    assert f"\x1b[1;31m{ESCAPED}" in out
    assert "\x1b[2J" not in out
    assert "\u202e" not in out
    assert out.count("x") == 200 + ESCAPED.count("x")
    assert "3/3" in out
    assert "reading [b]" in out


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_it_is_not_wanted(environment: dict[str, str]) -> None:
    out = in_terminal(DRAW.rpartition("with ")[0], **environment)
    assert ESCAPED in out
    assert "\x1b" not in out


def test_a_locale_without_the_characters_ends_no_report() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from kmodgate.cli import terminal as t; t.show(t.cell('M\\xfcller'))"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout == b"M\\xfcller\n"


def test_streams_that_are_no_files_do() -> None:
    stream = io.StringIO()
    terminal.show(terminal.cell(HOSTILE), stream)
    assert stream.getvalue() == ESCAPED + "\n"
    assert not terminal.colour_wanted(stream)


def test_the_agent_never_imports_it() -> None:
    code = "import sys, kmodgate.cli.run, kmodgate.agent; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


HANG = "from kmodgate.cli import terminal; terminal.hang('  - ', terminal.cell('word ' * 30))"


def test_a_long_line_hangs_below_its_beginning_on_a_terminal() -> None:
    first, second, *_ = in_terminal(HANG, NO_COLOR="1").splitlines()
    assert first.startswith("  - word")
    assert second.startswith("    word")
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["  - " + ("word " * 30).rstrip()]
