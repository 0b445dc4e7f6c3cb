# SPDX-License-Identifier: Apache-2.0
"""``kmodgate events``: the running agent's last events, and those to come."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from kmodgate.cli import local, terminal
from kmodgate.cli.options import examples
from kmodgate.cli.stderr import complain, hint

if TYPE_CHECKING:
    from rich.text import Text

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WITH_FOLLOW: Final = 10
_WAIT: Final = 10.0


def _since(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """``10m`` ago, or a time, in the form of an event's ``time``."""
    if value is None:
        return None
    try:
        if match := re.fullmatch(r"([0-9]{1,6})([smhd])", value):
            begin = datetime.now(UTC) - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        else:
            begin = datetime.fromisoformat(value)
        if begin.tzinfo is not None:
            return begin.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):  # not a time, or none of the years 1 to 9999
        pass
    raise click.BadParameter(
        f"{value!r} is no time; write how long ago (90s, 10m, 2h, 1d), or a time with its zone "
        "(2026-01-02T03:04:05Z)",
        ctx=context,
        param=parameter,
    )


def _modules(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Names of modules, as many and as long as the agent takes."""
    from kmodgate.local.protocol import MAX_MODULES, MAX_PATTERN

    if len(values) > MAX_MODULES:
        raise click.BadParameter(f"{MAX_MODULES} names at most", ctx=context, param=parameter)
    for value in values:
        if not value or len(value) > MAX_PATTERN or not value.isprintable():
            raise click.BadParameter(
                f"{value!r:.80} is no name of a module: 1 to {MAX_PATTERN} characters that print",
                ctx=context,
                param=parameter,
            )
    return values


def _reasons(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Words of the closed set; it is too long for the help."""
    from kmodgate.local.protocol import REASONS

    for value in values:
        if value not in REASONS:
            raise click.BadParameter(
                f"{value!r} is none of {', '.join(REASONS)}", ctx=context, param=parameter
            )
    return values


def _complete_reason(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    del context, parameter
    from kmodgate.local.protocol import REASONS

    return [CompletionItem(word) for word in REASONS if word.startswith(incomplete)]


@click.command(
    "events",
    short_help="Print the agent's last events, and follow those to come.",
    epilog=examples(
        ("sudo kmodgate events --follow", "Watch, beginning with the last ten."),
        ("sudo kmodgate events --since 1h --verdict deny", "What was refused in the last hour?"),
        ("sudo kmodgate events --module 'nvidia*' --follow", "What becomes of one driver."),
        ("sudo kmodgate events -f | jq -r 'select(.pod) | .pod.name'", "In a pipe: JSON, an event a line."),
    ),
)
@click.option("--follow", "-f", is_flag=True, help="Go on with the events to come, until Ctrl-C.")
@click.option(
    "--since",
    metavar="TIME",
    callback=_since,
    help="Only events from then on: how long ago (90s, 10m, 2h, 1d), or a time (2026-01-02T03:04:05Z).",
)
@click.option(
    "--last",
    metavar="N",
    type=click.IntRange(0, 1 << 20),
    help=f"Only the last N of those the agent remembers; with --follow {_WITH_FOLLOW} by default.",
)
@click.option(
    "--verdict",
    "verdicts",
    type=click.Choice(["allow", "deny", "would_deny"]),
    multiple=True,
    help="Only events with this verdict. May be repeated.",
)
@click.option(
    "--reason",
    "reasons",
    metavar="REASON",
    multiple=True,
    callback=_reasons,
    shell_complete=_complete_reason,
    help="Only events with this reason, such as unsigned. May be repeated.",
)
@click.option(
    "--module",
    "modules",
    metavar="NAME",
    multiple=True,
    callback=_modules,
    help="Only events of this module, by its name or its file's; * and ? stand for others. May be repeated.",
)
@local.socket_option()
@click.option(
    "--output",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="auto: text on a terminal, else JSON.",
)
def command(  # noqa: PLR0917  # one parameter for each option
    follow: bool,
    since: str | None,
    last: int | None,
    verdicts: tuple[str, ...],
    reasons: tuple[str, ...],
    modules: tuple[str, ...],
    path: Path,
    output: str,
) -> int:
    """Print the events that the agent of this node remembers.

    These are the last 1,000 of its event log, at most 1 MiB of them. All filters must let an event
    pass; of one that is repeated, any.

    In a pipe each event is one line of JSON, exactly as in the event log. Where events are missing,
    for a flood or because they came faster than they were read, a record says how many.

    Asks the agent over its socket, which needs root. Times are in UTC.

    Exit codes: 0 all told, 2 bad option, 3 no agent, or it ended; 130 after Ctrl-C.
    """
    from kmodgate.local.client import asked
    from kmodgate.local.protocol import Ask, Filter, Request

    if last is None and since is None and follow:
        last = _WITH_FOLLOW
    text = sys.stdout.isatty() if output == "auto" else output == "text"
    request = Request(Ask.EVENTS, follow, since, last, Filter(verdicts, reasons, modules))
    with asked(request, path, _WAIT) as connection:
        head = connection.answer(connection.line(wait=_WAIT))
        if head is None:
            complain(f"{path}: answers something else than asked; use the agent's own kmodgate")
            return 3
        oldest = head[1].get("oldest")
        if last is None and head[1].get("forgotten") and not (since and oldest and oldest <= since):
            hint(
                f"{head[1]['forgotten']} older events are in the agent's log only: it remembers the last ones"
            )
        while True:
            line = connection.line(wait=None if follow else _WAIT, reader=sys.stdout.fileno())
            control = connection.answer(line)
            if control is not None:
                if control[1].get("stopping"):
                    complain("the agent has stopped; `kmodgate status` says when there is another one")
                    return 3
                return 0
            if text:
                terminal.show(_text(json.loads(line)))
            else:
                click.echo(line)


def _text(record: Mapping[str, Any]) -> Text:
    """An event as one line for people."""
    from rich.text import Text

    result = Text()
    for number, (part, style) in enumerate(_parts(record)):
        result.append("  " if number else "")
        result.append_text(local.shown(part, style))
    return result


def _parts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield str(record.get("time", "-"))[:19].replace("T", " "), terminal.FAINT
    if record["event"] == "suppressed":
        causes = [
            " ".join(filter(None, (str(part["count"]), part["cause"], part["verdict"], part["reason"])))
            for part in record["missing"]
        ]
        yield f"{record['count']} event(s) are missing here: {', '.join(causes)}", terminal.UNSURE
        return
    if record["event"] == "module_inventory":
        yield "loaded before", terminal.UNSURE
        yield from ((record["signature"], ""), (f"would be {record['outcome']}", ""))
        yield record["module"], "bold"
        yield record["path"] or "no file", terminal.FAINT
        return
    yield f"{record['verdict']:<10}", local.VERDICT_STYLES.get(record["verdict"], "")
    yield f"{record['reason']:<17}", ""
    yield local.module(record) or "from memory", "bold"
    yield record["result"] if record["errno"] is None else record["errno"], ""
    if record["path"] is not None:
        yield record["path"], terminal.FAINT
    if (signer := local.signer(record)) is not None:
        trusted = record["signature_status"] == "trusted_signature"
        yield f"{'signed by' if trusted else 'names signer'} {signer}", ""
    yield f"{record['comm'] or '-'}[{record['pid']}] uid {record['uid']}", ""
    if (pod := local.pod(record)) is not None:
        yield f"pod {pod}" if record["pod"] is not None else pod, ""
