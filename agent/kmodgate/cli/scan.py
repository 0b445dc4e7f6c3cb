# SPDX-License-Identifier: Apache-2.0
"""``kmodgate scan``: what ENFORCE would refuse, before it is switched on.

What verifies is imported late: kernel images are taken apart in processes of their own
meanwhile.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kmodgate.cli import terminal
from kmodgate.cli.options import examples, parse_labels, parse_profile, parse_size
from kmodgate.errors import InputError
from kmodgate.model import EffectivePolicy, Mode, Policy

if TYPE_CHECKING:
    from kmodgate.config import NodeConfig
    from kmodgate.scan.records import Report
    from kmodgate.signature import KernelProfile

# More would need more memory than a node should give to a report.
_MAX_JOBS = 4
_DEFAULT_MAX_SIZE = 64 << 20


def _profile(context: click.Context, parameter: click.Parameter, name: str | None) -> KernelProfile | None:
    return None if name is None else parse_profile(context, parameter, name)


@click.command(
    name="scan",
    epilog=examples(
        ("kmodgate scan", "this node: what is loaded, and all installed kernels"),
        ("kmodgate scan --config node.yaml --output json", "the same under a config, for machines"),
        ("kmodgate scan --root /mnt/image --kernel 6.1.0-56-amd64", "one kernel of a mounted image"),
        ("kmodgate scan --trust ours.pem build/", "the modules of a build"),
    ),
)
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@click.option(
    "--root",
    "root_path",
    metavar="DIRECTORY",
    type=click.Path(),
    default="/",
    show_default=True,
    help="Where the root file system is mounted. Links are followed inside it, never out of it.",
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Node config (YAML): its trust, revocations, size limit and pinnedRootExempt.",
)
@click.option(
    "--node-label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parse_labels,
    help="A label of the node, to pick its node pool in the config. May be repeated.",
)
@click.option(
    "--trust",
    metavar="PEM",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Certificates (PEM or DER) to trust beside the kernel's own. May be repeated.",
)
@click.option(
    "--revoked",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Revocations, one a line: tbs:HEX, bin:HEX or id:HEX. May be repeated.",
)
@click.option(
    "--kernel",
    metavar="RELEASE",
    default="all",
    show_default=True,
    help="Scan the modules of one installed kernel. With PATH: the kernel that would load them.",
)
@click.option(
    "--loaded/--no-loaded",
    default=None,
    help="Look at the modules that are loaded, too. By default when the root is a running system's "
    "and no PATH is given.",
)
@click.option(
    "--kernel-profile",
    "profile",
    metavar="NAME",
    callback=_profile,
    help="The kernel whose signature code answers, as for `kmodgate verify`. "
    "By default each installed kernel's own.",
)
@click.option(
    "--max-size",
    callback=parse_size,
    metavar="SIZE",
    help="Largest module, after decompression.  [default: the config's, or 64M]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    metavar="N",
    help=f"Processes to use.  [default: one for each CPU, at most {_MAX_JOBS}]",
)
@click.option("--output", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True)
def command(  # noqa: PLR0917  # click passes them by name
    paths: tuple[str, ...],
    root_path: str,
    config_path: Path | None,
    labels: dict[str, str],
    trust: tuple[Path, ...],
    revoked: tuple[Path, ...],
    kernel: str,
    loaded: bool | None,
    profile: KernelProfile | None,
    max_size: int | None,
    jobs: int | None,
    output: str,
) -> int:
    """Say which modules ENFORCE_SIGNED_MODULES would refuse, before it is switched on.

    Reads what is loaded now and what lies in lib/modules (.ko, .ko.gz, .ko.xz, .ko.zst), or
    in PATH instead. Trusted is what the config or --trust names, and, for the modules of
    each kernel, what is built into its image. Needs no root where the files are readable.

    Exit codes: 0 nothing would be refused; 1 something would be, or could not be verified;
    2 bad input, or a module that could not be read.
    """
    config = _read_config(config_path, labels)
    keyrings = config.trust.kernel_keyrings if config else True
    jobs = jobs or min(len(os.sched_getaffinity(0)), _MAX_JOBS)

    from kmodgate.scan.kernels import read_image
    from kmodgate.scan.plan import ALL, installed_releases, make_plan
    from kmodgate.scan.pool import spread
    from kmodgate.scan.root import Root

    with _without_collector(), Root(root_path) as root:
        # Images take longest, so they come first; which count for PATH is known only later.
        installed = dict(() if paths else installed_releases(root))
        releases = tuple(name for name in installed if kernel in {ALL, name})
        images = spread(partial(read_image, root), releases if keyrings else (), jobs)

        from kmodgate.scan.live import find_running

        running = find_running(root)
        if loaded and running is None:
            raise InputError(
                f"--loaded: {terminal.printable(root.path)} is not a running system's root; "
                "it has no proc and sys of its own"
            )
        plan = make_plan(root, kernel=kernel, paths=paths, running=running.release if running else None)
        if paths and keyrings:
            images = spread(partial(read_image, root), plan.releases, jobs)

        from kmodgate.scan.session import Inputs, run

        inputs = Inputs(
            policy=_policy(config),
            certificates=(*(config.trust.certificates if config else ()), *trust),
            revoked=(*(config.trust.revoked if config else ()), *revoked),
            revoked_certificates=config.trust.revoked_certificates if config else (),
            kernel_keyrings=keyrings,
            require_validity=config.trust.require_validity if config else False,
            max_size=max_size or (config.max_module_size if config else _DEFAULT_MAX_SIZE),
            profile=profile,
            loaded=running is not None and (not paths if loaded is None else loaded),
            jobs=jobs,
            now=datetime.now(UTC),
        )
        report = run(root, plan, images, running, inputs, partial(terminal.progress, "verifying"))
        _write(report, output)
    return report.exit_code


@contextmanager
def _without_collector() -> Iterator[None]:
    """No search for circles, here and in workers: none are made, and it costs a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_config(path: Path | None, labels: dict[str, str]) -> NodeConfig | None:
    if path is None:
        if labels:
            raise click.UsageError("--node-label picks a node pool of a config; give --config, too")
        return None
    from kmodgate.config import load, resolve

    return resolve(load(path), labels)


def _policy(config: NodeConfig | None) -> EffectivePolicy:
    if config is None:
        return EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=False)
    from kmodgate.config import to_effective_policy

    return to_effective_policy(config)


def _write(report: Report, output: str) -> None:
    from kmodgate.scan.formats import write_csv, write_json

    if output == "json":
        write_json(report, sys.stdout)
    elif output == "csv":
        write_csv(report, sys.stdout)
    else:
        from kmodgate.cli.scan_text import write_text

        write_text(report)
    sys.stdout.flush()
