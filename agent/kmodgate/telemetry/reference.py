# SPDX-License-Identifier: Apache-2.0
"""The table of metrics as docs/metrics.md: ``python -m kmodgate.telemetry.reference``.

This module knows no metric; ``metrics`` holds the table.
"""

from __future__ import annotations

from typing import Final

from .metrics import TABLE
from .table import Label, Metric

_INTRODUCTION: Final = """\
# Metrics

<!-- Generated from agent/kmodgate/telemetry/metrics.py; edit that, then run
     python -m kmodgate.telemetry.reference > docs/metrics.md -->

The agent serves these at `/metrics`, as Prometheus text or OpenMetrics. Loads are counted in the
kernel, by the program that decides, and read when you scrape. These counts outlive the agent: they start
at 0 when the node boots, after `kmodgate detach`, with `onExit: detach`, and when a new version keeps other
records. What the agent itself counts (questions, verifications, log losses) starts at 0 with the agent.

Every label has a closed set of values; a value from outside shows as `other`. What a load was
about (module, path, pod, signer) is in the [event log](events.md).

Asked for OpenMetrics, as Prometheus does, the load counters and the buckets of `kmodgate_decision_seconds`
and `kmodgate_hold_seconds` carry exemplars: `sequence` is the number of the latest event behind a count, by
which the event log has it. `_created` stands beside the counters without labels: all counts of the kernel
began at `kmodgate_module_load_attempts_created`, all of the agent at `kmodgate_backend_downgrades_created`.
The counters with labels have none: each could only repeat one of these two times, and Prometheus stores
every `_created` as a series of its own, some 70 on each node.

A node has at most 150 series, whatever is loaded on it. What is set up adds a fixed number: each configured
certificate 1, each way out of events 3 (stdout is one), a cluster 5, `hardened` 5. A flood of refusals adds 1
for each verdict and reason that the flood limit leaves out of the log.

The usual `process_*` metrics of the agent (CPU, memory, descriptors) are there as well.

| metric | type | labels |
|---|---|---|
"""


def markdown() -> str:
    """The text of docs/metrics.md."""
    overview = "".join(
        f"| [`{m.name}`](#{m.name}) | {m.kind} | {', '.join(f'`{n}`' for n in m.label_names)} |\n"
        for m in TABLE
    )
    return _INTRODUCTION + overview + "".join(_section(metric) for metric in TABLE)


def _section(metric: Metric) -> str:
    lines = [f"\n## {metric.name}\n", f"{metric.help}\n", f"{metric.look}\n"]
    if metric.labels:
        lines.append("".join(_label(label) for label in metric.labels))
    if metric.buckets:
        lines.append(f"Buckets, in seconds: {', '.join(f'{bound:g}' for bound in metric.buckets)}.\n")
    return "\n".join(lines)


def _label(label: Label) -> str:
    values = label.note or ", ".join(f"`{value}`" for value in label.values)
    return f"- `{label.name}`: {values}\n"


if __name__ == "__main__":
    print(markdown(), end="")
