# SPDX-License-Identifier: Apache-2.0
"""What commands say on standard error. A full or closed one changes no exit code."""

from __future__ import annotations

from contextlib import suppress

import click


def complain(message: str) -> None:
    """Say what is wrong."""
    _say("error", message)


def hint(message: str) -> None:
    """Say what may help."""
    _say("hint", message)


def _say(kind: str, message: str) -> None:
    """Line by line as given; names in it cannot drive the terminal."""
    shown = "\n".join(
        "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        for line in message.split("\n")
    )
    with suppress(OSError):
        click.echo(f"kmodgate: {kind}: {shown}", err=True)
