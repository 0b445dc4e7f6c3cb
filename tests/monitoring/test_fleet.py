# SPDX-License-Identifier: Apache-2.0
"""Every rule and every panel over 200 synthetic nodes: a real Prometheus finds data for each."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import yaml
from tests.dashboards.check import log_queries
from tests.monitoring import fleet
from tests.monitoring.conftest import SCRAPE, Monitored, wait_for
from tests.rules.names import foreign_names, label_mistakes
from tests.rules.parts import ROOT
from tools.dashboards.__main__ import FOLDER, dashboards, text

UNSIGNED_NODE = "synthetic-gpu-003"
# What a panel shows has to go wrong on the node that is looked at.
NODE_OF_PANEL = {
    "What should stay at 0": "synthetic-gpu-008",
    "Slowest wait, and the limit": "synthetic-gpu-007",
}
# Data means that no agent exists at all; promtool's cases have it (tests/rules).
NEVER_HERE = {"KmodgateAbsent"}
# These count what goes wrong; nothing of it goes wrong on the node that is looked at.
EMPTY_IS_GOOD = {
    "kmodgate_events_lost_total",
    "kmodgate_off_switch_events_total",
    "kmodgate_scrape_errors_total",
}


def panels() -> Iterator[tuple[str, dict[str, Any], str]]:
    for name, made in dashboards().items():
        for panel in made["panels"]:
            if panel["datasource"]["type"] == "prometheus":
                for target in panel["targets"]:
                    yield name, panel, target["expr"]


def test_the_log_panel_names_what_events_have() -> None:
    """As Loki's parser of JSON names them: a key within an object after the object's, with ``_``."""
    schema = json.loads(files("kmodgate.telemetry").joinpath("event.schema.json").read_text())
    known = set(flattened(schema["$defs"]["module_load"], schema["$defs"]))
    queries = log_queries(dashboards())
    assert queries
    for query in queries:
        named = set(re.findall(r"\{\{\.(\w+)\}\}", query)) | set(re.findall(r"\| (\w+)=", query))
        assert {"verdict", "reason", "module", "path", "pod_name", "signer_issuer", "node"} <= named <= known


def flattened(schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    for key, value in schema["properties"].items():
        parts = [value, *value.get("anyOf", []), *value.get("oneOf", [])]
        parts += [definitions[part["$ref"].rpartition("/")[2]] for part in parts if "$ref" in part]
        inner = [part for part in parts if "properties" in part]
        for part in inner:
            yield from (f"{key}_{name}" for name in flattened(part, definitions))
        if not inner:
            yield key


def filled_in(expression: str, panel: str) -> str:
    """As Grafana sends it."""
    values = {
        "$pool": ".*",
        "$node": NODE_OF_PANEL.get(panel, UNSIGNED_NODE),
        "$__rate_interval": "1m",
        "$__range": "2m",
    }
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def rules(kind: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted((ROOT / "helm/kmodgate/rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found += [rule for rule in group["rules"] if kind in rule]
    return found


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_dashboards_are_generated(name: str) -> None:
    assert (FOLDER / name).read_text() == text(dashboards()[name]), "run: make docs"


def test_no_other_dashboard_lies_there() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(dashboards())


@pytest.mark.parametrize("made", dashboards().values(), ids=lambda made: made["uid"])
def test_dashboards_hold_together(made: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in made["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in made["panels"]:
        assert panel["description"].endswith(".")
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    written = json.dumps(made)
    other = {"kmodgate-fleet": "kmodgate-node", "kmodgate-node": "kmodgate-fleet"}[made["uid"]]
    assert f"/d/{other}?" in written
    assert "${runbooks}/" in written
    for runbook in {
        word for word in written.replace('"', " ").replace(".", " ").split() if word.startswith("Kmodgate")
    }:
        assert runbook == "Kmodgate" or (ROOT / f"docs/runbooks/{runbook}.md").exists(), runbook


@pytest.mark.parametrize(
    ("name", "panel", "expression"),
    list(panels()),
    ids=[f"{n}-{p['title']}-{i}" for i, (n, p, _) in enumerate(panels())],
)
def test_panels_name_what_exists(name: str, panel: dict[str, Any], expression: str) -> None:
    del name, panel
    assert foreign_names(expression) <= {"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
    assert not label_mistakes(expression)


def test_every_target_but_one_answers(monitored: Monitored) -> None:
    def up() -> bool:
        return len(monitored.prometheus.query('up{job="kmodgate"} == 1')) == fleet.NODES - 1

    wait_for("the fleet", up)
    (away,) = monitored.prometheus.query('up{job="kmodgate"} == 0')
    assert away["metric"]["instance"] == fleet.AWAY


def test_series_of_a_node(monitored: Monitored) -> None:
    wait_for("a scrape", lambda: monitored.prometheus.query('scrape_samples_scraped{job="kmodgate"} > 0'))
    (most,) = monitored.prometheus.query('max(scrape_samples_post_metric_relabeling{job="kmodgate"})')
    print(f"series of a node as Prometheus counts them: at most {most['value'][1]}")
    assert (
        float(most["value"][1]) <= 152
    )  # the pool gpu has two certificates, and the flood limit counts there


@pytest.mark.parametrize("rule", rules("record"), ids=lambda rule: rule["record"])
def test_recording_rules_record(monitored: Monitored, rule: dict[str, Any]) -> None:
    wait_for(rule["record"], lambda: monitored.prometheus.query(rule["record"]))


@pytest.mark.parametrize(
    "rule", rules("alert"), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}"
)
def test_alerts_find_their_trouble(monitored: Monitored, rule: dict[str, Any]) -> None:
    if rule["alert"] in NEVER_HERE:
        assert monitored.prometheus.query(rule["expr"]) == []
        return
    wait_for(rule["alert"], lambda: monitored.prometheus.query(rule["expr"]))


@pytest.mark.parametrize(
    ("name", "panel", "expression"),
    list(panels()),
    ids=[f"{n}-{p['title']}-{i}" for i, (n, p, _) in enumerate(panels())],
)
def test_panels_show_something(
    monitored: Monitored, name: str, panel: dict[str, Any], expression: str
) -> None:
    filled = filled_in(expression, panel["title"])
    if any(metric in filled for metric in EMPTY_IS_GOOD):
        monitored.prometheus.query(filled)  # it must parse
        filled = filled.removesuffix("> 0")
    wait_for(f"{name}: {panel['title']}", lambda: monitored.prometheus.query(filled))


def test_no_rule_fails(monitored: Monitored) -> None:
    for group in monitored.prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] in {"ok", "unknown"}, rule
    wait_for("evaluations", lambda: monitored.prometheus.query("prometheus_rule_evaluations_total") or True)


def test_an_alert_reaches_the_webhook(monitored: Monitored) -> None:
    end = time.monotonic() + 240
    while True:
        _, alert = monitored.webhook.came.get(timeout=max(1.0, end - time.monotonic()))
        labels = alert["labels"]
        if labels["alertname"] == "KmodgateUntrustedModule" and labels["instance"] == UNSIGNED_NODE:
            break
    assert labels["pool"] == "gpu"
    assert labels["reason"] == "unsigned"
    assert labels["severity"] == "warning"
    assert alert["annotations"]["summary"] == f"unsigned: a module load was refused on {UNSIGNED_NODE}"
    assert (
        f"on {UNSIGNED_NODE} (pool gpu) were refused, reason unsigned." in alert["annotations"]["description"]
    )
    assert alert["annotations"]["runbook_url"] == "docs/runbooks/KmodgateUntrustedModule.md"


def test_a_count_leads_to_its_event(monitored: Monitored) -> None:
    expression = f'kmodgate_module_loads_total{{instance="{UNSIGNED_NODE}", reason="unsigned"}}'

    def found() -> list[Any]:
        now = time.time()
        return list(
            monitored.prometheus.get(
                "query_exemplars", query=expression, start=f"{now - 120:.0f}", end=f"{now + SCRAPE:.0f}"
            )
        )

    (series,) = wait_for("exemplars", found)
    assert all(set(example["labels"]) == {"sequence"} for example in series["exemplars"])
