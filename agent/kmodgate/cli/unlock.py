# SPDX-License-Identifier: Apache-2.0
"""``kmodgate unlock``: hands the one-time token to the agent, which lifts its guard for a while."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from kmodgate.cli.options import examples
from kmodgate.cli.stderr import complain
from kmodgate.errors import InputError
from kmodgate.fsutil import read_regular_file
from kmodgate.safeguard.unlock import DEFAULT_SECONDS, MAX_SECONDS, MAX_TOKEN, SOCKET, Answer, Request, ask

_REFUSED: Final = {
    Answer.WRONG: "this is not the token whose SHA-256 the agent's config has",
    Answer.USED: "this token was used before; put a new one's hash into hardenedToken and restart the agent",
    Answer.PAUSED: "a wrong token was given less than ten seconds ago; try again later",
    Answer.NO_TOKEN: "the agent was started without hardenedToken; only ending it opens the off switches",
    Answer.MALFORMED: "the agent does not understand this version's request; use the agent's own version",
}


@click.command(
    "unlock",
    short_help="Lift the guard of a hardened agent with the one-time token.",
    epilog=examples(
        ("sudo kmodgate unlock --token-file token.txt", "One minute in which the off switches are open."),
        (
            "vault read … | sudo kmodgate unlock --token-file - --seconds 300",
            "Five minutes; the token by pipe.",
        ),
    ),
)
@click.option(
    "--token-file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="File with the token, or - for standard input. White space around it does not count.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1, MAX_SECONDS),
    default=DEFAULT_SECONDS,
    show_default=True,
    help="How long the guard is lifted.",
)
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    default=SOCKET,
    show_default=True,
    help="Where the agent listens.",
)
def command(token_file: Path, seconds: int, path: Path) -> int:
    """Lift the guard of an agent that runs with `hardened: true`, for some seconds.

    The agent's config holds the SHA-256 of the token (`hardenedToken`). A token works once; after a
    wrong one the agent looks at none for ten seconds. Every attempt is logged.

    Exit codes: 0 lifted, 1 the agent refused, 2 the file cannot be read, 3 no hardened agent here.
    """
    answer = ask(Request(_token(token_file), seconds), path)
    if answer is Answer.LIFTED:
        click.echo(f"lifted: for {seconds} s nothing is denied; this token will not work again")
        return 0
    complain(_REFUSED[answer])
    return 1


def _token(path: Path) -> bytes:
    """The token. Raises InputError."""
    if str(path) == "-":
        name, data = "standard input", sys.stdin.buffer.read(MAX_TOKEN + 1)
    else:
        name, data = str(path), read_regular_file(path, MAX_TOKEN)
    token = data.strip()
    if not token or len(data) > MAX_TOKEN:
        raise InputError(f"{name}: holds no token of 1 to {MAX_TOKEN} bytes")
    return token
