# SPDX-License-Identifier: Apache-2.0
"""The agent's side of a cluster against a real kube-apiserver: watch, relabel, events, condition, RBAC.

``make test-apiserver`` builds the server. There is no kubelet: pods and their status are written by
the test, and nothing runs in them.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.apiserver.control_plane import ControlPlane
from vmtool import controlplane

from kmodgate.cluster import Cluster
from kmodgate.config import NodeConfig
from kmodgate.config.watch import Debounce
from kmodgate.kube.api import Api, ApiError, Place
from kmodgate.kube.cgroups import CgroupRef
from kmodgate.kube.reflector import Reflector
from kmodgate.model import Api as SystemCall
from kmodgate.model import By, EffectivePolicy, LoadEvent, Mode, Policy, Reason, Verdict
from kmodgate.settings import Settings
from kmodgate.signature import TrustStore
from kmodgate.telemetry.status import StatusSnapshot
from kmodgate.workload import Owner, Pod

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(1800)]

NODE = "node-a"
IDS = [f"{index:064x}" for index in range(1, 200)]
POLICY = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
SETTINGS = Settings(NodeConfig(kubernetes_condition=True, pool="gpu"), POLICY, TrustStore(), b"")
RUNNING = StatusSnapshot(policy=POLICY, enforcing=True, reload_successful=True)


def eventually(holds: Callable[[], object]) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < 60, "it never came true"
        time.sleep(0.005)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    made = ControlPlane(controlplane.get(), tmp_path_factory.mktemp("plane"))
    try:
        made.start()
        made.call("POST", "/api/v1/nodes", {"metadata": {"name": NODE, "labels": {"pool": "cpu"}}})
        made.call("POST", "/api/v1/nodes", {"metadata": {"name": "node-b", "labels": {"pool": "other"}}})
        made.call("POST", "/api/v1/namespaces", {"metadata": {"name": "drivers"}})
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def place(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return plane.account(tmp_path_factory.mktemp("account"))


@pytest.fixture
def reload() -> Debounce:
    return Debounce()


@pytest.fixture
def cluster(place: Place, tmp_path: Path, reload: Debounce) -> Iterator[Cluster]:
    with Cluster(None, reload, environment={"NODE_NAME": NODE}, state=tmp_path, place=place) as made:
        eventually(lambda: made.watches() == {"node": True, "pods": True})
        made.in_force(SETTINGS)
        yield made


def relabel(plane: ControlPlane, pool: str) -> None:
    plane.patch(f"/api/v1/nodes/{NODE}", {"metadata": {"labels": {"pool": pool}}})


def pod_of_a_driver(name: str, container_id: str, node: str = NODE) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "drivers",
            "labels": {"pod-template-hash": "5d8f"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "loader-5d8f",
                    "uid": "x",
                    "controller": True,
                }
            ],
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "driver",
            "containers": [{"name": "loader", "image": "registry.example/loader:1"}],
        },
        "status": {
            "containerStatuses": [
                {
                    "name": "loader",
                    "image": "registry.example/loader:1",
                    "imageID": "",
                    "ready": True,
                    "restartCount": 0,
                    "containerID": f"containerd://{container_id}",
                }
            ]
        },
    }


def create(plane: ControlPlane, pod: dict[str, Any]) -> str:
    """A pod with its status; returns its UID."""
    made = plane.call("POST", "/api/v1/namespaces/drivers/pods", pod)
    path = f"/api/v1/namespaces/drivers/pods/{pod['metadata']['name']}"
    plane.patch(f"{path}/status", {"status": pod["status"]})
    return str(made["metadata"]["uid"])


def delete(plane: ControlPlane, name: str) -> None:
    plane.call("DELETE", f"/api/v1/namespaces/drivers/pods/{name}?gracePeriodSeconds=0")


def test_a_relabel_is_seen_at_once(plane: ControlPlane, cluster: Cluster, reload: Debounce) -> None:
    assert cluster.labels() is not None
    times = []
    for pool in ("gpu", "cpu", "gpu", "cpu"):
        relabel(plane, pool)
        times.append(eventually(lambda: select.select([cluster], [], [], 0)[0]))
        cluster.receive()
        assert reload.due(time.monotonic() + 1)
        assert (cluster.labels() or {})["pool"] == pool
    print(f"relabel to notice: {max(times) * 1e3:.0f} ms at most of {len(times)}")
    plane.patch("/api/v1/nodes/node-b", {"metadata": {"labels": {"pool": "gpu"}}})
    plane.patch(f"/api/v1/nodes/{NODE}", {"metadata": {"annotations": {"x": str(time.time())}}})
    time.sleep(0.5)
    assert not select.select([cluster], [], [], 0)[0]


def test_pods_of_this_node_come_and_go(plane: ControlPlane, cluster: Cluster) -> None:
    uid = create(plane, pod_of_a_driver("loader-1", IDS[0]))
    create(plane, pod_of_a_driver("elsewhere", IDS[1], node="node-b"))
    expected = Pod(
        uid,
        "drivers",
        "loader-1",
        "loader",
        "registry.example/loader:1",
        Owner("Deployment", "loader"),
        "driver",
    )
    eventually(lambda: cluster._find(CgroupRef(uid, IDS[0])) == expected)
    assert cluster._find(CgroupRef(None, IDS[0])) == expected
    assert cluster._find(CgroupRef(None, IDS[1])) is None
    delete(plane, "loader-1")
    delete(plane, "elsewhere")
    store = cluster._pods
    assert store is not None
    eventually(lambda: len(store) == 0)
    assert cluster._find(CgroupRef(uid, IDS[0])) == expected


def denial(uid: str, **changes: Any) -> LoadEvent:
    event = LoadEvent(
        time=datetime.now(UTC),
        verdict=Verdict.DENY,
        reason=Reason.UNSIGNED,
        by=By.KMODGATE,
        mode=Mode.ENFORCE,
        policy=Policy.ENFORCE,
        api=SystemCall.FINIT_MODULE,
        errno=129,
        module="vendor",
        comm="insmod",
        pid=4711,
        pod=Pod(uid, "drivers", "loader-2", "loader"),
    )
    return replace(event, **changes)


def events(plane: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    return list(plane.call("GET", f"/api/v1/namespaces/{namespace}/events")["items"])


def test_a_denial_is_an_event_of_its_pod(plane: ControlPlane, cluster: Cluster) -> None:
    uid = create(plane, pod_of_a_driver("loader-2", IDS[2]))
    cluster.tell(denial(uid))
    took = eventually(lambda: events(plane, "drivers"))
    print(f"denial to event: {took * 1e3:.0f} ms")
    for _ in range(99):
        cluster.tell(denial(uid))
    eventually(lambda: events(plane, "drivers")[0]["count"] == 100)
    (event,) = events(plane, "drivers")
    assert (event["reason"], event["type"]) == ("KernelModuleDenied", "Warning")
    assert event["involvedObject"]["uid"] == uid
    assert event["involvedObject"]["fieldPath"] == "spec.containers{loader}"
    assert "kernel module vendor was refused: unsigned" in event["message"]
    assert cluster.notices() == {"sent": 2, "dropped": 0, "refused": 0}
    delete(plane, "loader-2")


def condition(plane: ControlPlane) -> tuple[str, str] | None:
    found = plane.call("GET", f"/api/v1/nodes/{NODE}")["status"].get("conditions", [])
    return next(((c["status"], c["reason"]) for c in found if c["type"] == "KernelModulePolicy"), None)


def test_the_condition_of_the_node(plane: ControlPlane, cluster: Cluster) -> None:
    other = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    plane.patch(f"/api/v1/nodes/{NODE}/status", {"status": {"conditions": [other]}})
    cluster.look(RUNNING, None)
    eventually(lambda: condition(plane) == ("True", "Enforcing"))
    cluster.look(RUNNING, "the probe was let in")
    eventually(lambda: condition(plane) == ("False", "NotEnforcing"))
    eventually(lambda: [e["reason"] for e in events(plane, "default")] == ["NotEnforcing"])
    conditions = plane.call("GET", f"/api/v1/nodes/{NODE}")["status"]["conditions"]
    assert {item["type"] for item in conditions} == {"Ready", "KernelModulePolicy"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("get", "/api/v1/nodes", None),
        ("get", "/api/v1/secrets", None),
        ("get", "/api/v1/namespaces/drivers/pods/x", None),
        ("get", "/api/v1/namespaces/kmodgate/configmaps", None),
        ("post", "/api/v1/namespaces/drivers/pods", pod_of_a_driver("evil", IDS[9])),
        ("patch", f"/api/v1/nodes/{NODE}", {"metadata": {"labels": {"pool": "evil"}}}),
        ("patch", "/api/v1/namespaces/drivers/pods/x", {"metadata": {"labels": {"a": "b"}}}),
        ("post", "/api/v1/namespaces/drivers/serviceaccounts/default/token", {"spec": {}}),
    ],
)
def test_what_the_agent_may_not_do_is_refused(
    place: Place, method: str, path: str, body: dict[str, Any] | None
) -> None:
    api = Api(place)
    with pytest.raises(ApiError) as caught:
        getattr(api, method)(path, *([] if body is None else [body]))
    assert caught.value.status == 403


def test_a_wrong_token_and_a_wrong_authority_are_told_apart(
    place: Place, plane: ControlPlane, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("x")
    with pytest.raises(ApiError, match="401"):
        Api(replace(place, token=tmp_path / "token")).get(f"/api/v1/nodes/{NODE}")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other"),
            *("-keyout", tmp_path / "key", "-out", tmp_path / "ca.crt"),
        ],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ApiError, match="certificate is not good"):
        Api(replace(place, authority=tmp_path / "ca.crt")).get(f"/api/v1/nodes/{NODE}")
    assert plane.call("GET", "/readyz") == {}


class Names:
    """A sink."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.lists = 0

    def replaced(self, objects: list[dict[str, Any]]) -> None:
        self.lists += 1
        self.names = {item["metadata"]["name"] for item in objects}

    def changed(self, item: dict[str, Any]) -> None:
        self.names.add(item["metadata"]["name"])

    def deleted(self, item: dict[str, Any]) -> None:
        self.names.discard(item["metadata"]["name"])


def test_a_version_that_is_gone_means_a_new_list(plane: ControlPlane, place: Place) -> None:
    create(plane, pod_of_a_driver("loader-3", IDS[3]))
    plane.stop()
    plane.start()  # its cache begins anew, and knows nothing of what was before
    api, sink = Api(place), Names()
    with pytest.raises(ApiError) as caught, api.watch("/api/v1/pods", {"resourceVersion": "1"}, 10) as stream:
        next(stream)
    assert caught.value.status == 410
    reflector = Reflector(api, "/api/v1/pods", f"spec.nodeName={NODE}", sink)
    reflector._version = "1"
    reflector.start()
    eventually(lambda: sink.names == {"loader-3"} and reflector.problem is None)
    assert sink.lists == 1
    delete(plane, "loader-3")
    eventually(lambda: not sink.names)
    api.close()
    reflector.stop(20)


def test_the_server_goes_away_and_comes_back(
    plane: ControlPlane, place: Place, cluster: Cluster, tmp_path: Path
) -> None:
    relabel(plane, "gpu")
    eventually(lambda: (cluster.labels() or {})["pool"] == "gpu")
    plane.stop()
    eventually(lambda: cluster.watches() == {"node": False, "pods": False})
    assert (cluster.labels() or {})["pool"] == "gpu"
    cluster.tell(denial("0d3b1c52-95a1-4d0e-8f5e-0123456789ab", pod=Pod("u", "drivers", "later")))
    with Cluster(environment={"NODE_NAME": NODE}, state=tmp_path, place=place) as second:
        assert (second.labels() or {})["pool"] == "gpu", "from the note"
    plane.start()
    eventually(lambda: cluster.watches() == {"node": True, "pods": True})
    relabel(plane, "cpu")
    eventually(lambda: (cluster.labels() or {})["pool"] == "cpu")
    eventually(lambda: any(e["involvedObject"]["name"] == "later" for e in events(plane, "drivers")))


MEASURE = """
import sys, time, json
from pathlib import Path
import prometheus_client, kmodgate.agent
from kmodgate.cluster import Cluster
from kmodgate.kube.api import Place

def rss():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

host, port, token, authority, state = sys.argv[1:]
before = rss()
place = Place(host, int(port), Path(token), Path(authority))
with Cluster(environment={"NODE_NAME": "node-a"}, state=Path(state), place=place) as cluster:
    while len(cluster._pods) < 110:
        time.sleep(0.05)
    time.sleep(1)
    print(json.dumps([before, rss()]))
"""


def test_the_memory_that_a_full_node_takes(plane: ControlPlane, place: Place, tmp_path: Path) -> None:
    filler = {f"example.com/note-{index}": "x" * 400 for index in range(15)}
    for index in range(110):
        pod = pod_of_a_driver(f"full-{index}", IDS[index])
        pod["metadata"]["annotations"] = filler
        create(plane, pod)
    arguments = [place.host, place.port, place.token, place.authority, tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    before, after = json.loads(done.stdout)
    print(f"resident memory: {before / 1024:.1f} MiB before, {after / 1024:.1f} MiB with 110 pods")
    assert after - before < 16 << 10
    for index in range(110):
        delete(plane, f"full-{index}")
