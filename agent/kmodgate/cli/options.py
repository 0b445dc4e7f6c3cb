# SPDX-License-Identifier: Apache-2.0
"""What several commands' options have in common."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Callable

    from kmodgate.signature import KernelProfile

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

RUNNING: Final = "running"
"""The kernel profile of the kernel that runs here, as far as /proc tells."""


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


def parse_profile(context: click.Context, parameter: click.Parameter, name: str) -> KernelProfile:
    """The profile of that name."""
    from kmodgate.running import running_profile
    from kmodgate.signature import PROFILES

    if name == RUNNING:
        return running_profile()
    if name not in PROFILES:
        names = ", ".join([RUNNING, *PROFILES])
        raise click.BadParameter(
            f"{name!r} is no kernel profile; give one of {names}", ctx=context, param=parameter
        )
    return PROFILES[name]


def _complete_profile(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names that begin so."""
    del context, parameter
    from kmodgate.signature import PROFILES

    return [CompletionItem(name) for name in (RUNNING, *PROFILES) if name.startswith(incomplete)]


def kernel_profile_option(default: str) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """``--kernel-profile NAME``: whose signature code answers."""
    return click.option(
        "--kernel-profile",
        "profile",
        callback=parse_profile,
        shell_complete=_complete_profile,
        metavar="NAME",
        default=default,
        show_default=True,
        help="The kernel that checks the signature: running (what /proc tells of this one), latest, "
        "or a version (5.10, 6.1, 6.12, 7.2) or distribution (debian-12) that is known.",
    )


def parse_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number of bytes, at least one: ``1048576``, ``64M``, ``1GiB`` (binary units)."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15})([kmg]?)(?:i?b)?", value.strip().lower())
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if size <= 0:
        raise click.BadParameter(
            f"{value!r} is not a size; write a number of bytes, or one with K, M or G",
            ctx=context,
            param=parameter,
        )
    return size
