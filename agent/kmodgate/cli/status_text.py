# SPDX-License-Identifier: Apache-2.0
"""What ``kmodgate status`` says, as the parts of a page for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from kmodgate.cli import local, terminal

if TYPE_CHECKING:
    from kmodgate.cli.terminal import Part

Loads = Mapping[tuple[str, str, str], int]
"""Loads by verdict, reason and who refused."""

_SOON: Final = 30  # days before a certificate ends


def counted(status: Mapping[str, Any]) -> Loads:
    """The report's counts of loads."""
    return {(row["verdict"], row["reason"], row["by"]): row["count"] for row in status["loads"]}


def page(status: Mapping[str, Any], before: Loads | None = None) -> Iterator[Part]:
    """The parts, from the most to the least urgent.

    Args:
        status: the agent's report, local/status.schema.json.
        before: counts to compare with; a column says what has come since. Counts that went down
            began anew, as ``kmodgate detach`` makes them.
    """
    agent = status["agent"]
    where = "" if status["node"] is None else f" on {status['node']}"
    yield local.shown(
        f"kmodgate {agent['version']}{where}, process {agent['pid']}, "
        f"running since {local.moment(agent['started'])}"
    )
    yield local.shown(*_headline(status))
    yield None
    for name, value, style in _lines(status):
        yield f"{name:<9}", local.shown(value, style)
    loads = ("VERDICT", "REASON", "BY", "LOADS", *(() if before is None else ("NEW",)))
    for heading, rows in (
        (loads, list(_loads(status["loads"], before))),
        (
            ("LAST REFUSALS", "VERDICT", "REASON", "MODULE", "SIGNER", "POD", "PROCESS"),
            list(_denials(status["denials"])),
        ),
        (("TRUST ANCHOR", "ENDS", "DAYS", "FILE"), list(_anchors(status["trust"]["anchors"]))),
    ):
        if rows:
            table = terminal.table(
                heading, numbers=[name for name in heading if name in {"LOADS", "NEW", "DAYS"}]
            )
            for row in rows:
                table.add_row(*(local.shown(*cell) if isinstance(cell, tuple) else cell for cell in row))
            yield None
            yield table


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


def _loads(loads: Sequence[Mapping[str, Any]], before: Loads | None) -> Iterator[tuple[Any, ...]]:
    for row in loads:
        style = local.VERDICT_STYLES.get(row["verdict"], "")
        cells = (row["verdict"], style), (row["reason"],), (row["by"],), (row["count"],)
        if before is None:
            yield cells
            continue
        earlier = before.get((row["verdict"], row["reason"], row["by"]), 0)
        new = row["count"] - earlier if row["count"] >= earlier else row["count"]
        yield *cells, (f"+{new}", style) if new else ("",)


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
