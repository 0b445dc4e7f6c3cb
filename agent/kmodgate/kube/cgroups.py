# SPDX-License-Identifier: Apache-2.0
"""From the name of a cgroup to the pod and container that it belongs to. Pure.

It knows names only: whether there is such a pod is for ``pods`` to say. Who may make cgroups
inside his own (a container with a writable cgroup file system) chooses the names there, so
only the outermost pod and the first container below it count.

Names seen, by the kubelet's and the runtime's cgroup driver:

=====================  =============================================================================
cgroupfs               ``/kubepods/burstable/podUID/ID``, guaranteed pods ``/kubepods/podUID/ID``
systemd, containerd    ``/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/``
                       ``cri-containerd-ID.scope``
systemd, CRI-O         ``…/crio-ID.scope``, with crun ``…/crio-ID.scope/container``
systemd, Docker        ``…/docker-ID.scope``
the two drivers mixed  ``/system.slice/containerd.service/kubepods-podU_I_D.slice:cri-containerd:ID``
no pod                 ``/docker/ID``, ``/system.slice/docker-ID.scope``, ``/machine.slice/libpod-ID.scope``
=====================  =============================================================================

A reader in a cgroup namespace of its own sees its siblings as ``/../../NAME``: what stands above
is cut off. UIDs of static pods are 32 digits without dashes, the hash of their manifest.

Sources: cgroups(7), cgroup_namespaces(7), Kubernetes ``pkg/kubelet/cm``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_PATH: Final = 4096
_MAX_LINES: Final = 64
_MAX_SEGMENTS: Final = 64

_UID: Final = "|".join(
    ["[0-9a-f]{32}", *(mark.join(f"[0-9a-f]{{{n}}}" for n in (8, 4, 4, 4, 12)) for mark in "-_")]
)
# The systemd driver puts the whole path into the slice's name: its parents', then pod and UID.
_POD: Final = re.compile(
    rf"(?:(?:[a-z0-9_]+-)*kubepods(?:-burstable|-besteffort)?-)?pod(?P<uid>{_UID})(?:\.slice)?"
)
_ID: Final = r"[0-9a-f]{64}"
# What monitors a container (conmon) is not in it.
_CONTAINER: Final = re.compile(rf"(?:(?:cri-containerd|crio|docker|libpod)-)?(?P<id>{_ID})(?:\.scope)?")
_MIXED: Final = re.compile(rf"(?P<pod>[^:]+):(?:cri-containerd|crio|docker):(?P<id>{_ID})")


@dataclass(frozen=True, slots=True)
class CgroupRef:
    """Whom a cgroup belongs to.

    Attributes:
        pod_uid: as the kubelet names the pod's cgroup, with dashes; for a static pod the hash
            of its manifest. None: no pod, or cut off by the reader's namespace.
        container_id: 64 hexadecimal digits, or None.
    """

    pod_uid: str | None = None
    container_id: str | None = None

    @property
    def is_host(self) -> bool:
        """Neither pod nor container: a process of the node itself."""
        return self.pod_uid is None and self.container_id is None


HOST: Final = CgroupRef()


def parse_path(path: str) -> CgroupRef:
    """The pod and container of one cgroup path; ``HOST`` when the name tells of neither."""
    if len(path) > MAX_PATH:
        return HOST
    pod: str | None = None
    for segment in path.split("/", _MAX_SEGMENTS)[:_MAX_SEGMENTS]:
        mixed = _MIXED.fullmatch(segment)
        if mixed is not None and pod is None:
            return CgroupRef(_pod_uid(mixed["pod"]), mixed["id"])
        container = _CONTAINER.fullmatch(segment)
        if container is not None:
            return CgroupRef(pod, container["id"])
        # A pod inside a pod is a name that somebody in the outer one made up.
        pod = pod or _pod_uid(segment)
    return CgroupRef(pod)


def parse_proc_cgroup(text: str) -> CgroupRef | None:
    """The pod and container of a process from ``/proc/PID/cgroup``; None when that is no such file.

    cgroup v1 has a line for each hierarchy, v2 one (``0::PATH``), hybrid both. The hierarchies
    may disagree: a runtime need not use all of them, and tools put processes into some. The
    kubelet and the runtimes use the named one of systemd and those of the controllers alike,
    so the first line that names a container is taken, then the first that names a pod.
    """
    found: list[CgroupRef] = []
    for line in text.splitlines()[:_MAX_LINES]:
        number, first, rest = line.partition(":")
        _, second, path = rest.partition(":")
        if not (number.isdecimal() and first and second and path.startswith("/")):
            continue
        found.append(parse_path(path.removesuffix(" (deleted)")))
    if not found:
        return None
    return next(
        (ref for ref in found if ref.container_id and ref.pod_uid),
        next((ref for ref in found if not ref.is_host), HOST),
    )


def _pod_uid(segment: str) -> str | None:
    match = _POD.fullmatch(segment)
    return None if match is None else match["uid"].replace("_", "-")
