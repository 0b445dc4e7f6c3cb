# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kmodgate.cli import main
from kmodgate.cli.describe import command


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.yaml"
    path.write_text(
        "linuxConfig:\n  kernelModuleLoading: {policy: ENFORCE_SIGNED_MODULES}\n"
        "kmodgate:\n  mode: audit\n  nodePools:\n"
        "  - {name: gpu, nodeSelector: {gpu: 'yes'}, nodeType: GPU, policy: POLICY_UNSPECIFIED}\n"
    )
    return path


def describe(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0
    return result.output


def test_an_unset_policy_is_printed_as_gke_prints_it(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("kmodgate: {}")
    output = describe("--config", str(path))
    assert output.startswith(
        "config:\n"
        "  linuxNodeConfig:\n"
        "    cgroupMode: CGROUP_MODE_UNSPECIFIED\n"
        "    kernelModuleLoading:\n"
        "      policy: POLICY_UNSPECIFIED\n"
        "kmodgate:\n"
        "  mode: enforce\n"
    )
    document = yaml.safe_load(output)
    assert document["kmodgate"]["loadPin"] == "on"
    assert document["kmodgate"]["loadPinTrustedVerityDigests"] is None
    assert document["kmodgate"]["holdTimeout"] == "250ms"
    assert document["kmodgate"]["maxModuleSize"] == "64MiB"
    assert document["kmodgate"]["listen"] == "127.0.0.1:9464"
    assert document["kmodgate"]["sources"]["policy"] == "default"
    assert document["kmodgate"]["sources"]["loadPin"] == "default for nodeType CPU"
    assert "warnings" not in document["kmodgate"]


def test_json_says_the_same_as_text(config: Path) -> None:
    arguments = ("--config", str(config))
    document = json.loads(describe(*arguments, "--output", "json"))
    assert (
        document
        == yaml.safe_load(describe(*arguments))
        == yaml.safe_load(describe(*arguments, "--output", "yaml"))
    )
    assert document["config"]["linuxNodeConfig"]["kernelModuleLoading"]["policy"] == "ENFORCE_SIGNED_MODULES"
    assert document["kmodgate"]["sources"]["policy"] == f"{config}:2"
    assert document["kmodgate"]["sources"]["mode"] == f"{config}:4"
    assert document["kmodgate"]["loadPinExcludesModules"] is True
    assert "nothing is denied" in document["kmodgate"]["warnings"][0]


def test_labels_pick_the_node_pool(config: Path) -> None:
    document = yaml.safe_load(describe("--config", str(config), "--node-label", "gpu=yes"))
    assert document["config"]["linuxNodeConfig"]["kernelModuleLoading"]["policy"] == "POLICY_UNSPECIFIED"
    assert document["kmodgate"]["nodePool"] == "gpu"
    assert document["kmodgate"]["loadPin"] == "off"
    assert document["kmodgate"]["sources"]["nodePool"] == f"{config}:6, for gpu=yes (--node-label)"


def test_the_labels_of_a_node_of_the_cluster_pick_the_node_pool(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def look_up(name: str, _state: Path) -> tuple[dict[str, str], str]:
        asked.append(name)
        return {"gpu": "yes"}, f"labels of node {name}"

    monkeypatch.setattr("kmodgate.kube.nodelabels.look_up_labels", look_up)
    document = yaml.safe_load(describe("--config", str(config), "--node", "node-a"))
    assert document["kmodgate"]["sources"]["nodePool"].endswith("for gpu=yes (labels of node node-a)")
    monkeypatch.setenv("NODE_NAME", "node-b")
    assert "nodePool" not in yaml.safe_load(describe("--config", str(config)))["kmodgate"]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "nodePool" in yaml.safe_load(describe("--config", str(config)))["kmodgate"]
    assert asked == ["node-a", "node-b"]


@pytest.mark.parametrize(
    ("flag", "policy"),
    [
        ("--enable-kernel-module-signature-enforcement", "ENFORCE_SIGNED_MODULES"),
        ("--no-enable-kernel-module-signature-enforcement", "DO_NOT_ENFORCE_SIGNED_MODULES"),
    ],
)
def test_the_flag_overrides_file_and_pool(config: Path, flag: str, policy: str) -> None:
    document = yaml.safe_load(describe("--config", str(config), "--node-label", "gpu=yes", flag))
    assert document["config"]["linuxNodeConfig"]["kernelModuleLoading"]["policy"] == policy
    assert document["kmodgate"]["sources"]["policy"] == "flag"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["describe", "--config", "{tmp}/absent.yaml"], "no such file"),
        (
            ["describe", "--config", "{tmp}/bad.yaml"],
            "bad.yaml:1: unknown key 'kmodgat'; did you mean kmodgate?",
        ),
        (["describe", "--config", "{tmp}/bad.yaml", "--node-label", "x"], "is not KEY=VALUE"),
        (["describe"], "--config"),
    ],
)
def test_bad_input_exits_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("kmodgat: {}")
    with pytest.raises(SystemExit) as caught:
        main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
