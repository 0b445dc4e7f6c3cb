# SPDX-License-Identifier: Apache-2.0
"""Values made into families of samples, with the label sets and buckets of the one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Exemplar

from kmodgate.model import KernelHistogram

from .exemplars import LABEL, Told
from .table import Kind, Metric


def family_of(metric: Metric) -> Family:
    """An empty family, for descriptions."""
    types: dict[Kind, Callable[..., Family]] = {
        Kind.COUNTER: CounterMetricFamily,
        Kind.GAUGE: GaugeMetricFamily,
        Kind.HISTOGRAM: HistogramMetricFamily,
        Kind.INFO: InfoMetricFamily,
    }
    return types[metric.kind](metric.family, metric.help, labels=metric.label_names)


def _bounded(metric: Metric, values: Mapping[tuple[str, ...], float]) -> list[tuple[tuple[str, ...], float]]:
    """The values by closed label sets, sorted; what falls into the same set is added up."""
    result: dict[tuple[str, ...], float] = {}
    for labels, value in values.items():
        key = metric.bounded(labels)
        result[key] = result.get(key, 0) + value
    return sorted(result.items())


def counts(
    metric: Metric,
    values: Mapping[tuple[str, ...], int],
    since: float | None = None,
    told: Mapping[tuple[str, ...], Told] | None = None,
) -> Family:
    """A counter; an exemplar is an event behind it."""
    family = CounterMetricFamily(metric.family, metric.help, labels=metric.label_names)
    for labels, value in _bounded(metric, values):
        # An event can be told before its load is counted: an exemplar of nothing would be no exemplar.
        event = told.get(labels) if told and value else None
        family.add_metric(labels, value, created=since, exemplar=_exemplar(event))
    return family


def gauges(metric: Metric, values: Mapping[tuple[str, ...], float]) -> Family:
    """A gauge with a value for each set of labels."""
    family = GaugeMetricFamily(metric.family, metric.help, labels=metric.label_names)
    for labels, value in _bounded(metric, values):
        family.add_metric(labels, value)
    return family


def value_of(metric: Metric, value: float) -> Family:
    """A gauge without labels."""
    return gauges(metric, {(): value})


def info(metric: Metric, labels: tuple[str, ...]) -> Family:
    """An info metric with these labels."""
    family = InfoMetricFamily(metric.family, metric.help, labels=metric.label_names)
    family.add_metric(metric.bounded(labels), {})
    return family


def _exemplar(told: Told | None) -> Exemplar | None:
    return None if told is None else Exemplar({LABEL: str(told.sequence)}, told.value, told.time)


def histogram(metric: Metric, data: KernelHistogram, told: Mapping[int, Told] | None = None) -> Family:
    """Cumulate the buckets, as the exposition formats want them, at the bounds of the table."""
    family = HistogramMetricFamily(metric.family, metric.help, labels=metric.label_names)
    total, finer = 0, iter(data.buckets)
    bound, count = next(finer, (math.nan, 0))
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for position, end in enumerate((*metric.buckets, math.inf)):
        while bound <= end:
            total += count
            bound, count = next(finer, (math.nan, 0))
        # As above: what is told and not counted yet is left out.
        below = buckets[-1][1] if buckets else 0
        example = _exemplar(told.get(position) if told and total > below else None)
        name = "+Inf" if math.isinf(end) else repr(end)
        buckets.append((name, total) if example is None else (name, total, example))
    family.add_metric((), buckets, data.sum_seconds)
    return family
