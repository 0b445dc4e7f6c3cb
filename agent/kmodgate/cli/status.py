# SPDX-License-Identifier: Apache-2.0
"""``kmodgate status``: the running agent, on one screen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from kmodgate.cli import local
from kmodgate.cli.options import examples

_INTERVAL: Final = 2.0
_SHORTEST, _LONGEST = 0.2, 3600


def _seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """An interval between two looks; NaN is none."""
    if value is not None and not _SHORTEST <= value <= _LONGEST:
        raise click.BadParameter(
            f"{value:g} is not from {_SHORTEST} to {_LONGEST} seconds", ctx=context, param=parameter
        )
    return value


@click.command(
    "status",
    short_help="Say what the node's agent does.",
    epilog=examples(
        ("sudo kmodgate status", "Is the policy enforced, and what was refused?"),
        ("sudo kmodgate status --watch", "The same, live, with what has come since."),
        ("sudo kmodgate status --output json | jq '.denials[0]'", "The last refusal, whole."),
        ("sudo kmodgate status > /dev/null && echo enforced", "The exit code alone."),
    ),
)
@click.option(
    "--watch",
    "interval",
    metavar="[SECONDS]",
    is_flag=False,
    flag_value=_INTERVAL,
    type=float,
    callback=_seconds,
    help=f"Look again and again, every {_INTERVAL:g} seconds unless told otherwise, until Ctrl-C.",
)
@local.socket_option()
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(interval: float | None, path: Path, output: str) -> int:
    """Say what the agent of this node does.

    That is: the policy and where it comes from, since when it is enforced, what was decided, the last
    refusals, trust anchors, and events that were lost.

    With --watch the screen is drawn anew at each look, with the loads that have come since the first one,
    and stays when the agent is away. In a pipe each look is a page of text, or a line of JSON.

    Asks the agent over its socket, which needs root. Times are in UTC. JSON is described by
    local/status.schema.json in the package.

    Exit codes: 0 it does what the policy asks (that may be audit), 1 it does not, 3 no agent; 130 after
    Ctrl-C.
    """
    from kmodgate.local.client import ask_status

    if interval is not None:
        from kmodgate.cli.status_watch import watch

        watch(lambda: ask_status(path), interval, tell=_tell_json if output == "json" else None)
    status = ask_status(path)
    if output == "json":
        _tell_json(status)
    else:
        from kmodgate.cli import terminal
        from kmodgate.cli.status_text import page

        terminal.show_page(page(status))
    return 0 if status.get("as_asked") is True else 1


def _tell_json(status: Mapping[str, Any]) -> None:
    click.echo(json.dumps(status))
