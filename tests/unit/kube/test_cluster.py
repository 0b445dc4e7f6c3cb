# SPDX-License-Identifier: Apache-2.0
"""The agent in a cluster, and what it does while the API server is away. The server is a mock."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.unit.kube.conftest import Eventually
from tests.unit.kube.mock_apiserver import Handler, MockApiServer

from kmodgate import cluster as cluster_module
from kmodgate.cluster import Cluster
from kmodgate.config import NodeConfig
from kmodgate.config.watch import Debounce
from kmodgate.errors import ConfigError, NodeError
from kmodgate.kube.api import ApiError, Place
from kmodgate.kube.cgroups import CgroupRef
from kmodgate.kube.nodelabels import look_up_labels
from kmodgate.model import (
    Api,
    By,
    EffectivePolicy,
    LoadEvent,
    Mode,
    Policy,
    Reason,
    Signer,
    Verdict,
)
from kmodgate.settings import Settings
from kmodgate.signature import TrustStore
from kmodgate.telemetry.status import StatusSnapshot
from kmodgate.workload import Pod, Workload

NODES, PODS = "/api/v1/nodes", "/api/v1/pods"
UID = "0d3b1c52-95a1-4d0e-8f5e-0123456789ab"
ID = "8f2b6f0b8f3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6"
ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
SETTINGS = Settings(NodeConfig(kubernetes_condition=True, pool="gpu"), ENFORCE, TrustStore(), b"")
RUNNING = StatusSnapshot(policy=ENFORCE, enforcing=True, reload_successful=True)
EVENT = LoadEvent(
    time=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    verdict=Verdict.DENY,
    reason=Reason.UNTRUSTED_SIGNER,
    by=By.KMODGATE,
    mode=Mode.ENFORCE,
    policy=Policy.ENFORCE,
    api=Api.FINIT_MODULE,
    errno=129,
    module="evil\x1b[2J",
    path="/tmp/evil.ko",
    signer=Signer(subject="CN=Somebody"),
    comm="insmod",
    pid=4711,
    workload=Workload.POD,
    container_id=ID,
    pod=Pod(UID, "drivers", "loader-0", "loader"),
)


def node(**labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "node-a", "uid": "n", "labels": labels}}


def pod() -> dict[str, Any]:
    return {
        "metadata": {"uid": UID, "namespace": "drivers", "name": "loader-0"},
        "status": {"containerStatuses": [{"name": "loader", "containerID": f"containerd://{ID}"}]},
    }


Make = Callable[..., Cluster]


@pytest.fixture
def make(server: MockApiServer, tmp_path: Path) -> Iterator[Make]:
    made: list[Cluster] = []

    def build(given: dict[str, str] | None = None, reload: Debounce | None = None) -> Cluster:
        cluster = Cluster(
            given,
            reload,
            environment={"NODE_NAME": "node-a"},
            state=tmp_path / "state",
            place=server.place,
        )
        made.append(cluster)
        return cluster.__enter__()

    yield build
    for cluster in made:
        cluster.__exit__(None, None, None)


def test_outside_a_cluster_nothing_is_known_and_nothing_said(tmp_path: Path) -> None:
    with Cluster(environment={}, account=tmp_path, state=tmp_path) as alone:
        assert not alone.joined
        assert alone.labels() is None
        assert alone.attributor(tmp_path).of(1, 1, 0).pod is None
        alone.in_force(SETTINGS)
        alone.tell(EVENT)
        alone.look(RUNNING, None)
        alone.refused(NodeError("x"))
    with Cluster({"a": "b"}, environment={"NODE_NAME": "n"}, account=tmp_path, state=tmp_path) as named:
        assert named.labels() == {"a": "b"}
        assert named.node == "n"


def test_the_labels_come_from_the_own_node(server: MockApiServer, make: Make) -> None:
    server.put(NODES, node(pool="gpu"))
    assert make().labels() == {"pool": "gpu"}
    assert {query["fieldSelector"] for _, query, _ in server.asked("GET")} <= {
        "metadata.name=node-a",
        "spec.nodeName=node-a",
    }


def test_the_end_is_quiet(
    server: MockApiServer, tmp_path: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(NODES, node())
    with Cluster(environment={"NODE_NAME": "node-a"}, state=tmp_path / "s", place=server.place) as cluster:
        eventually(lambda: cluster.watches() == {"node": True, "pods": True})
    assert caplog.text == ""


def test_labels_on_the_command_line_go_first(
    server: MockApiServer, make: Make, eventually: Eventually
) -> None:
    server.put(NODES, node(pool="gpu"))
    reload = Debounce()
    cluster = make({"pool": "cpu"}, reload)
    eventually(lambda: select.select([cluster], [], [], 0)[0])
    cluster.receive()
    assert cluster.labels() == {"pool": "cpu"}
    assert reload.wait(time.monotonic()) is None


def test_a_new_label_is_noticed_and_a_heartbeat_is_not(
    server: MockApiServer, make: Make, eventually: Eventually
) -> None:
    server.put(NODES, node(pool="cpu"))
    reload = Debounce()
    cluster = make(None, reload)
    assert cluster.labels() == {"pool": "cpu"}
    assert not select.select([cluster], [], [], 0)[0], "what labels() has told is no news"
    server.put(NODES, {**node(pool="cpu"), "status": {"heartbeat": 2}})
    server.put(NODES, {"metadata": {"name": "node-b", "labels": {"pool": "evil"}}})
    server.put(NODES, node(pool="gpu"))
    eventually(lambda: select.select([cluster], [], [], 0)[0])
    cluster.receive()
    assert reload.due(time.monotonic() + 1)
    assert cluster.labels() == {"pool": "gpu"}


def test_the_note_stands_in_while_the_server_is_away(
    server: MockApiServer, make: Make, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_NOTED_WAIT", 0.05)
    server.put(NODES, node(pool="gpu"))
    assert make().labels() == {"pool": "gpu"}
    eventually((tmp_path / "state/node-labels.json").exists)
    server.faults["watch"] = [lambda handler: handler.send_status(503, "down")] * 1000
    assert make().labels() == {"pool": "gpu"}


@pytest.mark.parametrize(
    "note",
    [
        "",
        "[]",
        "[" * 50_000,
        json.dumps({"name": "node-b", "labels": {"pool": "evil"}}),
        json.dumps({"labels": {"pool": "evil"}}),
    ],
)
def test_a_note_of_another_node_or_none_is_not_taken(
    server: MockApiServer, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: str
) -> None:
    monkeypatch.setattr(cluster_module, "LABELS_WAIT", 0.05)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/node-labels.json").write_text(note)
    server.faults["watch"] = [lambda handler: handler.send_status(403, "forbidden")] * 1000
    with pytest.raises(NodeError, match="labels of node node-a are not known"):
        make().labels()


def test_a_running_agent_waits_for_no_labels(
    server: MockApiServer, make: Make, eventually: Eventually
) -> None:
    server.faults["watch"] = [lambda handler: handler.send_status(503, "down")] * 2
    reload = Debounce()
    cluster = make(None, reload)
    cluster.in_force(SETTINGS)
    began = time.monotonic()
    with pytest.raises(NodeError, match="not known"):
        cluster.labels()
    assert time.monotonic() - began < 5
    server.put(NODES, node(pool="gpu"))
    eventually(lambda: select.select([cluster], [], [], 0)[0])
    cluster.receive()
    assert reload.due(time.monotonic() + 1)
    assert cluster.labels() == {"pool": "gpu"}


def test_a_pod_is_known_by_its_container(server: MockApiServer, make: Make, eventually: Eventually) -> None:
    server.put(PODS, pod())
    cluster = make()
    eventually(lambda: cluster.watches() == {"node": True, "pods": True})
    found = cluster._find(CgroupRef(None, ID))
    assert found is not None
    assert (found.name, found.container) == ("loader-0", "loader")


def posted(server: MockApiServer) -> list[dict[str, Any]]:
    return [body for _, _, body in server.asked("POST") if body is not None]


def test_a_denial_becomes_an_event_whose_strings_are_harmless(
    server: MockApiServer, make: Make, eventually: Eventually
) -> None:
    cluster = make()
    cluster.in_force(SETTINGS)
    cluster.tell(EVENT)
    cluster.tell(replace(EVENT, verdict=Verdict.ALLOW))
    cluster.tell(replace(EVENT, pod=None))
    eventually(lambda: posted(server))
    (body,) = posted(server)
    assert body["reason"] == "KernelModuleDenied"
    assert body["involvedObject"]["uid"] == UID
    assert body["message"] == (
        "kernel module evil\\x1b[2J was refused: untrusted_signer; ENFORCE_SIGNED_MODULES, EKEYREJECTED by "
        "kmodgate; file /tmp/evil.ko; signer CN=Somebody; process insmod[4711]"
    )
    eventually(lambda: cluster.notices() == {"sent": 1, "dropped": 0, "refused": 0})


def test_audit_says_that_it_would(server: MockApiServer, make: Make, eventually: Eventually) -> None:
    cluster = make()
    cluster.in_force(SETTINGS)
    cluster.tell(replace(EVENT, verdict=Verdict.WOULD_DENY))
    eventually(lambda: posted(server))
    assert posted(server)[0]["reason"] == "KernelModuleWouldBeDenied"


def test_a_pod_that_is_not_known_yet_gets_its_event_when_it_is(
    server: MockApiServer, make: Make, eventually: Eventually
) -> None:
    cluster = make()
    cluster.in_force(SETTINGS)
    cluster.tell(replace(EVENT, pod=Pod(UID)))
    cluster.look(RUNNING, None)
    assert not posted(server)
    server.put(PODS, pod())

    def told() -> bool:
        cluster.look(RUNNING, None)
        time.sleep(0.05)
        return bool(posted(server))

    eventually(told)
    assert posted(server)[0]["involvedObject"]["name"] == "loader-0"


def test_events_can_be_switched_off(server: MockApiServer, make: Make, eventually: Eventually) -> None:
    cluster = make()
    cluster.in_force(replace(SETTINGS, config=NodeConfig(kubernetes_events=False)))
    cluster.tell(EVENT)
    cluster.look(RUNNING, "hooks are dead")
    eventually(lambda: cluster.watches()["node"])
    assert not posted(server)
    assert not server.asked("PATCH")


def conditions(server: MockApiServer) -> list[tuple[str, str, str]]:
    found = [body["status"]["conditions"][0] for _, _, body in server.asked("PATCH") if body is not None]
    return [(c["status"], c["reason"], c["message"]) for c in found]


def test_the_condition_follows_what_is_in_force(
    server: MockApiServer, make: Make, eventually: Eventually
) -> None:
    cluster = make()
    cluster.in_force(SETTINGS)
    expected = [("True", "Enforcing", "ENFORCE_SIGNED_MODULES, mode enforce, node pool gpu")]
    for _ in range(3):
        cluster.look(RUNNING, None)
    eventually(lambda: conditions(server) == expected)
    cluster.look(RUNNING, "the probe was not refused")
    expected.append(("False", "NotEnforcing", "the probe was not refused"))
    eventually(lambda: conditions(server) == expected)
    cluster.refused(NodeError("cgroup v1"))
    cluster.look(replace(RUNNING, reload_successful=False), None)
    expected.append(("False", "NodeCannotComply", "the last good config stays in force: cgroup v1"))
    eventually(lambda: conditions(server) == expected)
    cluster.look(RUNNING, None)
    expected.append(expected[0])
    eventually(lambda: conditions(server) == expected)
    eventually(lambda: len(posted(server)) == 3)
    assert [(body["reason"], body["type"]) for body in posted(server)] == [
        ("NotEnforcing", "Warning"),
        ("NodeCannotComply", "Warning"),
        ("KernelModulePolicyInForce", "Normal"),
    ]
    assert posted(server)[0]["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": "node-a",
        "uid": "node-a",
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NodeError("this node cannot enforce: needs cgroup v2"), "NodeCannotComply"),
        (ConfigError("unknown key"), "ConfigRefused"),
    ],
)
def test_a_node_that_cannot_comply_says_so_before_the_agent_ends(
    server: MockApiServer, tmp_path: Path, error: NodeError | ConfigError, reason: str
) -> None:
    server.put(NODES, node())
    with (
        pytest.raises(type(error)),
        Cluster(environment={"NODE_NAME": "node-a"}, state=tmp_path / "s", place=server.place),
    ):
        raise error
    assert [body["reason"] for body in posted(server)] == [reason]
    assert str(error) in posted(server)[0]["message"]
    assert [(status, word) for status, word, _ in conditions(server)] == [("False", reason)]


def test_commands_ask_once(server: MockApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NodeError, match="--node-label"):
        look_up_labels("node-a", tmp_path, {})
    with pytest.raises(NodeError, match="no name"):
        look_up_labels("../x", tmp_path, {})
    monkeypatch.setattr(Place, "in_cluster", lambda *_: server.place)

    def answer(handler: Handler) -> bool:
        handler.send(200, json.dumps(node(pool="gpu")).encode())
        return True

    server.faults["list"] = [answer]
    assert look_up_labels("node-a", tmp_path, {}) == ({"pool": "gpu"}, "labels of node node-a")
    assert server.asked("GET") == [("/api/v1/nodes/node-a", {}, None)]
    server.faults["list"] = [lambda handler: handler.send_status(404, "not found")]
    with pytest.raises(ApiError, match="404"):
        look_up_labels("node-b", tmp_path, {})


def test_commands_take_the_note_while_the_server_is_away(
    server: MockApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "in_cluster", lambda *_: replace(server.place, port=1))
    with pytest.raises(ApiError, match="refused"):
        look_up_labels("node-a", tmp_path, {})
    (tmp_path / "node-labels.json").write_text(json.dumps({"name": "node-a", "labels": {"pool": "gpu"}}))
    labels, where = look_up_labels("node-a", tmp_path, {})
    assert labels == {"pool": "gpu"}
    assert "as the agent noted them" in where
