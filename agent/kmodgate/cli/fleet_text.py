# SPDX-License-Identifier: Apache-2.0
"""The fleet's report for people."""

from __future__ import annotations

from collections.abc import Sequence

import click

from kmodgate.cli import terminal
from kmodgate.fleet.formats import shown
from kmodgate.fleet.report import Answer, Pool, Refusal, Report

_STYLES = {
    Answer.GO: terminal.GOOD,
    Answer.ENFORCED: terminal.GOOD,
    Answer.NO_GO: terminal.BAD,
    Answer.UNCLEAR: terminal.UNSURE,
}
_NAMES = 3


def write_text(report: Report, *, start: str, end: str) -> None:
    """Print the report to standard output."""
    click.echo(f"What ENFORCE_SIGNED_MODULES would refuse, {start} to {end}\n")
    if not report.pools:
        click.echo("Prometheus has seen no node of kmodgate in this time.")
    else:
        numbers = ["nodes", "refusals"]
        table = terminal.table(["pool", "answer", *numbers, "why"], numbers=numbers)
        for pool in report.pools:
            table.add_row(
                terminal.cell(_pool_name(pool)),
                terminal.cell(pool.answer.value.replace("_", "-"), _STYLES[pool.answer]),
                str(len(pool.nodes)),
                str(sum(refusal.count for refusal in pool.refusals)),
                terminal.cell("; ".join(map(shown, pool.why)) or "-"),
            )
        terminal.show(table)
    for pool in report.pools:
        if pool.refusals:
            click.echo(f"\nPool {shown(_pool_name(pool))}:")
            _refusals(pool.refusals)
    for warning in report.warnings:
        click.echo(f"\nnote: {shown(warning)}")


def _refusals(refusals: Sequence[Refusal]) -> None:
    numbers = ["count", "nodes"]
    table = terminal.table(["verdict", "reason", "module", "signer", *numbers, "pods"], numbers=numbers)
    for refusal in refusals:
        what = refusal.what
        unknown = "(no event)" if refusal.counted_only else "-"
        table.add_row(
            what.verdict,
            terminal.cell(shown(what.reason)),
            terminal.cell(shown(what.module) or unknown),
            terminal.cell(shown(what.signer) or "-"),
            str(refusal.count),
            str(len(refusal.nodes)) if refusal.nodes else "-",
            terminal.cell(_some(refusal.pods)),
        )
    terminal.show(table)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return (", ".join(map(shown, names[:_NAMES])) or "-") + more


def _pool_name(pool: Pool) -> str:
    return pool.name or "(no pool)"
