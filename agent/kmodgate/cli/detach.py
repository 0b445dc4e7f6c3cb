# SPDX-License-Identifier: Apache-2.0
"""``kmodgate detach``: end enforcement that outlived its agent."""

from __future__ import annotations

import json

import click

from kmodgate.cli.options import examples


@click.command(
    "detach",
    short_help="Remove pinned enforcement from this node.",
    epilog=examples(
        ("sudo systemctl stop kmodgate && sudo kmodgate detach", "Take kmodgate off a node."),
        ("sudo kmodgate detach --output json", "For a machine to read."),
    ),
)
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the answer.",
)
def command(output: str) -> None:
    """Remove pinned enforcement from this node.

    An agent that ends leaves its programs in the kernel (`onExit: keep`), so that nothing loads
    unjudged while it is away. This takes them out, with their counts: from then on the node enforces
    no module policy. Needs root. A running agent is not disturbed; end it first.

    Exit codes: 0 nothing is attached any more, 3 an agent runs, the pins cannot be removed, or somebody
    else holds the programs.
    """
    from kmodgate.gap import note_detached
    from kmodgate.hooks import leaving
    from kmodgate.hooks.guard import Guard
    from kmodgate.hooks.pins import Pins

    pins = Pins()
    programs = 0
    if pins.root.exists():
        pins.lock()
        try:
            # An agent that was hardened leaves a guard over its pins; one that lives keeps its own.
            guard = Guard(pins.root)
            if guard.register_with_former(wait=0.0):
                guard.remove_former()
            programs = leaving.remove_all(pins)
        finally:
            pins.release()
        if programs:
            note_detached()
    if output == "json":
        click.echo(json.dumps({"root": str(pins.root), "programs": programs}))
    elif programs:
        click.echo(f"{programs} programs detached: this node no longer enforces a module policy")
    else:
        click.echo(f"nothing was attached: {pins.root} holds no programs")
