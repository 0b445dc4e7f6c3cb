# SPDX-License-Identifier: Apache-2.0
"""What the objects say: the agent's config by the agent's own parser, rights, and the pod's confinement."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.helm import CHART, VALUES, Helm, objects, only

from kmodgate import config
from kmodgate.config import schema
from kmodgate.config.sinks import EventSinksSection
from kmodgate.model import Mode, Policy

CI = CHART / "ci"
NODES = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "watch"]}
PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}
EVENTS = {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}
STATUS = {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}
CAPABILITIES = ["BPF", "PERFMON", "SYS_MODULE", "SYS_PTRACE", "DAC_READ_SEARCH"]


def rendered(
    helm: Helm, *values: str, sets: tuple[str, ...] = (), version: str = "1.37.0"
) -> list[dict[str, Any]]:
    return objects(
        helm.render(*(CI / f"{name}-values.yaml" for name in values), sets=sets, kubernetes=version)
    )


def pod(found: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = only(found, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def config_map(found: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = [item for item in found if "config.yaml" in item.get("data", {})]
    return item


def mounted(found: list[dict[str, Any]], directory: Path) -> config.NodeConfig:
    """The config as the agent reads it where the kubelet has laid the ConfigMap."""
    item = config_map(found)
    for name, text in item["data"].items():
        (directory / name).write_text(text)
    for name, text in item.get("binaryData", {}).items():
        (directory / name).write_bytes(base64.b64decode(text, validate=True))
    return config.load(directory / "config.yaml")


# --- the config ------------------------------------------------------------------------------


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.name)
def test_the_agent_takes_the_config_and_finds_its_files(newest: Helm, values: Path, tmp_path: Path) -> None:
    found = mounted(objects(newest.render(values)), tmp_path)
    for applied in (found, *(config.apply_pool(found, pool) for pool in found.node_pools)):
        for path in applied.files:
            assert path.is_file()
            assert path.parent == tmp_path


def test_as_installed_it_watches_and_denies_nothing(newest: Helm, tmp_path: Path) -> None:
    found = mounted(rendered(newest, "default"), tmp_path)
    assert (found.policy, found.mode) == (Policy.ENFORCE, Mode.AUDIT)
    assert not found.node_pools
    assert str(found.listen) == "0.0.0.0:9464"


def test_the_chart_changes_no_default_but_mode_policy_and_address(newest: Helm, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("kmodgate: {}\n")
    plain = config.load(tmp_path / "plain.yaml")
    found = mounted(rendered(newest, "default"), tmp_path)
    names = [name for name in plain.__slots__ if name not in {"source", "origins"}]
    assert {name for name in names if getattr(plain, name) != getattr(found, name)} == {
        "policy",
        "mode",
        "listen",
    }


def test_every_value_arrives(newest: Helm, tmp_path: Path) -> None:
    found = mounted(rendered(newest, "everything"), tmp_path)
    values = yaml.safe_load((CI / "everything-values.yaml").read_text())
    assert found.policy == values["policy"]
    for name, key in {
        "mode": "mode",
        "failure_policy": "failurePolicy",
        "node_type": "nodeType",
        "load_pin": "loadPin",
        "pinned_root_exempt": "pinnedRootExempt",
        "backend": "backend",
        "on_exit": "onExit",
        "cannot_enforce": "cannotEnforce",
        "hardened": "hardened",
    }.items():
        assert getattr(found, name) == values[key], key
    assert found.log_level == values["logging"]["level"]
    assert found.preverify == tuple(values["preverify"])
    assert found.hold_timeout == 1
    assert found.max_module_size == 128 << 20
    assert found.hardened_token == bytes.fromhex(values["hardenedToken"])
    assert str(found.listen) == "[::]:19464"
    assert found.trust.require_validity
    assert found.trust.kernel_profile == values["trust"]["kernelProfile"]
    assert {"old.der", "digests.txt"} <= {path.name for path in found.files}
    assert found.web_config == tmp_path / "web.yml"
    assert found.kubernetes_condition is True
    (agent,) = pod(rendered(newest, "everything"))["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in agent["volumeMounts"]}
    assert mounts["tls"] == "/etc/kmodgate-tls"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert agent[probe]["httpGet"]["scheme"] == "HTTPS"


def test_no_key_of_the_config_is_beyond_the_values(newest: Helm) -> None:
    """A key that the agent learns must be had by the chart, too."""
    chart = yaml.safe_load((CHART / "values.yaml").read_text())
    for section in (schema.Kmodgate, schema.Trust, schema.Logging):
        inside = {schema.Kmodgate: chart, schema.Trust: chart["trust"], schema.Logging: chart["logging"]}[
            section
        ]
        assert set(schema.keys(section)) - {"listen", "webConfig"} <= inside.keys()
    assert {"webConfig"} <= chart["metrics"].keys()
    assert set(schema.keys(schema.Kubernetes)) <= chart["kubernetes"].keys()
    sinks = json.loads((CHART / "values.schema.json").read_text())["properties"]["eventSinks"]["properties"]
    assert {name: set(sink["properties"]) for name, sink in sinks.items()} == {
        key.name: set(schema.keys(key.section))
        for key in EventSinksSection.known.values()
        if key.section is not None
    }
    pool = yaml.safe_load((CHART / "values.schema.json").read_text())["definitions"]["pool"]["properties"]
    assert set(schema.keys(schema.Pool)) - {"matchLabels"} <= pool.keys()
    assert newest.render()


@pytest.mark.parametrize(
    ("sets", "policy"),
    [
        (('policy="DO_NOT_ENFORCE_SIGNED_MODULES"',), Policy.DO_NOT_ENFORCE),
        (("enableKernelModuleSignatureEnforcement=true",), Policy.ENFORCE),
        (("enableKernelModuleSignatureEnforcement=false",), Policy.DO_NOT_ENFORCE),
        (('policy="POLICY_UNSPECIFIED"', "enableKernelModuleSignatureEnforcement=true"), Policy.ENFORCE),
    ],
)
def test_gkes_flag_is_the_policy_in_other_words(
    newest: Helm, tmp_path: Path, sets: tuple[str, ...], policy: Policy
) -> None:
    assert mounted(rendered(newest, sets=sets), tmp_path).policy == policy


def test_node_pools_override_by_label(newest: Helm, tmp_path: Path) -> None:
    found = mounted(rendered(newest, "enforce"), tmp_path)
    gpu = config.resolve(found, {"cloud.google.com/gke-accelerator": "nvidia-l4"})
    assert (gpu.pool, gpu.policy, gpu.mode) == ("gpu", Policy.ENFORCE, Mode.ENFORCE)
    assert [path.name for path in gpu.trust.certificates] == ["site-modules.pem", "gpu-vendor.pem"]
    storage = config.resolve(found, {"pool": "storage", "kmodgate.example/canary": "true"})
    assert (storage.policy, storage.mode) == (Policy.DO_NOT_ENFORCE, Mode.ENFORCE)
    other = config.resolve(found, {"pool": "storage"})
    assert (other.pool, other.policy, other.mode) == (None, Policy.ENFORCE, Mode.AUDIT)


# --- restart or not --------------------------------------------------------------------------


def template_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    template: dict[str, Any] = only(found, "DaemonSet")["spec"]["template"]
    return template


@pytest.mark.parametrize(
    "change",
    [
        'mode="enforce"',
        'policy="DO_NOT_ENFORCE_SIGNED_MODULES"',
        "trust.requireValidity=true",
        'nodePools=[{"name":"a","nodeSelector":{"a":"b"},"mode":"enforce"}]',
        'holdTimeout="1s"',
        'logging.level="debug"',
        'files={"a.pem":"x"}',
    ],
)
def test_a_live_setting_changes_the_config_and_no_pod(newest: Helm, change: str) -> None:
    before, after = rendered(newest), rendered(newest, sets=(change,))
    assert template_of(before) == template_of(after)
    old, new = config_map(before), config_map(after)
    assert old["data"] != new["data"]
    assert old["metadata"]["annotations"] != new["metadata"]["annotations"]


@pytest.mark.parametrize(
    "change",
    [
        "metrics.port=9999",
        'onExit="detach"',
        "hardened=true",
        'backend="bpf-lsm"',
        'listenAddress="::"',
        "kubernetes.events=false",
    ],
)
def test_what_is_read_at_start_only_replaces_the_pods(newest: Helm, change: str) -> None:
    before, after = rendered(newest), rendered(newest, sets=(change,))
    name = "checksum/start-only"
    assert (
        template_of(before)["metadata"]["annotations"][name]
        != template_of(after)["metadata"]["annotations"][name]
    )


# --- rights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sets", "rules"),
    [
        ("default", (), [NODES, PODS, EVENTS]),
        ("default", ("kubernetes.events=false",), [NODES, PODS]),
        ("ownnode", (), [NODES, PODS, EVENTS, STATUS]),
        ("everything", (), [NODES, PODS, EVENTS, STATUS]),
    ],
)
def test_the_rights_are_exactly_these(
    newest: Helm, values: str, sets: tuple[str, ...], rules: list[dict[str, Any]]
) -> None:
    found = rendered(newest, values, sets=sets)
    assert only(found, "ClusterRole")["rules"] == rules
    binding = only(found, "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == only(found, "ClusterRole")["metadata"]["name"]
    account = only(found, "ServiceAccount")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "nodes"}
    ]
    assert account["automountServiceAccountToken"] is False
    assert pod(found)["serviceAccountName"] == account["metadata"]["name"]
    assert not [item for item in found if item["kind"] in {"Role", "RoleBinding"}]


def test_an_agent_is_held_to_its_own_node(newest: Helm) -> None:
    found = rendered(newest, "ownnode")
    policy = only(found, "ValidatingAdmissionPolicy")["spec"]
    assert policy["failurePolicy"] == "Fail"
    (condition,) = policy["matchConditions"]
    assert condition["expression"] == 'request.userInfo.username == "system:serviceaccount:nodes:kmodgate"'
    assert only(found, "ValidatingAdmissionPolicyBinding")["spec"]["validationActions"] == ["Deny"]


def test_nobody_elses_account_is_made_or_bound(newest: Helm) -> None:
    found = rendered(newest, "minimal")
    kinds = {item["kind"] for item in found}
    assert kinds == {"ConfigMap", "DaemonSet"}
    assert pod(found)["serviceAccountName"] == "kmodgate"


# --- the pod ---------------------------------------------------------------------------------


def test_the_agent_has_these_capabilities_and_no_privilege(newest: Helm) -> None:
    (agent,) = pod(rendered(newest, "default"))["containers"]
    context = agent["securityContext"]
    assert context == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": CAPABILITIES},
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": False,
        "seccompProfile": {"type": "RuntimeDefault"},
        "appArmorProfile": {"type": "Unconfined"},
    }


def test_hardened_adds_a_capability_and_so_does_the_operator(newest: Helm) -> None:
    (agent,) = pod(rendered(newest, "everything"))["containers"]
    assert agent["securityContext"]["capabilities"]["add"] == [*CAPABILITIES, "NET_ADMIN", "SYS_ADMIN"]
    assert agent["securityContext"]["seccompProfile"] == {
        "type": "Localhost",
        "localhostProfile": "kmodgate.json",
    }
    assert agent["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}


def test_app_armor_is_said_in_the_words_of_the_version(newest: Helm) -> None:
    key = "container.apparmor.security.beta.kubernetes.io/agent"
    old, new = rendered(newest, version="1.29.0"), rendered(newest, version="1.30.0")
    assert template_of(old)["metadata"]["annotations"][key] == "unconfined"
    assert "appArmorProfile" not in pod(old)["containers"][0]["securityContext"]
    assert key not in template_of(new)["metadata"]["annotations"]
    own = rendered(newest, "everything", version="1.29.0")
    assert template_of(own)["metadata"]["annotations"][key] == "localhost/kmodgate"


def test_privileged_is_said_and_nothing_beside_it(newest: Helm) -> None:
    (agent,) = pod(rendered(newest, "minimal"))["containers"]
    assert agent["securityContext"]["privileged"] is True
    assert "capabilities" not in agent["securityContext"]


def test_what_of_the_node_is_in_the_pod(newest: Helm) -> None:
    spec = pod(rendered(newest, "default"))
    assert spec["hostPID"] is True
    assert not spec.get("hostNetwork")
    assert {volume["name"]: volume.get("hostPath", {}).get("path") for volume in spec["volumes"]} == {
        "config": None,
        "bpffs": "/sys/fs/bpf",
        "run": "/run/kmodgate",
    }
    (agent,) = spec["containers"]
    mounts = {mount["name"]: mount for mount in agent["volumeMounts"]}
    assert mounts["bpffs"]["mountPath"] == "/sys/fs/bpf"
    assert mounts["config"]["readOnly"] is True
    assert not any("subPath" in mount for mount in mounts.values())


def test_every_node_gets_it_and_keeps_it(newest: Helm) -> None:
    found = rendered(newest, "default")
    assert pod(found)["tolerations"] == [{"operator": "Exists"}]
    assert pod(found)["priorityClassName"] == "system-node-critical"
    strategy = only(found, "DaemonSet")["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%", "maxSurge": 0}}


def test_the_probes_ask_what_they_mean(newest: Helm) -> None:
    (agent,) = pod(rendered(newest, "default"))["containers"]
    paths = {name: agent[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    (port,) = agent["ports"]
    assert port["name"] == "metrics"
    assert {agent[f"{name}Probe"]["httpGet"]["port"] for name in paths} == {"metrics"}


@pytest.mark.parametrize("values", ["default", "everything", "minimal"])
def test_the_command_line_is_one_that_the_agent_takes(newest: Helm, values: str) -> None:
    from kmodgate.cli.run import command  # noqa: PLC0415  # click is not needed elsewhere here

    (agent,) = pod(rendered(newest, values))["containers"]
    first, *arguments = agent["args"]
    assert first == "run"
    given = command.make_context("run", arguments).params
    assert str(given["config_path"]) == "/etc/kmodgate/config.yaml"
    assert str(given["root"]) == "/proc/1/root"
    assert given["log_all"] is (values == "everything")
    (node,) = [item for item in agent["env"] if item["name"] == "NODE_NAME"]
    assert node["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


def test_detaching_runs_once_on_each_node_in_the_agents_place(newest: Helm) -> None:
    usual, leaving = rendered(newest, "default"), rendered(newest, "detach")
    assert only(usual, "DaemonSet")["metadata"] == only(leaving, "DaemonSet")["metadata"]
    assert only(usual, "DaemonSet")["spec"]["selector"] == only(leaving, "DaemonSet")["spec"]["selector"]
    spec = pod(leaving)
    (detach,) = spec["initContainers"]
    assert detach["args"] == ["detach"]
    assert detach["securityContext"] == pod(usual)["containers"][0]["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    (idle,) = spec["containers"]
    assert idle["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert idle["securityContext"]["runAsNonRoot"] is True


# --- around it -------------------------------------------------------------------------------


def test_the_network_policy_lets_scrapers_in_and_only_the_api_server_out(newest: Helm) -> None:
    peer = '{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"monitoring"}}}'
    spec = only(rendered(newest, sets=(f"networkPolicy.from=[{peer}]",)), "NetworkPolicy")["spec"]
    (into,) = spec["ingress"]
    assert into["ports"] == [{"port": 9464, "protocol": "TCP"}]
    assert len(into["from"]) == 1
    (out,) = spec["egress"]
    assert [item["port"] for item in out["ports"]] == [443, 6443]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert not [item for item in rendered(newest, "everything") if item["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(
    ("sets", "kind", "endpoints"),
    [
        ("metrics.podMonitor.enabled=true", "PodMonitor", "podMetricsEndpoints"),
        ("metrics.serviceMonitor.enabled=true", "ServiceMonitor", "endpoints"),
    ],
)
def test_a_monitor_finds_the_pods_by_their_labels(newest: Helm, sets: str, kind: str, endpoints: str) -> None:
    found = rendered(newest, sets=(sets,))
    monitor = only(found, kind)["spec"]
    target = only(found, "Service") if kind == "ServiceMonitor" else template_of(found)
    assert monitor["selector"]["matchLabels"].items() <= target["metadata"]["labels"].items()
    assert target["metadata"]["labels"][monitor["jobLabel"]] == "kmodgate"
    (endpoint,) = monitor[endpoints]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
    if kind == "ServiceMonitor":
        assert target["spec"]["clusterIP"] == "None"
        assert target["spec"]["selector"].items() <= template_of(found)["metadata"]["labels"].items()


def test_a_pool_is_a_label_of_the_metrics_where_the_nodes_have_one(newest: Helm) -> None:
    sets = ("metrics.podMonitor.enabled=true", 'metrics.poolLabel="cloud.google.com/gke-nodepool"')
    spec = only(rendered(newest, sets=sets), "PodMonitor")["spec"]
    assert spec["attachMetadata"] == {"node": True}
    targets = {
        item["targetLabel"]: item["sourceLabels"] for item in spec["podMetricsEndpoints"][0]["relabelings"]
    }
    assert targets == {
        "node": ["__meta_kubernetes_pod_node_name"],
        "instance": ["__meta_kubernetes_pod_node_name"],
        "pool": ["__meta_kubernetes_node_label_cloud_google_com_gke_nodepool"],
    }
    plain = only(rendered(newest, sets=sets[:1]), "PodMonitor")["spec"]
    assert "attachMetadata" not in plain


def test_an_image_is_named_by_its_digest_where_there_is_one(newest: Helm) -> None:
    (agent,) = pod(rendered(newest, "enforce"))["containers"]
    assert agent["image"] == f"registry.example/kmodgate@sha256:{64 * '0'}"
    (agent,) = pod(rendered(newest, sets=('image.tag="7"',)))["containers"]
    assert agent["image"] == "kmodgate:7"
