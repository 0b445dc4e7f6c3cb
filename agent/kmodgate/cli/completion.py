# SPDX-License-Identifier: Apache-2.0
"""``kmodgate completion``: the script that makes a shell complete commands, options and files."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from kmodgate.cli.options import examples

PROGRAM = "kmodgate"
VARIABLE = "_KMODGATE_COMPLETE"


@click.command(
    "completion",
    short_help="Print the script for shell completion.",
    epilog=examples(
        ("source <(kmodgate completion bash)", "bash, for this session."),
        (
            "kmodgate completion bash > /etc/bash_completion.d/kmodgate",
            "bash, for everybody; needs no bash-completion package if ~/.bashrc sources it.",
        ),
        (
            'kmodgate completion zsh > "${fpath[1]}/_kmodgate"',
            "zsh; then start a new one (compinit must run in ~/.zshrc).",
        ),
        ("kmodgate completion fish > ~/.config/fish/completions/kmodgate.fish", "fish."),
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print the script that completes kmodgate's commands, options, choices and file names.

    The script asks the kmodgate on PATH for what fits, so it need not be printed anew after an
    upgrade.
    """
    chosen = get_completion_class(shell)
    assert chosen is not None  # noqa: S101  # click.Choice let it pass
    # Not its own source(): for bash that starts a bash to look at its version.
    script = ShellComplete.source(chosen(click.Command(PROGRAM), {}, PROGRAM, VARIABLE))
    click.echo(script.strip())
    return 0
