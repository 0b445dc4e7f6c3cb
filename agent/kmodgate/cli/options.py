# SPDX-License-Identifier: Apache-2.0
"""What several commands' options have in common."""

from __future__ import annotations

import click


def examples(*pairs: tuple[str, str]) -> str:
    """A command's ``epilog``: commands to type, each with what it answers.

    Kept as it is by click (a paragraph that begins with a backspace character).
    """
    lines = [f"  {typed}\n      {meaning}" for typed, meaning in pairs]
    return "\b\nExamples:\n" + "\n".join(lines)


def parse_labels(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """``KEY=VALUE``, as often as given."""
    labels = {}
    for value in values:
        key, equals, word = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE", ctx=context, param=parameter)
        labels[key] = word
    return labels
