# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md says what --help says, and --help teaches."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kmodgate.cli import COMMANDS, cli
from kmodgate.cli.reference import WIDTH, page

PAGE = Path(__file__).parents[3] / "docs/cli.md"


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is no group, with the words that lead to it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands())


def test_the_page_is_up_to_date() -> None:
    written = subprocess.run(
        [sys.executable, "-m", "kmodgate.cli.reference"], capture_output=True, text=True, check=True
    ).stdout
    assert PAGE.read_text() == written, "docs/cli.md is old; type: make docs"


def test_every_command_has_its_section() -> None:
    text = page()
    for name in COMMANDS:
        assert f"\n## `kmodgate {name}`\n" in text
    for path in ALL:
        assert f"\n## `kmodgate {' '.join(path)}`\n" in text
    assert not [line for line in text.splitlines() if line.startswith("  ") and len(line) > WIDTH]


def long_help(path: tuple[str, ...]) -> str:
    found = re.search(rf"\n## `kmodgate {' '.join(path)}`\n\n```text\n(.*?)\n```", page(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_the_help_says_what_the_exit_code_means(path: tuple[str, ...]) -> None:
    if path in {("completion",), ("describe",)}:  # nothing but 0, or the usual ones
        return
    assert "xit code" in long_help(path)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_examples_that_parse(path: tuple[str, ...]) -> None:
    """An example with an option that there is not would teach a mistake."""
    text = long_help(path)
    examples = [line.strip() for line in text.partition("Examples:\n")[2].splitlines() if line.strip()]
    typed = [line for line in examples if re.match(r"(sudo )?kmodgate |source <\(kmodgate ", line)]
    own = 0
    for line in typed:
        found = re.search(r"kmodgate ([^|>)]*)", line)
        assert found is not None
        words = shlex.split(found[1].strip())
        called = next(other for other in ALL if tuple(words[: len(other)]) == other)
        own += called == path
        options = [option for item in ALL[called].params for option in (*item.opts, *item.secondary_opts)]
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert used <= {*options, "--"}, line
    assert own, "no example"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option) and parameter.name != "output":
            assert parameter.help, f"{' '.join(path)} {parameter.opts[0]}"


def test_no_page_says_that_a_command_is_missing_when_it_is_there() -> None:
    text = " ".join((PAGE.parent / "architecture.md").read_text(encoding="utf-8").split())
    missing = re.search(r"## Not in this version .*?\bthe commands ((?:`\w+`(?:, | and )?)+)", text)
    named = set(re.findall(r"`(\w+)`", missing[1])) if missing else set()
    assert not named & set(COMMANDS)
