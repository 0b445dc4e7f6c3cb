# SPDX-License-Identifier: Apache-2.0
"""The fleet's report for machines: one JSON document, or CSV with a row for each line of a pool.

Strings come from event logs and Prometheus. They are escaped as everywhere (``telemetry.text``);
what the agent has escaped already prints and stays as it is.
"""

from __future__ import annotations

import csv
import json
from typing import Any, TextIO

from kmodgate.scan.formats import csv_cell
from kmodgate.telemetry.text import PATH_LIMIT, printable

from .counts import NodeCounts
from .report import Pool, Refusal, Report

SCHEMA = 1
"""Version of the JSON document."""

COLUMNS = (
    *("pool", "answer", "nodes", "verdict", "reason", "module", "signer", "sha256"),
    *("count", "counted_only", "on_nodes", "pods", "images", "why"),
)
"""Header of the CSV, in order."""


def shown(text: str) -> str:
    """A string that prints, whoever wrote it."""
    return text if text.isprintable() and len(text) <= PATH_LIMIT else printable(text, PATH_LIMIT)


def write_json(report: Report, stream: TextIO, *, start: str, end: str) -> None:
    """One document; ``start`` and ``end`` are the window."""
    document = {
        "schema": SCHEMA,
        "start": start,
        "end": end,
        "go": report.go,
        "warnings": [shown(warning) for warning in report.warnings],
        "pools": [_pool(pool) for pool in report.pools],
    }
    json.dump(document, stream)
    stream.write("\n")


def write_csv(report: Report, stream: TextIO) -> None:
    """A header, a row for each kind of refusal, and one for a pool without any."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pool in report.pools:
        head: tuple[str, ...] = (pool.name, pool.answer.value, str(len(pool.nodes)))
        rows: list[tuple[str, ...]] = [
            (
                *(refusal.what.verdict, refusal.what.reason, refusal.what.module, refusal.what.signer),
                *(refusal.what.sha256, str(refusal.count), "true" if refusal.counted_only else "false"),
                *(" ".join(names) for names in (refusal.nodes, refusal.pods, refusal.images)),
            )
            for refusal in pool.refusals
        ] or [("",) * 10]
        for row in rows:
            writer.writerow(map(_cell, (*head, *row, "; ".join(pool.why))))


def _cell(value: str) -> str:
    return csv_cell(value) if not value.isprintable() or len(value) > PATH_LIMIT else _no_formula(value)


def _no_formula(value: str) -> str:
    guarded = csv_cell(value[:1])
    return guarded + value[1:]


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "pool": shown(pool.name),
        "answer": pool.answer.value,
        "why": [shown(why) for why in pool.why],
        "nodes": [_node(node) for node in pool.nodes],
        "counted": [
            {"verdict": shown(verdict), "reason": shown(reason), "count": count}
            for (verdict, reason), count in sorted(pool.counted.items())
        ],
        "refusals": [_refusal(refusal) for refusal in pool.refusals],
    }


def _node(node: NodeCounts) -> dict[str, Any]:
    return {
        "node": shown(node.node),
        "policy": None if node.policy is None else shown(node.policy),
        "mode": None if node.mode is None else shown(node.mode),
        "coverage": round(node.coverage, 4),
        "loaded_refused": node.loaded_refused,
        "loaded_unknown": node.loaded_unknown,
    }


def _refusal(refusal: Refusal) -> dict[str, Any]:
    what = refusal.what
    return {
        "verdict": shown(what.verdict),
        "reason": shown(what.reason),
        "module": shown(what.module) or None,
        "signer": shown(what.signer) or None,
        "sha256": shown(what.sha256) or None,
        "count": refusal.count,
        "counted_only": refusal.counted_only,
        "nodes": [shown(name) for name in refusal.nodes],
        "pods": [shown(name) for name in refusal.pods],
        "images": [shown(name) for name in refusal.images],
    }
