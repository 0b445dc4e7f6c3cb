# SPDX-License-Identifier: Apache-2.0
"""The pods of this node, and for a while those that are gone: a refusal may be told after its pod.

This module does no I/O. The reflector's thread writes, the agent's loop reads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from kmodgate.workload import Owner, Pod

from .cgroups import CgroupRef
from .objects import ContainerObject, Json, PodObject, pod_of

MAX_PODS: Final = 2000
"""Far more than a kubelet runs; what comes beyond is not known by name."""
MAX_GONE: Final = 256
MAX_CONTAINERS_REMEMBERED: Final = 64
"""Containers of one pod, earlier ones included."""
KEEP_GONE: Final = 600.0
"""Seconds that a pod is remembered after it was deleted."""


class PodStore:
    """The sink of the pod watch. Safe to use from any thread.

    Args:
        now: seconds on a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._pods: dict[str, PodObject] = {}
        self._gone: OrderedDict[str, tuple[float, PodObject]] = OrderedDict()
        self._by_cgroup: dict[str, PodObject] = {}
        self._by_container: dict[str, tuple[PodObject, ContainerObject]] = {}

    def replaced(self, objects: list[Json]) -> None:
        """The pods of this node are these."""
        pods = {pod.uid: pod for item in objects[:MAX_PODS] if (pod := pod_of(item)) is not None}
        with self._lock:
            for uid in self._pods.keys() - pods.keys():
                self._bury(self._pods[uid])
            self._pods = pods
            self._index()

    def changed(self, item: Json) -> None:
        """A pod came or changed."""
        pod = pod_of(item)
        if pod is None:
            return
        with self._lock:
            if pod.uid in self._pods or len(self._pods) < MAX_PODS:
                before = self._pods.get(pod.uid)
                if before is not None:
                    pod = _with_earlier_containers(pod, before)
                self._pods[pod.uid] = pod
                self._index()

    def deleted(self, item: Json) -> None:
        """A pod went away."""
        pod = pod_of(item)
        if pod is None:
            return
        with self._lock:
            known = self._pods.pop(pod.uid, None)
            # The last object may lack its status; what was known is better.
            self._bury(pod if known is None else _with_earlier_containers(pod, known))
            self._index()

    def __len__(self) -> int:
        return len(self._pods)

    def find(self, ref: CgroupRef) -> Pod | None:
        """The pod of a cgroup, with all that is known of it; None when the cgroup is in no pod.

        A container id alone is enough where the pod stands in no name that can be seen.
        """
        with self._lock:
            self._forget()
            pod = self._by_cgroup.get(ref.pod_uid or "")
            entry = self._by_container.get(ref.container_id or "")
        if ref.pod_uid is None:
            if entry is None:
                return None
            pod = entry[0]
        if pod is None:
            return Pod(ref.pod_uid or "")
        # A container that is said to be another pod's says nothing of this one.
        container = entry[1] if entry is not None and entry[0].uid == pod.uid else None
        return Pod(
            uid=pod.uid,
            namespace=pod.namespace,
            name=pod.name,
            container=None if container is None else container.name,
            image=None if container is None else container.image,
            owner=None if pod.owner is None else Owner(*pod.owner),
            service_account=pod.service_account,
        )

    def _bury(self, pod: PodObject) -> None:
        self._gone.pop(pod.uid, None)
        self._gone[pod.uid] = (self._now() + KEEP_GONE, pod)
        while len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)

    def _forget(self) -> None:
        forgotten = False
        while self._gone and next(iter(self._gone.values()))[0] < self._now():
            self._gone.popitem(last=False)
            forgotten = True
        if forgotten:
            self._index()

    def _all(self) -> Iterator[PodObject]:
        """Those that are there last: they win."""
        yield from (pod for _, pod in self._gone.values())
        yield from self._pods.values()

    def _index(self) -> None:
        pods = list(self._all())
        self._by_cgroup = {pod.cgroup_uid: pod for pod in pods} | {pod.uid: pod for pod in pods}
        self._by_container = {
            container.container_id: (pod, container)
            for pod in pods
            for container in pod.containers
            if container.container_id is not None
        }


def _with_earlier_containers(pod: PodObject, before: PodObject) -> PodObject:
    """The pod with the ids of containers that it had and no longer tells: they may have done it."""
    known = {container.container_id for container in pod.containers}
    earlier = [container for container in before.containers if container.container_id not in known]
    if not earlier:
        return pod
    return PodObject(
        uid=pod.uid,
        cgroup_uid=pod.cgroup_uid,
        namespace=pod.namespace,
        name=pod.name,
        service_account=pod.service_account,
        owner=pod.owner,
        containers=(*pod.containers, *earlier)[:MAX_CONTAINERS_REMEMBERED],
    )
