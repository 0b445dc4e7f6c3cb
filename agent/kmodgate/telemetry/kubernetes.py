# SPDX-License-Identifier: Apache-2.0
"""The part of the table of metrics that is about the cluster; ``metrics`` has the whole."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from .table import Kind, Label, Metric


class WatchedResource(StrEnum):
    """What the agent watches at the API server."""

    NODE = "node"
    PODS = "pods"


class NoticeOutcome(StrEnum):
    """What became of a Kubernetes event: the words of ``kube.notices.Outcome``."""

    SENT = "sent"
    DROPPED = "dropped"
    REFUSED = "refused"


NODE_POOL_INFO: Final = Metric(
    "kmodgate_node_pool_info",
    Kind.INFO,
    "The node pool of the config that is in force on this node. A label is empty on a node in no pool, or "
    "outside a cluster.",
    "Joined with the counts of loads it says what each pool refuses: `kmodgate fleet report` does that.",
    (
        Label("pool", pattern=r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})?", note="its name in `nodePools`"),
        Label("node", pattern=r"[a-z0-9.-]{0,253}", note="the node's Kubernetes name"),
    ),
)
KUBERNETES_WATCH: Final = Metric(
    "kmodgate_kubernetes_watch_current",
    Kind.GAUGE,
    "1 while the watch at the API server stands, else 0. Only in a cluster.",
    "0 for long: the log says why. Labels and pods stay as they were seen last, and no decision depends "
    "on it.",
    (Label("resource", tuple(WatchedResource)),),
)
KUBERNETES_EVENTS: Final = Metric(
    "kmodgate_kubernetes_events_total",
    Kind.COUNTER,
    "Kubernetes events, one for refusals that are alike, by what became of them. Only in a cluster.",
    "`dropped`: too many waited, as when the API server is away. `refused`: rights are missing; the log says "
    "which. The event log has each refusal all the same.",
    (Label("outcome", tuple(NoticeOutcome)),),
)
