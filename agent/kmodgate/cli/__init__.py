# SPDX-License-Identifier: Apache-2.0
"""The command line: one file per command, each imported only when it is called.

Exit codes, the same for every command: 0 fine, 1 the answer is no, 2 usage or bad
input, 3 cannot run here. ``agent`` and the BPF libraries are never imported by
``verify`` or ``--help``, so these start fast and work on any machine.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from kmodgate import __version__
from kmodgate.errors import KmodgateError

# name -> (module in this package, first line of its help); the second element is here
# so that `kmodgate --help` need not import every command.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Run the node agent: enforce the policy, serve metrics, log decisions."),
    "verify": ("verify", "Verify the signatures of module files. Needs no root and no kernel."),
    "explain": ("explain", "Explain the verdict that a policy gives one module file."),
    "doctor": ("doctor", "Say what this node can enforce, rung by rung, and why not more."),
    "describe": ("describe", "Print the node's policy in the shape of the GKE API."),
}


class LazyGroup(click.Group):
    """A command group that imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names, in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None for an unknown name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[cmd_name][0]}")
        command = module.command
        assert isinstance(command, click.Command)  # noqa: S101  # our own table
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine, 1 the answer is no, 2 usage or bad input, 3 cannot run here. "
    'Shell completion: eval "$(_KMODGATE_COMPLETE=bash_source kmodgate)" (zsh_source, fish_source).',
)
@click.version_option(__version__, prog_name="kmodgate")
def cli() -> None:
    """Let a node load only the kernel modules its policy trusts, and say why."""


def main(argv: Sequence[str] | None = None) -> None:
    """Console entry point: runs the command, maps errors to exit codes."""
    try:
        result = cli.main(
            args=None if argv is None else list(argv), prog_name="kmodgate", standalone_mode=False
        )
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KmodgateError as error:
        click.echo(f"kmodgate: error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output left (`| head`); flushing at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(result if isinstance(result, int) else 0)
