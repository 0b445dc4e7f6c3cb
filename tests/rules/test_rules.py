# SPDX-License-Identifier: Apache-2.0
"""The rules: Prometheus accepts them, each alert fires when it should, and nothing is misspelt."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.rules.names import BY_NAME, foreign_names, label_mistakes, metric_of
from tests.rules.parts import ROOT, debian_program

from kmodgate.telemetry.table import Kind

RULES = sorted((ROOT / "helm/kmodgate/rules").glob("*.yaml"))
CASES = sorted(Path(__file__).parent.glob("*.test.yaml"))
RUNBOOKS = ROOT / "docs/runbooks"
SECTIONS = ["What it means", "Look here first", "Put it right", "When to silence it"]
# Recorded by these very rules, or exported by others.
RECORDED = re.compile(r"[a-z_]+:kmodgate_[a-z_]+:[a-z0-9_]+")


def all_rules() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = [rule for rule in all_rules() if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [debian_program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_prometheus_accepts(path: Path) -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", path)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_cases(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires, quiet = set(), set()
    for path in CASES:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test.get("promql_expr_test", []):
                if case["exp_samples"] and (found := re.search(r'alertname="(\w+)"', case["expr"])):
                    fires.add(found[1])
            quiet |= {case["alertname"] for case in test.get("alert_rule_test", []) if not case["exp_alerts"]}
    assert sorted(fires) == NAMES
    assert sorted(quiet) == NAMES


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_alerts_say_what_they_must(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{alert['alert']}.md"


def test_runbooks_and_alerts_are_the_same_set() -> None:
    assert sorted(path.stem for path in RUNBOOKS.glob("*.md")) == sorted([*NAMES, "README"])
    index = (RUNBOOKS / "README.md").read_text()
    assert sorted(re.findall(r"\]\((\w+)\.md\)", index)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_runbooks_are_whole(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    commands = re.findall(r"^## `kmodgate ([a-z]+)`$", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    for command in re.findall(r"(?:^|`)kmodgate ([a-z]+)", text, re.MULTILINE):
        assert command in commands
    for metric in re.findall(r"\bkmodgate_[a-z_]+", text):
        assert metric_of(metric) is not None, metric
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (RUNBOOKS / target).exists(), target


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_names_and_label_values_exist(rule: dict[str, Any]) -> None:
    recorded = {rule["record"] for rule in all_rules() if "record" in rule}
    assert set(RECORDED.findall(rule["expr"])) <= recorded
    assert foreign_names(rule["expr"]) <= {"up", "kube_node_info"}
    assert not label_mistakes(rule["expr"])


def test_the_check_of_names_finds_mistakes() -> None:
    assert foreign_names('rate(kmodgate_modul_loads_total{verdict="deny"}[5m])') == {
        "kmodgate_modul_loads_total"
    }
    assert label_mistakes('kmodgate_module_loads_total{verdict="denied"}')
    assert label_mistakes('kmodgate_module_loads_total{reasons="unsigned"}')
    assert not label_mistakes('kmodgate_module_loads_total{verdict=~"deny|would_deny", pool="x"}')
    assert metric_of("kmodgate_hold_seconds_bucket") is BY_NAME["kmodgate_hold_seconds"]
    assert BY_NAME["kmodgate_hold_seconds"].kind is Kind.HISTOGRAM
