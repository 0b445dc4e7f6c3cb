# SPDX-License-Identifier: Apache-2.0
"""The agent in a Kubernetes cluster: wires ``kube`` to the rest, which knows only this.

Outside a cluster, or without a service account, everything here is empty and nothing is said.
No load waits for the API server, and while it is away the agent goes by what it saw last.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .attribution import Attributor
from .config.watch import Debounce
from .errors import ConfigError, KmodgateError, NodeError
from .gap import STATE
from .kube.api import SERVICE_ACCOUNT, Api, Place, node_name
from .kube.cgroups import CgroupRef
from .kube.nodelabels import NodeLabels
from .kube.notices import NodeCondition, Notice, Notices
from .kube.pods import PodStore
from .kube.reflector import Reflector
from .model import LoadEvent, Mode, Verdict
from .settings import Settings
from .telemetry.events import errno_name
from .telemetry.status import StatusSnapshot
from .telemetry.text import printable
from .workload import Pod

log = logging.getLogger(__name__)

LABELS_WAIT: Final = 30.0
"""Seconds that a start waits for the labels of a node that nobody has noted."""
_NOTED_WAIT: Final = 2.0
_MAX_UNNAMED: Final = 64
_NAME_TICKS: Final = 10
_PODS: Final = "/api/v1/pods"
_NODES: Final = "/api/v1/nodes"
_TEXT: Final = 200


class Cluster:
    """The cluster's side of one agent. A context manager; leaving it ends watches and sends what waits.

    Args:
        given: labels that the command line names; they go before the API server's.
        reload: is given notice when the node's labels have changed.
        environment: ``NODE_NAME``, ``KUBERNETES_SERVICE_HOST``, ``KUBERNETES_SERVICE_PORT``.
        account: the service account's directory.
        state: directory for the note of the labels.
        place: the API server; None to take it from the environment.

    Raises:
        NodeError: the environment makes no sense.
    """

    def __init__(
        self,
        given: Mapping[str, str] | None = None,
        reload: Debounce | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        account: Path = SERVICE_ACCOUNT,
        state: Path = STATE,
        place: Place | None = None,
    ) -> None:
        environment = os.environ if environment is None else environment
        self._node = node_name(environment)
        place = place or Place.in_cluster(environment, account)
        self._given = given
        self._reload = reload or Debounce()
        self._stack = ExitStack()
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
            self._stack.callback(end.close)
        self._events = self._condition = False
        self._unnamed: deque[tuple[int, LoadEvent]] = deque(maxlen=_MAX_UNNAMED)
        self._pods: PodStore | None = None
        self._said: NodeCondition | None = None
        self._in_force: Settings | None = None
        if place is None or self._node is None:
            return
        api = Api(place)
        self._labels = NodeLabels(self._node, state, self._wake)
        self._pods = PodStore()
        self._notices = Notices(api, self._node)
        self._watches = {
            "node": Reflector(api, _NODES, f"metadata.name={self._node}", self._labels, single=True),
            "pods": Reflector(api, _PODS, f"spec.nodeName={self._node}", self._pods),
        }
        self._api = api

    @property
    def node(self) -> str | None:
        """Name of this node; None outside a cluster."""
        return self._node

    @property
    def joined(self) -> bool:
        """Whether there is an API server to speak with."""
        return self._pods is not None

    def __enter__(self) -> Self:
        if self.joined:
            self._notices.start()
            for watch in self._watches.values():
                watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.joined:
            if isinstance(error, KmodgateError):
                self.refused(error, ends=True)
            self._notices.close(5.0 if error is not None else 2.0)
            for watch in self._watches.values():
                watch.end()
            self._api.close()
            for watch in self._watches.values():
                watch.stop()
        self._stack.close()

    # --- labels -------------------------------------------------------------------------

    def labels(self) -> Mapping[str, str] | None:
        """The node's labels, which pick its node pool; None where nobody can know them. Waits at the start.

        Raises:
            NodeError: in a cluster whose API server is away, and no earlier agent has noted them.
        """
        if self._given is not None or not self.joined:
            return self._given
        # Once the agent runs its loop waits for nobody: what comes later is a reload of its own.
        wait = _NOTED_WAIT if self._labels.noted else LABELS_WAIT
        self._labels.wait(0.0 if self._in_force is not None else wait)
        self._drain()  # what was said before the labels are read is in them
        labels = self._labels.wait(0.0)
        if labels is None:
            raise NodeError(
                f"the labels of node {self._node} are not known, and nodePools need them: "
                f"{self._watches['node'].problem}"
            )
        return labels

    def _wake(self) -> None:
        """Called on the watch's thread."""
        with suppress(OSError):  # full: it will be read anyway
            self._writer.send(b"\0")

    def fileno(self) -> int:
        """Readable when ``receive`` has something to say."""
        return self._reader.fileno()

    def receive(self) -> None:
        """Take what the watch has to say."""
        self._drain()
        if self._given is None:
            self._reload.notice(time.monotonic())

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    # --- who it was ---------------------------------------------------------------------

    def attributor(self, proc: Path) -> Attributor:
        """Finds the pod of a process, by name as far as the API server has told."""
        return Attributor(proc, self._find if self.joined else None)

    def _find(self, ref: CgroupRef) -> Pod | None:
        return self._pods.find(ref) if self._pods is not None else None

    def watches(self) -> Mapping[str, bool]:
        """Whether each watch stands."""
        return {name: watch.problem is None for name, watch in self._watches.items()}

    def notices(self) -> Mapping[str, int]:
        """Kubernetes events by what became of them."""
        return {outcome.value: count for outcome, count in self._notices.counts().items()}

    # --- what the cluster is told -------------------------------------------------------

    def in_force(self, settings: Settings) -> None:
        """These settings are in force."""
        if self._in_force is None:  # at the start alone
            self._events = self.joined and settings.config.kubernetes_events
            self._condition = self.joined and settings.config.kubernetes_condition
        self._in_force = settings

    def tell(self, event: LoadEvent) -> None:
        """Tell a refusal to its pod's owner. Never waits."""
        if not self._events or event.pod is None or event.verdict not in {Verdict.DENY, Verdict.WOULD_DENY}:
            return
        if event.pod.namespace is None or event.pod.name is None:
            self._unnamed.append((_NAME_TICKS, event))  # the watch may be a moment behind the kubelet
            return
        self._notices.tell(_notice(event, event.pod, event.pod.namespace, event.pod.name))

    def look(self, state: StatusSnapshot, problem: str | None) -> None:
        """Once a second: the state of enforcement, and why it does not work."""
        if not self.joined:
            return
        for _ in range(len(self._unnamed)):
            ticks, event = self._unnamed.popleft()
            pod = self._find(CgroupRef(event.pod.uid if event.pod else None, event.container_id))
            if pod is not None and pod.namespace is not None and pod.name is not None:
                self._notices.tell(_notice(event, pod, pod.namespace, pod.name))
            elif ticks:
                self._unnamed.append((ticks - 1, event))
        if state.reload_successful is not False:
            self._say(
                _good(self._in_force)
                if problem is None
                else NodeCondition(good=False, reason="NotEnforcing", message=problem)
            )

    def refused(self, error: KmodgateError, *, ends: bool = False) -> None:
        """A config cannot be put in force; at the start this ends the agent."""
        before = "the agent ends" if ends else "the last good config stays in force"
        reason = "ConfigRefused" if isinstance(error, ConfigError) else "NodeCannotComply"
        if self._in_force is None:  # the config that would say so could not be used
            self._events = self._condition = self.joined
        self._say(NodeCondition(good=False, reason=reason, message=f"{before}: {error}"))

    def _say(self, condition: NodeCondition | None) -> None:
        """The node condition, and an event of the node where it changes for the worse or back."""
        if condition is None or condition == self._said or not self.joined or self._node is None:
            return
        before, self._said = self._said, condition
        told = NodeCondition(condition.good, condition.reason, printable(condition.message, 1000))
        if self._condition:
            self._notices.set_condition(told, asked_for=self._in_force is not None)
        if self._events and (not told.good or (before is not None and not before.good)):
            reason = "KernelModulePolicyInForce" if told.good else told.reason
            self._notices.tell(
                Notice("Node", "default", self._node, self._node, reason, told.message, not told.good)
            )


def _good(settings: Settings | None) -> NodeCondition | None:
    if settings is None:
        return None
    policy, pool = settings.policy, settings.config.pool
    where = f"node pool {pool}" if pool is not None else "no node pool"
    reason = "Auditing" if policy.mode is Mode.AUDIT else "Enforcing"
    return NodeCondition(good=True, reason=reason, message=f"{policy.policy}, mode {policy.mode}, {where}")


def _notice(event: LoadEvent, pod: Pod, namespace: str, name: str) -> Notice:
    """One refusal as an event of its pod. What its process chose is escaped and cut."""
    denied = event.verdict is Verdict.DENY
    what = printable(event.module or event.path or "a module from memory", _TEXT)
    parts = [
        f"kernel module {what} {'was refused' if denied else 'would be refused'}: {event.reason.label}",
        f"{event.policy}, {errno_name(event.errno)} by {event.by.label}",
    ]
    if event.path is not None and event.module is not None:
        parts.append(f"file {printable(event.path, _TEXT)}")
    if event.signer is not None:
        parts.append(f"signer {printable(event.signer.subject or event.signer.issuer or 'unnamed', _TEXT)}")
    if event.sha256 is not None:
        parts.append(f"sha256 {printable(event.sha256, _TEXT)}")
    parts.append(f"process {printable(event.comm or '?', _TEXT)}[{event.pid}]")
    return Notice(
        kind="Pod",
        namespace=namespace,
        name=name,
        uid=pod.uid,
        reason="KernelModuleDenied" if denied else "KernelModuleWouldBeDenied",
        message="; ".join(parts),
        container=pod.container,
        same=f"{event.reason.label}/{what}",
    )
