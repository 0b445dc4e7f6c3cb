# SPDX-License-Identifier: Apache-2.0
"""``kmodgate run``: the node agent."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from kmodgate.cli.options import examples, parse_labels
from kmodgate.model import Policy


def _seconds_since_start() -> float:
    """Since this process began, by the kernel's account (proc_pid_stat(5), field 22)."""
    from kmodgate.node.procstat import TICKS, read_task_stat

    stat = read_task_stat(Path("/proc/self"))
    return 0.0 if stat is None else time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start / TICKS


@contextmanager
def _explained() -> Iterator[None]:
    """What this process may not do is said with the capabilities that it lacks. The exit code is 3 then."""
    from kmodgate.errors import HookError, NodeError
    from kmodgate.fsutil import FileReadError
    from kmodgate.node import NodePaths
    from kmodgate.node.process import read_process

    try:
        yield
    except (HookError, NodeError, FileReadError, PermissionError) as error:
        lacking = read_process(NodePaths()).lacking()
        if not lacking or (isinstance(error, FileReadError) and error.errno_name not in {"EACCES", "EPERM"}):
            raise
        said = f"{error.filename}: permission denied" if isinstance(error, PermissionError) else error
        raise NodeError(
            f"{said}. This process lacks {', '.join(lacking)}, which the agent needs: docs/operations.md"
        ) from error


@click.command(
    "run",
    short_help="Run the node agent.",
    epilog=examples(
        ("kmodgate doctor --config node.yaml", "First: can this node do it?"),
        ("sudo kmodgate run --config node.yaml", "Enforce; events to standard output."),
        (
            "sudo kmodgate run --config node.yaml --log-all | jq -c '[.verdict, .reason, .path]'",
            "Watch every load.",
        ),
    ),
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Node config (YAML). Edits take effect at once; one that cannot be used changes nothing.",
)
@click.option(
    "--enable-kernel-module-signature-enforcement/--no-enable-kernel-module-signature-enforcement",
    "enforce",
    default=None,
    help="Override the policy of the config: ENFORCE_SIGNED_MODULES, or "
    "DO_NOT_ENFORCE_SIGNED_MODULES with --no-…",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "bpf-lsm", "bpf-fmod-ret", "bpf-lsm-basic", "bcc", "tracefs"]),
    help="Override the backend of the config. auto: the best one that this kernel offers.",
)
@click.option(
    "--node-label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parse_labels,
    help="A label of the node, to pick its node pool. May be repeated.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default="/",
    show_default=True,
    metavar="DIR",
    help="Where the node's root is seen, with its /proc and /sys. In a container, whose own are cut down: "
    "/proc/1/root, with the host's PID namespace.",
)
@click.option("--log-all", is_flag=True, help="Log routine loads too, not only remarkable ones.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the diagnostics on standard error. Events on standard output are JSON always.",
)
def command(  # noqa: PLR0917  # one parameter for each option
    config_path: Path,
    enforce: bool | None,
    backend: str | None,
    labels: dict[str, str],
    root: Path,
    log_all: bool,
    log_format: str,
) -> None:
    """Run the node agent: enforce the policy, serve metrics, log decisions.

    Decisions are written to standard output, one JSON object a line; diagnostics go to
    standard error. /metrics, /healthz and /readyz are served on the listen address of the
    config (127.0.0.1:9464 by default). SIGHUP reads the config again; SIGTERM stops the
    agent, and enforcement goes on without it unless the config says `onExit: detach`.

    Needs root, libbpf1, and a kernel with BTF, best with `bpf` among its security modules:
    `kmodgate doctor` says whether they are there. Without BTF it stands on bcc or tracefs,
    which watch, as a rule, and leave it to the kernel to refuse.

    Exit codes: 0 stopped by a signal, 2 bad config, 3 this node cannot enforce the policy.
    """
    from kmodgate.agent import Agent
    from kmodgate.config import BackendChoice
    from kmodgate.node import NodePaths
    from kmodgate.telemetry.log import Form, configure

    flag = None if enforce is None else Policy.ENFORCE if enforce else Policy.DO_NOT_ENFORCE
    handler = configure(sys.stderr, form=Form(log_format))
    try:
        with _explained():
            Agent(
                config_path,
                events=sys.stdout,
                flag=flag,
                backend=None if backend is None else BackendChoice(backend),
                labels=labels or None,
                log_all=log_all,
                started=_seconds_since_start(),
                paths=NodePaths.below(root),
            ).run()
    finally:
        handler.close()
