# SPDX-License-Identifier: Apache-2.0
"""The chart renders, the same by every Helm, and Kubernetes would take what comes out."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils
from tests.chart.helm import CHART, PROJECT, VALUES, Helm, HelmError, objects, only

KUBERNETES = [f"1.{minor}.0" for minor in range(25, 38)]
# Resources of the Prometheus operator: Kubernetes has no schema of them.
CUSTOM = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
LABELS = {
    "helm.sh/chart",
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
}


def kubernetes_of(values: Path) -> str:
    """A version that the values are made for."""
    return "1.32.0" if "ownnode" in values.name else "1.25.0"


def test_there_are_values_to_test_with() -> None:
    assert len(VALUES) >= 6
    assert {path.name for path in (CHART / "ci").iterdir()} == {path.name for path in VALUES}


def test_lint_is_silent(helm: Helm, values: Path) -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in helm.lint(values)


def test_every_helm_renders_the_same(newest: Helm, helm: Helm, values: Path) -> None:
    version = kubernetes_of(values)
    ours = objects(helm.render(values, kubernetes=version))
    theirs = objects(newest.render(values, kubernetes=version))
    assert ours == theirs
    assert len(ours) >= 2


@pytest.fixture(scope="module", autouse=True)
def _schemas_once() -> Any:
    """The definitions are a megabyte for each version: read them once, not for each object."""
    before = utils.schema_contents
    utils.schema_contents = functools.cache(before)
    yield
    utils.schema_contents = before


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(newest: Helm, version: str) -> None:
    seen: dict[str, dict[str, Any]] = {}
    for values in VALUES:
        if kubernetes_of(values) > version:
            with pytest.raises(HelmError, match=r"ownNodeOnly needs Kubernetes 1\.32"):
                newest.render(values, kubernetes=version)
            continue
        for document in objects(newest.render(values, kubernetes=version)):
            seen.setdefault(json.dumps(document, sort_keys=True), document)
    checked = set()
    for document in seen.values():
        if document["kind"] not in CUSTOM:
            used = kubernetes_validate.validate(document, version, strict=True)
            assert used == version.removesuffix(".0"), "validated against another version"
            checked.add(document["kind"])
    assert {"ConfigMap", "DaemonSet", "NetworkPolicy", "ClusterRole", "ServiceAccount"} <= checked


def test_the_validation_would_notice_a_field_that_is_not_there(newest: Helm) -> None:
    daemonset = only(objects(newest.render()), "DaemonSet")
    daemonset["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemonset, "1.37", strict=True)


def test_every_object_has_the_labels_and_an_own_name(newest: Helm, values: Path) -> None:
    found = objects(newest.render(values, kubernetes=kubernetes_of(values)))
    for document in found:
        assert document["metadata"]["labels"].keys() >= LABELS
        assert len(document["metadata"]["name"]) <= 63
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(names) == len(set(names))
    spaced = {item["metadata"].get("namespace") for item in found} - {None}
    assert spaced == {"nodes"}


def test_rules_and_dashboards_are_taken_whole(newest: Helm, tmp_path: Path) -> None:
    """Whatever lies in the two folders, expressions and templates of Prometheus included."""
    chart = tmp_path / "kmodgate"
    for path in CHART.rglob("*"):
        if path.is_file() and path.parent.name not in {"rules", "dashboards"}:
            target = chart / path.relative_to(CHART)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    switches = ["metrics.prometheusRule.enabled=true", "dashboards.enabled=true"]
    helm = Helm(newest.major, chart)
    empty = objects(helm.render(sets=switches))
    assert {item["kind"] for item in empty} & CUSTOM == set()
    assert len([item for item in empty if item["kind"] == "ConfigMap"]) == 1

    groups = [
        {
            "name": "one",
            "rules": [{"alert": "A", "expr": "up == 0", "annotations": {"s": "{{ $labels.x }}"}}],
        },
        {"name": "two", "rules": [{"record": "b:c", "expr": 'sum(x{y=~"a|b"}) by (z)'}]},
    ]
    dashboard = {"title": "{{ not a template }}", "panels": [{"expr": 'rate(x{a="b"}[5m])'}]}
    for folder in ("rules", "dashboards"):
        (chart / folder).mkdir()
    (chart / "rules/a.yaml").write_text(yaml.safe_dump({"groups": groups[:1]}))
    (chart / "rules/b.yaml").write_text(yaml.safe_dump({"groups": groups[1:]}))
    (chart / "dashboards/Fleet_view.json").write_text(json.dumps(dashboard, indent=2) + "\n")
    full = objects(helm.render(sets=switches))
    assert only(full, "PrometheusRule")["spec"]["groups"] == groups
    (held,) = [item for item in full if "dashboard" in item["metadata"]["name"]]
    assert held["metadata"]["name"] == "kmodgate-dashboard-fleet-view"
    assert held["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(held["data"]["Fleet_view.json"]) == dashboard


def test_the_projects_own_rules_and_dashboards_are_in(newest: Helm) -> None:
    switches = ["metrics.prometheusRule.enabled=true", "dashboards.enabled=true"]
    found = objects(newest.render(sets=switches))
    rules = [yaml.safe_load(path.read_text()) for path in sorted((CHART / "rules").glob("*.yaml"))]
    groups = [group for rule in rules for group in rule["groups"]]
    rendered = [item["spec"]["groups"] for item in found if item["kind"] == "PrometheusRule"]
    assert rendered == ([groups] if groups else [])
    dashboards = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    held = {
        name: json.loads(text)
        for item in found
        if "-dashboard-" in item["metadata"]["name"]
        for name, text in item["data"].items()
    }
    assert held == dashboards


@pytest.mark.parametrize("base", ["https://docs.example/kmodgate/runbooks", "http://[::1]:8080/a%20b/"])
def test_links_to_runbooks_begin_with_the_address_that_was_given(helm: Helm, base: str) -> None:
    switches = ["metrics.prometheusRule.enabled=true", "dashboards.enabled=true"]
    plain = objects(helm.render(sets=switches))
    given = objects(helm.render(sets=[*switches, f"metrics.runbookBaseUrl={json.dumps(base)}"]))
    alerts = [
        [rule for group in only(found, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
        for found in (plain, given)
    ]
    for before, after in zip(*alerts, strict=True):
        if "alert" in before:
            page = before["annotations"].pop("runbook_url").removeprefix("docs/runbooks/")
            assert after["annotations"].pop("runbook_url") == f"{base.rstrip('/')}/{page}"
            assert (PROJECT / "docs/runbooks" / page).is_file()
        assert after == before
    variables = {
        (
            variable["query"],
            variable["current"]["value"],
            *(option["value"] for option in variable["options"]),
        )
        for item in given
        if "-dashboard-" in item["metadata"]["name"]
        for text in item["data"].values()
        for variable in json.loads(text)["templating"]["list"]
        if variable["name"] == "runbooks"
    }
    assert variables == {(base.rstrip("/"),) * 3}


def test_the_notes_say_how_to_end_it(newest: Helm) -> None:
    # Helm 3 renders notes only where a cluster answers.
    notes = newest.notes(CHART / "ci/default-values.yaml")
    assert "ENFORCE_SIGNED_MODULES, mode audit" in notes
    assert "--set detach=true" in notes
    leaving = newest.notes(CHART / "ci/detach-values.yaml")
    assert "helm uninstall kmodgate --namespace nodes" in leaving
    assert "rollout status daemonset/kmodgate" in leaving


def test_the_version_is_the_agents() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    agent = (PROJECT / "agent/kmodgate/__init__.py").read_text()
    assert f'__version__ = "{chart["appVersion"]}"' in agent
    assert chart["version"] == chart["appVersion"]
