# SPDX-License-Identifier: Apache-2.0
"""``python -m kmodgate.cli.reference`` writes docs/cli.md: what ``--help`` of every command says."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from kmodgate.cli import cli

WIDTH = 100

_HEAD = """\
# Command line

What `--help` prints, for every command. Generated from the commands by `make docs`; a test compares.

| exit code | means |
|---|---|
| 0 | fine |
| 1 | the answer is no |
| 2 | usage, or input that cannot be used |
| 3 | it cannot run here, or its output cannot be written |
| 130, 141 | interrupted (Ctrl-C), or the reader of its output left |

Results are written to standard output, everything else to standard error: `kmodgate: error: …`, one line
each with the file, the place in it and what to do. Colours and rules are for terminals; `NO_COLOR` switches
colours off. JSON is ASCII.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return _HEAD + "".join(f"\n## `{name}`\n\n```text\n{text}\n```\n" for name, text in _helps(cli, None))


def _helps(command: click.Command, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """The path and the help of a command, and of all below it."""
    name = "kmodgate" if parent is None else command.name
    context = click.Context(
        command,
        parent=parent,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        **{key: value for key, value in command.context_settings.items() if key == "help_option_names"},
    )
    text = command.get_help(context)
    yield context.command_path, "\n".join(line.rstrip() for line in text.splitlines())
    if isinstance(command, click.Group):
        for item in command.list_commands(context):
            below = command.get_command(context, item)
            if below is not None:
                yield from _helps(below, context)


if __name__ == "__main__":
    sys.stdout.write(page())
