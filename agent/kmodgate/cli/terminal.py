# SPDX-License-Identifier: Apache-2.0
"""What commands write for people: tables, colours, progress, and hostile strings made harmless.

``rich`` is imported when something is drawn, never by ``run``. On a terminal a table is
drawn to its width and coloured; in a pipe or a file the same table is plain text with whole
lines, so that ``grep`` finds what it looks for. Names of files, modules and signers come
from outside: they go through ``printable`` (or ``cell``, which does it) and never as markup.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO

from kmodgate.telemetry import text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    Part = Table | Text | tuple[str, Text] | None
    """Of a page: a table, a line, a line after its lead (see ``hang``), or an empty line."""

# Wider than any line: what is not a terminal is never wrapped.
_UNWRAPPED = 1 << 16

GOOD, BAD, UNSURE, FAINT = "bold green", "bold red", "yellow", "dim"
"""Styles, by meaning. ``FAINT`` is for what explains and decides nothing."""


def printable(value: str | bytes) -> str:
    """Escape what does not print, so that a name can neither drive the terminal nor fake a line."""
    return text.printable(value, text.PATH_LIMIT)


def colour_wanted(stream: TextIO) -> bool:
    """True for a terminal that can show colours, unless ``NO_COLOR`` is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(stream: TextIO | None = None) -> Console:
    """A console on a stream (standard output unless told otherwise) that takes text as it is.

    Markup, emoji codes and highlighting are off: a module named ``[red]`` prints as that.
    """
    from rich.console import Console

    stream = sys.stdout if stream is None else stream
    terminal = stream.isatty()
    if isinstance(stream, TextIOWrapper):  # a locale without the characters must not end the report
        stream.reconfigure(errors="backslashreplace")
    return Console(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if colour_wanted(stream) else None,
        width=None if terminal else _UNWRAPPED,
        soft_wrap=not terminal,
        markup=False,
        emoji=False,
        highlight=False,
    )


def table(columns: Sequence[str], *, numbers: Sequence[str] = ()) -> Table:
    """An empty table; rows are added with ``add_row`` and shown with ``show``.

    Args:
        columns: their headings. Cells too wide for a terminal continue on the next line.
        numbers: the headings of those that align to the right.
    """
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in numbers
        result.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return result


def cell(value: str | bytes, style: str = "") -> Text:
    """A string from outside as a cell or line, escaped; ``style`` as ``GOOD`` and its like."""
    from rich.text import Text

    return Text(printable(value), style)


def show(drawn: Table | Text, stream: TextIO | None = None) -> None:
    """Print a table or a line; without rules and trailing blanks where that is no terminal."""
    from rich.table import Table

    target = console(stream)
    if target.is_terminal:
        target.print(drawn)
        return
    if isinstance(drawn, Table):
        target.file.writelines(_plain(drawn))
        return
    with target.capture() as captured:
        target.print(drawn)
    target.file.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def _plain(drawn: Table) -> Iterator[str]:
    """The lines of a table without rules; thousands of them cost a tenth of what drawing them does."""
    from rich.cells import cell_len

    columns = [[str(column.header), *map(str, column.cells)] for column in drawn.columns]
    widths = [max(map(cell_len, texts)) for texts in columns]
    right = [column.justify == "right" for column in drawn.columns]
    for row in zip(*columns, strict=True):
        padded = []
        for content, width, to_the_right in zip(row, widths, right, strict=True):
            blanks = " " * (width - cell_len(content))
            padded.append(blanks + content if to_the_right else content + blanks)
        yield "    ".join(padded).rstrip() + "\n"


def hang(lead: str, line: Text, stream: TextIO | None = None) -> None:
    """Print a line after ``lead``; on a terminal what does not fit continues below the line, not the lead."""
    from rich.text import Text

    target = console(stream)
    if not target.is_terminal:
        show(Text(lead).append_text(line), stream)
        return
    target.print(_hanging(lead, line))


def _hanging(lead: str, line: Text) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(lead), line)
    return grid


def show_page(parts: Iterable[Part], stream: TextIO | None = None) -> None:
    """Print a page, part by part."""
    from rich.text import Text

    for part in parts:
        if part is None:
            show(Text(""), stream)
        elif isinstance(part, tuple):
            hang(*part, stream)
        else:
            show(part, stream)


def can_redraw(stream: TextIO) -> bool:
    """True for a terminal on which ``screen`` works."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}


@contextmanager
def screen() -> Iterator[Callable[[Iterable[Part]], None]]:
    """The whole terminal while the block runs; what was on it comes back afterwards.

    Yields:
        A function that draws a page in place of the one before. What is below the edge is left out.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def drawn(part: Part) -> Table | Text:
        return Text("") if part is None else _hanging(*part) if isinstance(part, tuple) else part

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        yield lambda parts: live.update(Group(*map(drawn, parts)), refresh=True)


def _ignore(steps: int) -> None:
    del steps


@contextmanager
def progress(label: str, total: int, stream: TextIO | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the block runs; nothing at all where that is no terminal.

    Yields:
        A function to call with the number of steps done since its last call.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _ignore
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stream), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda steps: bar.advance(task, steps)
