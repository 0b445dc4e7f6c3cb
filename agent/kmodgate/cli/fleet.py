# SPDX-License-Identifier: Apache-2.0
"""``kmodgate fleet report``: the go/no-go page for switching enforcement on."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import click

from kmodgate.cli.options import examples
from kmodgate.errors import InputError
from kmodgate.fsutil import file_error

_UNITS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_MAX_LOG: Final = 64 << 30
_LONGEST: Final = 366 * 86400


def _window(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Seconds of ``30m``, ``24h``, ``7d``, ``2w``."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", value, re.ASCII)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not _UNITS["m"] <= seconds <= _LONGEST:
        raise click.BadParameter(
            f"{value!r} is no window; write 30m, 24h, 7d or 2w, a year at most", ctx=context, param=parameter
        )
    return seconds


def _moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime:
    """RFC 3339 with a time zone; now without."""
    if value is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter(
            f"{value!r} is no time; write 2026-03-04T05:06:07Z", ctx=context, param=parameter
        )
    return moment.astimezone(UTC)


@click.group("fleet", short_help="Say of each node pool whether ENFORCE can be switched on.")
def command() -> None:
    """Say of each node pool whether ENFORCE can be switched on."""


@command.command(
    "report",
    epilog=examples(
        (
            "kmodgate fleet report --prometheus http://127.0.0.1:9090",
            "Counts alone: is there anything in the way?",
        ),
        (
            "kubectl logs -l app.kubernetes.io/name=kmodgate --tail=-1 | kmodgate fleet report … --events -",
            "With modules, signers and pods.",
        ),
        (
            "kmodgate fleet report --prometheus URL --events events.ndjson --output csv > report.csv",
            "From a log store's export, for a spreadsheet.",
        ),
    ),
)
@click.option(
    "--prometheus",
    "url",
    metavar="URL",
    required=True,
    help="Prometheus, or what speaks its HTTP API. It is only read.",
)
@click.option(
    "--events",
    multiple=True,
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Event logs of the agents, one JSON object a line; - for standard input. May be repeated.",
)
@click.option(
    "--window",
    default="7d",
    show_default=True,
    callback=_window,
    help="How far to look back: 30m, 24h, 7d, 2w. Rare loads need long ones.",
)
@click.option("--at", "end", metavar="TIME", callback=_moment, help="The window's end (RFC 3339); now.")
@click.option(
    "--selector",
    default="",
    metavar="MATCHERS",
    help='Only these series, for example cluster="eu",job="kmodgate".',
)
@click.option(
    "--min-coverage",
    type=click.IntRange(0, 100),
    default=90,
    show_default=True,
    metavar="PERCENT",
    help="A node must have judged by ENFORCE for this part of the window.",
)
@click.option(
    "--bearer-token-file",
    "token",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Token for Prometheus; never sent over plain http.",
)
@click.option(
    "--ca-file",
    "authority",
    metavar="PEM",
    type=click.Path(path_type=Path),
    help="Certificates that are trusted for https, in place of the system's.",
)
@click.option("--output", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True)
def report_command(  # noqa: PLR0917  # one parameter for each option
    url: str,
    events: tuple[str, ...],
    window: int,
    end: datetime,
    selector: str,
    min_coverage: int,
    token: Path | None,
    authority: Path | None,
    output: str,
) -> int:
    """Say for each node pool what ENFORCE_SIGNED_MODULES would refuse, and whether to go.

    Run the pools with policy ENFORCE_SIGNED_MODULES and mode audit first. Counts come from
    Prometheus; modules, signers and pods from event logs, because metrics hold no names.
    A pool is a go if its nodes judged by ENFORCE for long enough, refused nothing, and have
    nothing loaded that would be refused at the next boot.

    Exit codes: 0 every pool is a go or enforced already, 1 one is not, 2 usage or bad input,
    3 Prometheus does not answer.
    """
    from kmodgate.fleet.counts import checked_selector, read_counts
    from kmodgate.fleet.details import MAX_LINE, Details
    from kmodgate.fleet.prometheus import Prometheus
    from kmodgate.fleet.report import make_report

    prometheus = Prometheus(url, token=token, authority=authority)
    matchers = checked_selector(selector)
    start = end - timedelta(seconds=window)
    details = Details()
    for name in events:
        with _opened(name) as stream:
            details.read(iter(partial(stream.readline, MAX_LINE + 1), b""), start, end)
    nodes = read_counts(lambda expression: prometheus.query(expression, end.timestamp()), window, matchers)
    report = make_report(nodes, details, minimum_coverage=min_coverage / 100)
    times = {"start": start.isoformat(timespec="seconds"), "end": end.isoformat(timespec="seconds")}
    if output == "text":
        from kmodgate.cli.fleet_text import write_text

        write_text(report, **times)
    else:
        from kmodgate.fleet.formats import write_csv, write_json

        if output == "json":
            write_json(report, sys.stdout, **times)
        else:
            write_csv(report, sys.stdout)
    return 0 if report.go else 1


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """A log to read line by line: a regular file, or standard input."""
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb")
    except OSError as error:
        raise file_error(name, error) from None
    with stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name}: is no regular file; name an event log, or pipe it in and write -")
        if status.st_size > _MAX_LOG:
            raise InputError(f"{name}: larger than {_MAX_LOG} bytes; narrow it down to the window")
        yield stream
