# SPDX-License-Identifier: Apache-2.0
"""What a pod's object says, who a cgroup belongs to, and for how long that is remembered."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodgate.kube.cgroups import CgroupRef
from kmodgate.kube.objects import MAX_LABELS, node_of, pod_of
from kmodgate.kube.pods import KEEP_GONE, MAX_CONTAINERS_REMEMBERED, MAX_GONE, MAX_PODS, PodStore
from kmodgate.workload import Owner, Pod

UID = "0d3b1c52-95a1-4d0e-8f5e-0123456789ab"
HASH = "7a1f1e35f6f2d1b3a7f0c5f3d2b19e84"
IDS = [f"{index:064x}" for index in range(100)]


def pod(uid: str = UID, name: str = "web-5d8f-x7k2p", **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "metadata": {
            "uid": uid,
            "namespace": "shop",
            "name": name,
            "labels": {"pod-template-hash": "5d8f"},
            "ownerReferences": [
                {"kind": "Other", "name": "x"},
                {"kind": "ReplicaSet", "name": "web-5d8f", "controller": True},
            ],
        },
        "spec": {
            "serviceAccountName": "web",
            "containers": [{"name": "app", "image": "registry.example/web:2"}],
            "initContainers": [{"name": "setup", "image": "registry.example/setup:1"}],
        },
        "status": {
            "containerStatuses": [
                {
                    "name": "app",
                    "image": "docker.io/other:name",
                    "containerID": f"containerd://{IDS[1]}",
                    "lastState": {"terminated": {"containerID": f"containerd://{IDS[2]}"}},
                }
            ],
            "initContainerStatuses": [{"name": "setup", "containerID": f"cri-o://{IDS[3]}"}],
            "ephemeralContainerStatuses": [
                {"name": "debug", "image": "busybox", "containerID": f"docker://{IDS[4]}"}
            ],
        },
    }
    made["metadata"] |= changes
    return made


def whole(container: str | None, image: str | None) -> Pod:
    return Pod(UID, "shop", "web-5d8f-x7k2p", container, image, Owner("Deployment", "web"), "web")


@pytest.mark.parametrize(
    ("container_id", "container", "image"),
    [
        (IDS[1], "app", "registry.example/web:2"),
        (IDS[2], "app", "registry.example/web:2"),
        (IDS[3], "setup", "registry.example/setup:1"),
        (IDS[4], "debug", "busybox"),
        (IDS[9], None, None),
        (None, None, None),
    ],
)
def test_a_container_of_a_pod(container_id: str | None, container: str | None, image: str | None) -> None:
    store = PodStore()
    store.replaced([pod()])
    assert store.find(CgroupRef(UID, container_id)) == whole(container, image)


def test_a_container_whose_pod_cannot_be_seen_in_its_name() -> None:
    store = PodStore()
    store.changed(pod())
    assert store.find(CgroupRef(None, IDS[1])) == whole("app", "registry.example/web:2")
    assert store.find(CgroupRef(None, IDS[9])) is None


def test_a_pod_that_nobody_told_of_has_its_uid() -> None:
    assert PodStore().find(CgroupRef(UID, IDS[1])) == Pod(UID)


def test_the_containers_of_another_pod_say_nothing() -> None:
    store = PodStore()
    other = "11111111-95a1-4d0e-8f5e-0123456789ab"
    store.replaced([pod(), {**pod(other, "other"), "status": {}}])
    found = store.find(CgroupRef(other, IDS[1]))
    assert found is not None
    assert (found.name, found.container) == ("other", None)


def static_pod(**changes: Any) -> dict[str, Any]:
    node = [{"kind": "Node", "name": "node-a", "controller": True}]
    mirror = {"kubernetes.io/config.mirror": HASH}
    return pod(**({"ownerReferences": node, "annotations": mirror} | changes))


def test_a_static_pod_is_found_by_the_hash_in_its_cgroup() -> None:
    store = PodStore()
    store.replaced([static_pod()])
    for uid in (HASH, UID):
        found = store.find(CgroupRef(uid, IDS[1]))
        assert found is not None
        assert (found.uid, found.name, found.owner) == (UID, "web-5d8f-x7k2p", Owner("Node", "node-a"))


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": {"kubernetes.io/config.mirror": UID}},
        {"annotations": {"kubernetes.io/config.hash": HASH}},
        {"ownerReferences": []},
        {"ownerReferences": [{"kind": "ReplicaSet", "name": "x", "controller": True}]},
    ],
)
def test_a_pod_cannot_pose_as_another_one(changes: dict[str, Any]) -> None:
    store = PodStore()
    store.replaced([static_pod(uid="22222222-95a1-4d0e-8f5e-0123456789ab", **changes)])
    assert store.find(CgroupRef(HASH)) == Pod(HASH)
    assert store.find(CgroupRef(UID)) == Pod(UID)


def test_a_pod_that_is_gone_is_remembered_for_a_while() -> None:
    now = [0.0]
    store = PodStore(lambda: now[0])
    store.changed(pod())
    store.deleted({**pod(), "status": {}})
    now[0] = KEEP_GONE - 1
    assert store.find(CgroupRef(UID, IDS[1])) == whole("app", "registry.example/web:2")
    now[0] = KEEP_GONE + 1
    assert store.find(CgroupRef(UID, IDS[1])) == Pod(UID)
    assert store.find(CgroupRef(None, IDS[1])) is None


def test_a_pod_that_a_new_list_lacks_is_gone_too() -> None:
    store = PodStore()
    store.replaced([pod()])
    store.replaced([])
    assert len(store) == 0
    assert store.find(CgroupRef(UID, IDS[1])) == whole("app", "registry.example/web:2")


def test_a_container_that_was_replaced_is_remembered_with_its_pod() -> None:
    store = PodStore()
    store.changed(pod())
    later = pod()
    for restart in range(10, 99):
        later["status"] = {
            "containerStatuses": [{"name": "app", "containerID": f"containerd://{IDS[restart]}"}]
        }
        store.changed(later)
    found = store.find(CgroupRef(UID, IDS[97]))
    assert found is not None
    assert found.container == "app"
    known = [uid for uid in IDS if (hit := store.find(CgroupRef(UID, uid))) is not None and hit.container]
    assert len(known) == MAX_CONTAINERS_REMEMBERED


def test_what_is_remembered_is_bounded() -> None:
    store = PodStore()
    for index in range(MAX_PODS + 500):
        store.changed(pod(f"uid-{index}", f"p{index}"))
    assert len(store) == MAX_PODS
    for index in range(MAX_PODS):
        store.deleted(pod(f"uid-{index}", f"p{index}"))
    named = [
        i for i in range(MAX_PODS) if (hit := store.find(CgroupRef(f"uid-{i}"))) and hit.name is not None
    ]
    assert len(named) == MAX_GONE


def test_a_bare_replica_set_stays_one() -> None:
    item = pod()
    item["metadata"]["labels"] = {}
    parsed = pod_of(item)
    assert parsed is not None
    assert parsed.owner == ("ReplicaSet", "web-5d8f")


def test_the_labels_of_a_node() -> None:
    node = node_of(
        {"metadata": {"name": "a", "uid": "u", "labels": {"pool": "gpu", "odd": 7, "long": "x" * 600}}}
    )
    assert node is not None
    assert dict(node.labels) == {"pool": "gpu"}
    many = node_of({"metadata": {"name": "a", "labels": {f"l{i}": "" for i in range(5000)}}})
    assert many is not None
    assert len(many.labels) == MAX_LABELS
    assert node_of({"metadata": {"labels": {}}}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "spec",
                    "status",
                    "uid",
                    "name",
                    "namespace",
                    "labels",
                    "annotations",
                    "ownerReferences",
                    "containers",
                    "image",
                    "containerStatuses",
                    "containerID",
                    "lastState",
                    "terminated",
                    "kind",
                    "controller",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=40,
)


@given(st.dictionaries(st.sampled_from(["metadata", "spec", "status"]), JSON))
def test_no_object_does_any_harm(item: dict[str, Any]) -> None:
    node_of(item)
    store = PodStore()
    store.changed(item)
    store.replaced([item])
    store.deleted(item)


@given(JSON, JSON)
def test_no_part_of_a_pod_does_any_harm(spec: Any, status: Any) -> None:
    store = PodStore()
    store.replaced([{**pod(), "spec": spec, "status": status}])
    found = store.find(CgroupRef(UID, IDS[1]))
    assert found is not None
    assert found.name == "web-5d8f-x7k2p"
