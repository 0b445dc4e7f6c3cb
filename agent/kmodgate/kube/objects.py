# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods as the API server describes them, and of them only what kmodgate uses. Pure.

What comes from the API was written by users of the cluster: every string is bounded, every type
checked, and what is missing or odd is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

Json = dict[str, Any]

MAX_LABELS: Final = 500
_MAX_TEXT: Final = 512
_MAX_CONTAINERS: Final = 64
# The kubelet's own pods: what the API shows is a mirror, with a UID of its own. Their cgroup is
# named by the hash of the manifest, which stands here. Whoever makes pods can write it too, so it
# is taken only in the shape of such a hash, and a pod that really has the UID goes first.
_MIRROR: Final = "kubernetes.io/config.mirror"
_HASH: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_CONTAINER_ID: Final = re.compile(r"[a-z0-9-]{1,32}://([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class NodeObject:
    """A node.

    Attributes:
        name: of the node.
        uid: of the object.
        labels: of the node; at most ``MAX_LABELS``.
    """

    name: str
    uid: str | None
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ContainerObject:
    """A container of a pod: name, image as the pod asks for it, and id once it runs."""

    name: str
    image: str | None
    container_id: str | None


@dataclass(frozen=True, slots=True)
class PodObject:
    """A pod.

    Attributes:
        uid: of the object; for a static pod that of its mirror.
        cgroup_uid: what the kubelet names its cgroup by.
        owner: kind and name of the controller, a Deployment in place of its ReplicaSet.
        containers: of every sort: init, ephemeral, and of earlier runs what is still known.
    """

    uid: str
    cgroup_uid: str
    namespace: str
    name: str
    service_account: str | None = None
    owner: tuple[str, str] | None = None
    containers: tuple[ContainerObject, ...] = ()


def node_of(item: Json) -> NodeObject | None:
    """A Node; None when it is none."""
    metadata = _mapping(item.get("metadata"))
    name = _text(metadata.get("name"))
    if name is None:
        return None
    labels = {
        key: value
        for key, value in list(_mapping(metadata.get("labels")).items())[:MAX_LABELS]
        if isinstance(value, str) and len(key) <= _MAX_TEXT and len(value) <= _MAX_TEXT
    }
    return NodeObject(name, _text(metadata.get("uid")), MappingProxyType(labels))


def pod_of(item: Json) -> PodObject | None:
    """A Pod; None when it lacks what every pod has."""
    metadata, spec, status = (_mapping(item.get(part)) for part in ("metadata", "spec", "status"))
    uid, namespace, name = (_text(metadata.get(key)) for key in ("uid", "namespace", "name"))
    if uid is None or namespace is None or name is None:
        return None
    owner = _owner(metadata)
    mirrored = _text(_mapping(metadata.get("annotations")).get(_MIRROR)) or ""
    static = owner is not None and owner[0] == "Node" and _HASH.fullmatch(mirrored) is not None
    return PodObject(
        uid=uid,
        cgroup_uid=mirrored if static else uid,
        namespace=namespace,
        name=name,
        service_account=_text(spec.get("serviceAccountName")),
        owner=owner,
        containers=tuple(_containers(spec, status)),
    )


def _owner(metadata: Json) -> tuple[str, str] | None:
    for reference in _mappings(metadata.get("ownerReferences")):
        kind, name = _text(reference.get("kind")), _text(reference.get("name"))
        if reference.get("controller") is True and kind is not None and name is not None:
            # The Deployment's controller puts this label on its pods and names the ReplicaSet by it.
            template = _text(_mapping(metadata.get("labels")).get("pod-template-hash"))
            if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
                return "Deployment", name.removesuffix(f"-{template}")
            return kind, name
    return None


def _containers(spec: Json, status: Json) -> list[ContainerObject]:
    found: list[ContainerObject] = []
    for asked, running in (
        ("containers", "containerStatuses"),
        ("initContainers", "initContainerStatuses"),
        ("ephemeralContainers", "ephemeralContainerStatuses"),
    ):
        images = {_text(item.get("name")): _text(item.get("image")) for item in _mappings(spec.get(asked))}
        for item in _mappings(status.get(running)):
            name = _text(item.get("name"))
            if name is None:
                continue
            image = images.get(name) or _text(item.get("image"))
            ended = _mapping(_mapping(item.get("lastState")).get("terminated"))
            for state in (item, ended):
                match = _CONTAINER_ID.fullmatch(_text(state.get("containerID")) or "")
                if match is not None:
                    found.append(ContainerObject(name, image, match[1]))
    return found[:_MAX_CONTAINERS]


def _text(value: object) -> str | None:
    return value[:_MAX_TEXT] if isinstance(value, str) and value else None


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[Json]:
    return (
        [item for item in value[:_MAX_CONTAINERS] if isinstance(item, dict)]
        if isinstance(value, list)
        else []
    )
