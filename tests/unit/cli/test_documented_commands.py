# SPDX-License-Identifier: Apache-2.0
"""Every command that the documentation tells people to type exists, with every option that it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kmodgate.cli import cli

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "helm/kmodgate/README.md",
    *(ROOT / "docs").rglob("*.md"),
]
# A command line in a block or between backticks: up to a pipe, a redirection, a comment or the end.
_CODE = re.compile(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)
_COMMAND = re.compile(r"(?:^\s*|[$#|;&(]\s*| -- )(?:sudo |time )*kmodgate ([a-z][^\n|;&>#)…]*)", re.MULTILINE)
_TARGET = re.compile(r"(?:^|[\s;|&(])make ([a-z][a-z0-9-]*)(?![-*…])")


def code(path: Path) -> Iterator[str]:
    text = path.read_text().replace("\\\n", " ")
    for match in _CODE.finditer(text):
        yield match[1] or match[2]


def commands() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        for part in code(path):
            for match in _COMMAND.finditer(part):
                yield str(path.relative_to(ROOT)), match[1].strip()


def problem(line: str) -> str | None:
    """What the command line has that the program has not."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    group: click.Command = cli
    context = click.Context(cli, info_name="kmodgate")
    while words and isinstance(group, click.Group):
        found = group.get_command(context, words[0])
        if found is None:
            return f"no command {words[0]!r}"
        group, words = found, words[1:]
    known = {name for option in group.params for name in (*option.opts, *option.secondary_opts)}
    known |= {"--help", "-h"}
    for word in words:
        name = word.partition("=")[0].rstrip("].,:")
        for one in re.findall(r"--?[a-z][a-z-]*", name.removeprefix("[")) if "-" in name[:2] else ():
            if one.startswith("--") and one not in known:
                return f"no option {one} of {group.name}"
    return None


def test_there_are_many() -> None:
    assert len(list(commands())) > 100


@pytest.mark.parametrize("page", sorted({page for page, _ in commands()}))
def test_the_commands_of_a_page(page: str) -> None:
    wrong = [(line, said) for where, line in commands() if where == page and (said := problem(line))]
    assert wrong == []


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert problem("verify --trusted x.pem a.ko") == "no option --trusted of verify"
    assert problem("verfy a.ko") == "no command 'verfy'"
    assert problem("trust list --config node.yaml") is None


def test_targets_of_make() -> None:
    known = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [*PAGES, ROOT / "CHANGELOG.md"]
    named = {(str(path), name) for path in pages for part in code(path) for name in _TARGET.findall(part)}
    assert {name for _, name in named} >= {"image", "test", "pictures"}
    assert [pair for pair in named if pair[1] not in known] == []
