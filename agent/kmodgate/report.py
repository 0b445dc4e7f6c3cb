# SPDX-License-Identifier: Apache-2.0
"""The agent's report of itself: what ``kmodgate status`` shows, as plain data.

For machines: ``local/status.schema.json``. It is made from snapshots, on the socket's thread, and
holds up nobody. Every string in it is escaped as those of the event log are.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any, Final

from . import __version__
from .config import NodeConfig
from .model import EffectivePolicy
from .outlets import Outlets
from .readiness import Readiness
from .settings import Settings
from .signature import TrustStore
from .telemetry.collector import AgentMetrics
from .telemetry.events import text_value, time_value
from .telemetry.status import AgentStatus, StatusSnapshot
from .telemetry.text import PATH_LIMIT

SCHEMA_VERSION: Final = 1
"""Raised when a key changes its meaning or goes away, not when one is added."""
MAX_ANCHORS: Final = 64
_DAY: Final = 86400.0


def report(
    settings: Settings, status: AgentStatus, readiness: Readiness, metrics: AgentMetrics, outlets: Outlets
) -> dict[str, Any]:
    """The report, now."""
    now = time.time()
    snapshot = status.snapshot()
    problem = readiness.problem
    return {
        "schema": SCHEMA_VERSION,
        "time": _moment(now),
        "node": text_value(outlets.node),
        "agent": {"version": __version__, "pid": os.getpid(), "started": _moment(outlets.started)},
        "as_asked": problem is None,
        "problem": text_value(problem),
        "since": _moment(readiness.since),
        "policy": _policy(settings.policy, metrics),
        "source": _source(settings.config),
        "config": {
            "reload_successful": snapshot.reload_successful,
            "last_success": _moment(snapshot.reload_success_time),
            "error": text_value(snapshot.reload_error, PATH_LIMIT),
        },
        "backend": snapshot.backend.value,
        "before": {
            "enforcement_gap_seconds": _round(snapshot.enforcement_gap),
            "agent_gap_seconds": _round(snapshot.agent_gap),
        },
        "loads": _loads(metrics),
        "loaded_modules": {word.value: count for word, count in snapshot.loaded_modules.items()},
        "denials": [dict(record) for record in reversed(outlets.recent.denials())],
        "trust": _trust(settings, snapshot, now),
        "events": _events(metrics, outlets),
    }


def _policy(policy: EffectivePolicy, metrics: AgentMetrics) -> dict[str, object]:
    return {
        "policy": policy.policy.value,
        "mode": policy.mode.value,
        "load_pin": policy.load_pin,
        "pinned_root_exempt": policy.pinned_root_exempt,
        "failure_policy": policy.failure_policy.value,
        "kernel_keyrings": policy.kernel_keyrings,
        "revocations": policy.revocations,
        "hardened": metrics.hardened,
    }


def _source(config: NodeConfig) -> dict[str, object]:
    """Where the policy comes from: a line of the config, the flag, or the default."""
    return {
        "config": text_value(config.source, PATH_LIMIT),
        "policy": text_value(config.origin("policy"), PATH_LIMIT),
        "mode": text_value(config.origin("mode"), PATH_LIMIT),
        "node_pool": text_value(config.pool),
    }


def _loads(metrics: AgentMetrics) -> list[dict[str, object]]:
    """What was decided, most frequent first."""
    counts = sorted(metrics.loads().items(), key=lambda item: (-item[1], item[0]))
    return [
        {"verdict": verdict.label, "reason": reason.label, "by": by.label, "count": count}
        for (verdict, reason, by), count in counts
        if count
    ]


def _trust(settings: Settings, snapshot: StatusSnapshot, now: float) -> dict[str, object]:
    """The configured certificates, first to expire first."""
    store: TrustStore = settings.trust
    anchors = sorted(store.anchors, key=lambda anchor: (anchor.not_after, anchor.fingerprint))
    return {
        "kernel_keyrings": settings.config.trust.kernel_keyrings,
        "require_validity": settings.config.trust.require_validity,
        "count": snapshot.anchor_count,
        "anchors": [
            {
                "file": text_value(anchor.label, PATH_LIMIT),
                "subject": text_value(anchor.signer.subject),
                "fingerprint": anchor.fingerprint,
                "not_after": _moment(anchor.not_after.timestamp()),
                "days_left": int((anchor.not_after.timestamp() - now) // _DAY),
            }
            for anchor in anchors[:MAX_ANCHORS]
        ],
    }


def _events(metrics: AgentMetrics, outlets: Outlets) -> dict[str, object]:
    first, end = outlets.recent.span()
    return {
        "remembered": end - first,
        "forgotten": first,
        "suppressed": sum(outlets.log.suppressed().values()),
        "lost": dict(metrics.lost()),
        "sinks": [
            {
                "sink": sink.value,
                "sent": found.sent,
                "dropped": {cause.value: count for cause, count in found.dropped.items()},
            }
            for sink, found in outlets.counts().items()
        ],
    }


def _moment(seconds: float | None) -> str | None:
    """Unix time in the form of the event log; a certificate may end after the year 9999."""
    if seconds is None:
        return None
    return time_value(datetime.fromtimestamp(seconds, UTC))


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
