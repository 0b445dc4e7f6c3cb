# SPDX-License-Identifier: Apache-2.0
"""Finds metrics and label values in expressions, and holds them against the one table of names."""

from __future__ import annotations

import re

from kmodgate.telemetry.metrics import TABLE
from kmodgate.telemetry.table import Kind, Metric

BY_NAME = {metric.name: metric for metric in TABLE}
# Labels that a scrape config puts on targets (docs/monitoring.md), or that the format itself has.
TARGET_LABELS = {"job", "instance", "pool", "le"}

_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_WORD = re.compile(r"(?<![\w:$\"])(kmodgate_[a-z0-9_]+|process_[a-z_]+|kube_[a-z_]+|up)\b(?!:)")


def metric_of(name: str) -> Metric | None:
    """The metric that has this series; None for none."""
    if name in BY_NAME:
        return BY_NAME[name]
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    found = BY_NAME.get(base)
    return found if found is not None and found.kind is Kind.HISTOGRAM else None


def foreign_names(expression: str) -> set[str]:
    """Names of series that kmodgate does not export and no rule records."""
    without_recorded = re.sub(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", "", expression)
    return {name for name in _WORD.findall(without_recorded) if metric_of(name) is None}


def label_mistakes(expression: str) -> list[str]:
    """Matchers of labels that a metric has not, or of values that a closed set has not."""
    mistakes = []
    for name, inside in _SELECTOR.findall(expression):
        metric = metric_of(name)
        if metric is None:
            continue
        labels = {label.name: label for label in metric.labels}
        for label, operator, value in _MATCHER.findall(inside):
            if label in TARGET_LABELS:
                continue
            if label not in labels:
                mistakes.append(f"{name} has no label {label}")
                continue
            values = value.split("|") if "~" in operator else [value]
            known = labels[label].values
            wrong = [one for one in values if known and not one.startswith("$") and one not in known]
            mistakes += [f"{name}: {label} is never {one!r}" for one in wrong]
    return mistakes
