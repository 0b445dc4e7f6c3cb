# SPDX-License-Identifier: Apache-2.0
"""``kmodgate status``: the running agent, on one screen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from kmodgate.cli import local, terminal
from kmodgate.cli.options import examples

_SOON: Final = 30  # days before a certificate ends


@click.command(
    "status",
    short_help="Say what the node's agent does.",
    epilog=examples(
        ("sudo kmodgate status", "Is the policy enforced, and what was refused?"),
        ("sudo kmodgate status --output json | jq '.denials[0]'", "The last refusal, whole."),
        ("sudo kmodgate status > /dev/null && echo enforced", "The exit code alone."),
    ),
)
@local.socket_option()
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(path: Path, output: str) -> int:
    """Say what the agent of this node does.

    That is: the policy and where it comes from, since when it is enforced, what was decided, the last
    refusals, trust anchors, and events that were lost.

    Asks the agent over its socket, which needs root. Times are in UTC. JSON is described by
    local/status.schema.json in the package.

    Exit codes: 0 it does what the policy asks (that may be audit), 1 it does not, 3 no agent.
    """
    from kmodgate.local.client import ask_status

    status = ask_status(path)
    if output == "json":
        click.echo(json.dumps(status))
    else:
        _print(status)
    return 0 if status.get("as_asked") is True else 1


def _print(status: Mapping[str, Any]) -> None:
    agent = status["agent"]
    where = "" if status["node"] is None else f" on {status['node']}"
    terminal.show(
        local.shown(
            f"kmodgate {agent['version']}{where}, process {agent['pid']}, "
            f"running since {local.moment(agent['started'])}"
        )
    )
    terminal.show(local.shown(*_headline(status)))
    click.echo()
    for name, value, style in _lines(status):
        terminal.hang(f"{name:<9}", local.shown(value, style))
    for heading, rows in (
        (("VERDICT", "REASON", "BY", "LOADS"), list(_loads(status["loads"]))),
        (
            ("LAST REFUSALS", "VERDICT", "REASON", "MODULE", "SIGNER", "POD", "PROCESS"),
            list(_denials(status["denials"])),
        ),
        (("TRUST ANCHOR", "ENDS", "DAYS", "FILE"), list(_anchors(status["trust"]["anchors"]))),
    ):
        if rows:
            table = terminal.table(heading, numbers=[name for name in heading if name in {"LOADS", "DAYS"}])
            for row in rows:
                table.add_row(*(local.shown(*cell) if isinstance(cell, tuple) else cell for cell in row))
            click.echo()
            terminal.show(table)


def _headline(status: Mapping[str, Any]) -> tuple[str, str]:
    policy = status["policy"]
    if not status["as_asked"]:
        return f"NOT ENFORCING {policy['policy']}: {status['problem']}", terminal.BAD
    since = f"since {local.moment(status['since'])}"
    if status["since"] is not None:
        passed = datetime.fromisoformat(status["time"]) - datetime.fromisoformat(status["since"])
        since += f" ({local.span(passed.total_seconds())})"
    if policy["mode"] != "enforce":
        return f"auditing {policy['policy']} {since}: refusals are told, nothing is denied", terminal.UNSURE
    return f"enforcing {policy['policy']} {since}", terminal.GOOD


def _lines(status: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The lines of one setting each: name, words, style."""
    policy, source, config = status["policy"], status["source"], status["config"]
    trust, before = status["trust"], status["before"]
    load_pin = "not for modules" if policy["policy"] == "ENFORCE_SIGNED_MODULES" else "on"
    words = [
        policy["policy"],
        f"mode {policy['mode']}",
        f"failurePolicy {policy['failure_policy']}",
        f"LoadPin {load_pin if policy['load_pin'] else 'off'}",
    ]
    words += ["pinned root exempt"] if policy["pinned_root_exempt"] else []
    words += ["revocations"] if policy["revocations"] else []
    yield "policy", ", ".join(words), ""
    pool = "" if source["node_pool"] is None else f", node pool {source['node_pool']}"
    origin = {"flag": "the command line", "default": f"default, {source['config']} gives none"}
    yield "from", origin.get(source["policy"], source["policy"]) + pool, ""
    if config["error"] is not None:
        yield "config", f"the last one cannot be used: {config['error']}", terminal.BAD
    yield "config", f"in force since {local.moment(config['last_success'])}", ""
    yield "backend", status["backend"] + (", hardened" if policy["hardened"] else ""), ""
    keyrings = "the kernel's keyrings and " if trust["kernel_keyrings"] else ""
    yield "trust", f"{keyrings}{trust['count']} configured certificate(s)", ""
    gap = before["enforcement_gap_seconds"]
    if gap:
        yield "before", f"nothing was enforced for {local.span(gap)} before this agent", terminal.UNSURE
    modules = {word: count for word, count in status["loaded_modules"].items() if count}
    if modules:
        yield "loaded", ", ".join(f"{count} {word}" for word, count in modules.items()), ""
    yield _lost(status["events"])
    for sink in status["events"]["sinks"]:
        dropped = {cause: count for cause, count in sink["dropped"].items() if count}
        told = f"{sink['sink']}: {sink['sent']} sent"
        told += "".join(f", {count} dropped ({cause})" for cause, count in dropped.items())
        yield "sink", told, terminal.UNSURE if dropped else ""


def _lost(events: Mapping[str, Any]) -> tuple[str, str, str]:
    parts = [f"{count} {place}" for place, count in events["lost"].items() if count]
    if events["suppressed"]:
        parts.append(f"{events['suppressed']} left out by the flood limit")
    return "lost", ", ".join(parts) or "no event", terminal.UNSURE if parts else ""


def _loads(loads: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for row in loads:
        style = local.VERDICT_STYLES.get(row["verdict"], "")
        yield (row["verdict"], style), (row["reason"],), (row["by"],), (row["count"],)


def _denials(denials: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for event in denials:
        process = None if event["comm"] is None else f"{event['comm']}[{event['pid']}]"
        yield (
            (local.moment(event["time"]),),
            (event["verdict"], local.VERDICT_STYLES.get(event["verdict"], "")),
            (event["reason"],),
            (local.module(event),),
            (local.signer(event),),
            (local.pod(event),),
            (process,),
        )


def _anchors(anchors: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for anchor in anchors:
        days = anchor["days_left"]
        style = terminal.BAD if days < 0 else terminal.UNSURE if days <= _SOON else ""
        name = anchor["subject"] or anchor["fingerprint"][:16]
        yield (name,), (local.moment(anchor["not_after"])[:10], style), (days, style), (anchor["file"],)
