# SPDX-License-Identifier: Apache-2.0
"""The table of metrics: it is the documentation, it is complete, and its labels are closed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodgate.telemetry.metrics import TABLE
from kmodgate.telemetry.reference import markdown
from kmodgate.telemetry.table import OTHER, Kind, Label, Metric

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"

# The contract: dashboards and alerts of users are built on these.
FINAL_NAMES = {
    "kmodgate_module_loads_total",
    "kmodgate_policy_info",
    "kmodgate_backend_info",
    "kmodgate_enforcing",
    "kmodgate_decision_seconds",
    "kmodgate_verify_seconds",
    "kmodgate_hold_seconds",
    "kmodgate_events_lost_total",
    "kmodgate_trust_anchor_not_after_timestamp_seconds",
    "kmodgate_loaded_modules",
    "kmodgate_config_last_reload_successful",
    "kmodgate_config_last_reload_success_timestamp_seconds",
    "kmodgate_build_info",
}
BY_NAME = {metric.name: metric for metric in TABLE}


def test_docs_are_generated() -> None:
    assert DOCS.read_text() == markdown(), "run: python -m kmodgate.telemetry.reference > docs/metrics.md"


def test_final_names_are_there_once() -> None:
    assert set(BY_NAME) >= FINAL_NAMES
    assert len(BY_NAME) == len(TABLE)


def test_labels_of_the_load_counter() -> None:
    assert BY_NAME["kmodgate_module_loads_total"].label_names == ("verdict", "reason", "api", "by")


@pytest.mark.parametrize("metric", TABLE, ids=lambda m: m.name)
def test_names_types_and_texts(metric: Metric) -> None:
    assert re.fullmatch(r"kmodgate_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.name.endswith("_info") == (metric.kind is Kind.INFO)
    assert metric.name.endswith("_seconds") or metric.kind is not Kind.HISTOGRAM
    assert metric.help.endswith(".")
    assert metric.look.endswith(".")


def test_no_label_is_open_ended() -> None:
    for metric in TABLE:
        for label in metric.labels:
            assert bool(label.values) != bool(label.pattern)
            assert label.name not in {
                "module",
                "path",
                "pod",
                "namespace",
                "comm",
                "exe",
                "container_id",
                "pid",
            }
            if label.pattern:
                assert metric.kind is Kind.INFO or label.name == "anchor"


@given(st.text())
def test_whatever_is_no_member_is_other(value: str) -> None:
    closed = Label("x", ("a", "b"))
    assert closed.bounded(value) in {"a", "b", OTHER}
    anchor = BY_NAME["kmodgate_trust_anchor_not_after_timestamp_seconds"].labels[0]
    assert re.fullmatch(r"[0-9a-f]{16}|other", anchor.bounded(value))
    assert anchor.bounded("0123456789abcdef\n") == OTHER
