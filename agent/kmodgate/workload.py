# SPDX-License-Identifier: Apache-2.0
"""Where a load came from: the values that ``model`` has in its events, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of a pod: ``Deployment``, ``DaemonSet``, ``Job``, …, and its name."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod that a load came from. The UID is the only part that is always known.

    Attributes:
        uid: of the pod's object; of a static pod that no mirror is known for, its manifest's hash.
        container: name of the container in the pod.
        image: as the pod asks for it.
        owner: the pod's controller.
        service_account: the pod's.
    """

    uid: str
    namespace: str | None = None
    name: str | None = None
    container: str | None = None
    image: str | None = None
    owner: Owner | None = None
    service_account: str | None = None


class Workload(StrEnum):
    """What sort of process asked for a load."""

    POD = "pod"
    CONTAINER = "container"
    """In a container, and in no pod that is known."""
    HOST = "host"
    KERNEL = "kernel"
    """``modprobe`` that the kernel started (``request_module``)."""
