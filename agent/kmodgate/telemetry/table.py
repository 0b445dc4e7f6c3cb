# SPDX-License-Identifier: Apache-2.0
"""What a metric is made of: its name, its labels, and the only values these may take.

This module knows no metric and no Prometheus client. ``metrics`` holds the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

OTHER: Final = "other"
"""Stands for every label value outside its closed set: a series can be vague, never new."""


class Kind(StrEnum):
    """Type of a metric, in the words of OpenMetrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Label:
    """One label.

    Attributes:
        name: of the label.
        values: the closed set; empty where a pattern limits the values instead.
        pattern: what a value must match as a whole; such a label has one value for each
            process or configured object, never one for each load.
        note: what the values are, for a label with a pattern.
    """

    name: str
    values: tuple[str, ...] = ()
    pattern: str = ""
    note: str = ""

    def bounded(self, value: str) -> str:
        """The value if it is one of the set, else ``other``."""
        if self.pattern:
            return value if re.fullmatch(self.pattern, value) else OTHER
        return value if value in self.values else OTHER


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as Prometheus shows it, with ``_total`` or ``_info``; a histogram without
            ``_bucket``.
        kind: its type.
        help: one sentence: what is counted, in which unit.
        look: what it tells at three in the morning.
        labels: its labels, in order.
        buckets: upper bounds of a histogram, but for infinity. Those that the kernel fills have finer ones
            there, and these are among them.
    """

    name: str
    kind: Kind
    help: str
    look: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name without the suffix that the exposition format adds."""
        suffix = {Kind.COUNTER: "_total", Kind.INFO: "_info"}.get(self.kind, "")
        return self.name.removesuffix(suffix)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return tuple(label.name for label in self.labels)

    def bounded(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """Label values in order, each one in its closed set."""
        return tuple(label.bounded(value) for label, value in zip(self.labels, values, strict=True))
