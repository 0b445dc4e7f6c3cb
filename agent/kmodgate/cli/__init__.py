# SPDX-License-Identifier: Apache-2.0
"""The command line: one file per command, each imported only when it is called.

Exit codes, the same for every command: 0 fine, 1 the answer is no, 2 usage or bad
input, 3 cannot run here. ``agent`` and the BPF libraries are never imported by
``verify`` or ``--help``, so these start fast and work on any machine.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from kmodgate import __version__
from kmodgate.cli.stderr import complain
from kmodgate.errors import KmodgateError

# name -> (module in this package, first line of its help); the second element is here
# so that `kmodgate --help` need not import every command.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Run the node agent: enforce the policy, serve metrics, log decisions."),
    "status": ("status", "Say what the node's agent does: policy, counts, last refusals."),
    "events": ("events", "Print the agent's last events, and follow those to come."),
    "verify": ("verify", "Verify the signatures of module files. Needs no root and no kernel."),
    "scan": ("scan", "Say which modules ENFORCE would refuse: loaded ones, and those on disk."),
    "explain": ("explain", "Explain the verdict that a policy gives one module file."),
    "doctor": ("doctor", "Say what this node can enforce, rung by rung, and why not more."),
    "unlock": ("unlock", "Lift the guard of a hardened agent with the one-time token."),
    "completion": ("completion", "Print the script for shell completion: bash, zsh or fish."),
    "describe": ("describe", "Print the node's policy in the shape of the GKE API."),
    "fleet": ("fleet", "Say of each node pool whether ENFORCE can be switched on: the go/no-go page."),
    "trust": ("trust", "List a node's trust anchors, or take a kernel's out of its image."),
    "detach": ("detach", "Remove pinned enforcement from this node."),
    "sign": ("sign", "Append signatures to module files, as the kernel's sign-file does."),
}


class OutputError(Exception):
    """Standard output failed; everything else that can fail is told as a ``KmodgateError``."""


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

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click would take a broken pipe for an answer (exit code 1)."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            raise OutputError from error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options that begin so, without importing the commands."""
        fitting = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*fitting, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine, 1 the answer is no, 2 usage or bad input, 3 cannot run here. "
    "Shell completion: kmodgate completion --help.",
)
@click.version_option(__version__, prog_name="kmodgate")
def cli() -> None:
    """Let a node load only the kernel modules its policy trusts, and say why."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Console entry point: runs the command, maps errors to exit codes."""
    if sys.stderr is None:  # closed; whatever is said goes nowhere
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # for the life of the process
    if sys.stdout is None:
        complain("standard output is closed; send it to /dev/null if it is not wanted")
        sys.exit(3)
    if isinstance(sys.stdout, TextIOWrapper):  # a locale without the characters must not end a report
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
    """The exit code."""
    try:
        result = cli.main(
            args=None if argv is None else list(argv), prog_name="kmodgate", standalone_mode=False
        )
        sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except KmodgateError as error:
        complain(str(error))
        return error.exit_code
    except (OutputError, OSError) as error:
        return _output_failed(error)
    except MemoryError:
        complain("out of memory; give it more, or fewer and smaller files")
        return 3
    return result if isinstance(result, int) else 0


def _output_failed(error: Exception) -> int:
    """The exit code after the system refused something, which as a rule is our output.

    Standard output is given up: flushing it at exit must not fail again.
    """
    cause = error.__cause__ if isinstance(error, OutputError) else error
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(cause, BrokenPipeError):
        # The reader left (`| head`): quietly, and neither yes nor no, as if SIGPIPE had ended us.
        return 128 + signal.SIGPIPE
    reason = cause.strerror if isinstance(cause, OSError) else str(cause)
    if isinstance(cause, OSError) and cause.filename is not None:  # not the output at all
        complain(f"{os.fsdecode(cause.filename)}: {(reason or 'cannot be used').lower()}")
        return 2
    complain(f"standard output cannot be written: {(reason or 'unknown').lower()}; the report is incomplete")
    return 3
