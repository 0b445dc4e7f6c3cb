# SPDX-License-Identifier: Apache-2.0
"""The command line of ``vm-images/vm``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from . import apt, artifacts, cache, host, runner
from .errors import VmDied, VmToolError

EXIT_VM_DIED = 125
EXIT_CANNOT = 124
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def kernel_option(command: Callable[..., None]) -> Callable[..., None]:
    """``--kernel SUITE``."""
    return click.option(
        "--kernel",
        "suite",
        type=click.Choice(apt.SUITES),
        default=runner.DEFAULT_SUITE,
        show_default=True,
        metavar="SUITE",
        help=f"Debian suite whose kernel boots: {', '.join(apt.SUITES)}.",
    )(command)


def machine_options(command: Callable[..., None]) -> Callable[..., None]:
    """What ``run`` and ``shell`` have in common."""
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    for decorate in reversed(
        (
            click.option(
                "--share",
                type=folder,
                help="Folder mounted read-write at /share; becomes the working folder.",
            ),
            click.option(
                "--append",
                default="",
                metavar="ARGS",
                help="More kernel arguments, e.g. 'lsm=lockdown,yama'.",
            ),
            click.option(
                "--smp", type=click.IntRange(1, 64), default=2, show_default=True, help="Processors."
            ),
            click.option("--memory", type=click.IntRange(128), default=1024, show_default=True, help="MiB."),
            click.option("--readonly-root", is_flag=True, help="Root device and root mount are read-only."),
            click.option(
                "--icount", is_flag=True, help="Guest time follows instructions (TCG, one processor)."
            ),
            click.option(
                "--in-turn",
                is_flag=True,
                help="Emulated processors run one after another (QEMU misses code that changes).",
            ),
            click.option("--network", is_flag=True, help="A virtio card on QEMU's user-mode network."),
        )
    ):
        command = decorate(command)
    return kernel_option(command)


@click.group(context_settings=_HELP, epilog="Start: `vm build`, then `vm run -- uname -a`.")
def cli() -> None:
    """Boot a Debian kernel in QEMU with kmodgate installed, and run commands in it.

    Kernels, the guest's disk, test modules and keys are built from Debian packages and kept in
    $KMODGATE_VM_CACHE (default ~/.cache/kmodgate/vm). A run on a warm cache uses no network. The
    project's agent/ is shared at run time: an edit needs no rebuild. $KMODGATE_VM_ACCEL=kvm|tcg
    overrides the choice of accelerator.
    """


@cli.command(context_settings=_HELP)
@kernel_option
@click.option("--refresh", is_flag=True, help="Ask the mirror for newer packages.")
def build(suite: str, *, refresh: bool) -> None:
    """Build whatever the cache lacks for one kernel: needs root and, when cold, the network."""
    built = artifacts.build(suite, refresh=refresh)
    for name, path in built.items():
        click.echo(f"{name:12} {path}")


# What follows COMMAND is the command's own, options too.
@cli.command(context_settings={**_HELP, "allow_interspersed_args": False})
@machine_options
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    help="Seconds for the run, boot included.",
)
@click.option(
    "--env", "env", multiple=True, metavar="NAME=VALUE", help="Variable for the command; repeatable."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...], timeout: float, env: tuple[str, ...], **options: object) -> NoReturn:
    """Run COMMAND as root in a fresh guest; exit with its status.

    Standard output and standard error arrive apart and as they are written. In the guest:
    kmodgate is on PATH, the project is at /src (read-only), the test modules at /testmodules, the
    certificates at /certs, --share at /share. Nothing the guest writes elsewhere is kept.

    \b
    Exit status: the command's own, or
      124  the machine could not be started (the message says what to do)
      125  the machine died: panic, hang, timeout; the console log's end is shown

    \b
    Examples:
      vm run -- kmodgate --version
      vm run --share /tmp/x --append lsm=lockdown,yama -- sh -c 'cat /sys/kernel/security/lsm'
      vm run --kernel trixie -- python3 -m pytest /src/tests/vm
    """  # noqa: D301  # \\b is click's mark for "leave these lines as they are"
    pairs = dict(item.partition("=")[::2] for item in env)
    chosen = runner.Options(timeout=timeout, env=pairs, **options)  # type: ignore[arg-type]
    try:
        done = runner.run(command, chosen, stdout=runner.to_descriptor(1), stderr=runner.to_descriptor(2))
    except VmDied as error:
        click.echo(f"{error.tail}\nvm: the machine died: {error}", err=True)
        sys.exit(EXIT_VM_DIED)
    sys.exit(done.status)


@cli.command(context_settings=_HELP)
@machine_options
def shell(**options: object) -> NoReturn:
    """A root shell in a fresh guest, on this terminal. Leave it with `exit`."""
    sys.exit(runner.shell(runner.Options(**options)))  # type: ignore[arg-type]


@cli.command(context_settings=_HELP)
@click.argument("what", type=click.Choice(artifacts.NAMES))
@kernel_option
def path(what: str, suite: str) -> None:
    """Print where a part is in the cache; builds it first if the cache lacks it."""
    click.echo(artifacts.path(what, suite))


@cli.command(context_settings=_HELP)
@click.option(
    "--days", type=click.IntRange(0), default=7, show_default=True, help="Keep what was used since."
)
def prune(days: int) -> None:
    """Remove from the cache what no run has used for some days. Never while machines run."""
    for name in cache.prune(days * 24 * 3600):
        click.echo(name)


@cli.command(context_settings=_HELP)
def deps() -> None:
    """Print the Debian packages that this tool needs: apt-get install $(vm-images/vm deps)."""
    click.echo(" ".join(host.packages()))


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End through the `finally` blocks: QEMU and temporary folders go with us."""
    del frame
    sys.exit(128 + number)


def main() -> NoReturn:
    """Entry point: errors are one line, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    try:
        cli(prog_name="vm", standalone_mode=True)
    except VmToolError as error:
        click.echo(f"vm: error: {error}", err=True)
    except BrokenPipeError:  # the reader of our output left (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except ModuleNotFoundError as error:
        package = f"python3-{error.name or ''}".replace("_", "-")
        click.echo(f"vm: error: no Python module {error.name!r}. Type: apt-get install {package}", err=True)
    sys.exit(EXIT_CANNOT)
