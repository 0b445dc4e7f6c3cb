# SPDX-License-Identifier: Apache-2.0
"""What the agent knows of itself, for whoever asks: metrics, health checks, ``status``.

This module does no I/O. Setters are called by the agent's threads and cost a few
assignments under a lock; readers get an immutable snapshot and hold nothing up.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from kmodgate.model import Backend, EffectivePolicy
from kmodgate.node import PinnedRoot

from .metrics import LoadedSignature, PreverifyOutcome

MAX_ANCHORS: Final = 64
"""Certificates shown one by one: those that expire first."""

_ANCHOR_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class TrustAnchorValidity:
    """When a configured certificate expires.

    Attributes:
        fingerprint: SHA-256 of the certificate in hexadecimal, with or without colons.
        not_after: its end; carries a time zone.
    """

    fingerprint: str
    not_after: datetime

    @property
    def anchor(self) -> str:
        """The label: the fingerprint's first 16 digits. ValueError if it is none."""
        digits = self.fingerprint.replace(":", "").lower()
        if not re.fullmatch(r"[0-9a-f]{16,}", digits):
            raise ValueError(f"not a hexadecimal fingerprint: {self.fingerprint!r}")
        return digits[:_ANCHOR_DIGITS]


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """The agent's state at one moment; None where nothing has been set yet.

    Attributes:
        policy: in force.
        pool: name of the node pool that it is of, or None.
        backend: in use.
        enforcing: result of the last self-probe.
        reload_successful: whether the last config read could be used.
        reload_success_time: Unix time of the last one that could.
        reload_error: why the last one could not; None when it could.
        anchors: ``(label, Unix time of expiry)``, first to expire first.
        anchor_count: certificates in force, shown or not.
        loaded_modules: how many modules are loaded now.
        enforcement_gap: seconds before this agent in which nothing was enforced.
        agent_gap: seconds before this agent in which no agent ran.
        pinned_root: the file system that is pinned, as it was at start.
        pinned_root_current: whether process 1 still has it as its root.
        pinned_verity: file systems that are pinned by their dm-verity root digest.
        preverified: how many module files were verified before they are loaded.
        hold_limit: seconds that a load may wait for the agent.
        counts_since: Unix time at which the kernel's counters began at 0.
        downgrades: how often a rung has broken and the agent went to a lower one.
    """

    policy: EffectivePolicy | None = None
    pool: str | None = None
    backend: Backend = Backend.NONE
    enforcing: bool = False
    reload_successful: bool | None = None
    reload_success_time: float | None = None
    reload_error: str | None = None
    anchors: tuple[tuple[str, float], ...] = ()
    anchor_count: int = 0
    pinned_root: PinnedRoot | None = None
    pinned_root_current: bool | None = None
    pinned_verity: int = 0
    loaded_modules: Mapping[LoadedSignature, int] = field(default_factory=lambda: MappingProxyType({}))
    enforcement_gap: float | None = None
    agent_gap: float | None = None
    preverified: Mapping[PreverifyOutcome, int] = field(default_factory=lambda: MappingProxyType({}))
    hold_limit: float | None = None
    counts_since: float | None = None
    downgrades: int = 0


class AgentStatus:
    """The state, with a setter for each part. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshot = StatusSnapshot()

    def snapshot(self) -> StatusSnapshot:
        """The state now."""
        return self._snapshot

    def set_policy(self, policy: EffectivePolicy, pool: str | None = None) -> None:
        """A policy, of a node pool or of none, has come into force."""
        self._change(policy=policy, pool=pool)

    def set_backend(self, backend: Backend) -> None:
        """A backend has been chosen."""
        self._change(backend=backend)

    def stepped_down(self) -> None:
        """A rung has broken, and the agent goes to a lower one."""
        self._change(downgrades=self._snapshot.downgrades + 1, enforcing=False)

    def set_enforcing(self, enforcing: bool) -> None:
        """A self-probe has ended."""
        self._change(enforcing=enforcing)

    def reload_succeeded(self, at: float) -> None:
        """A config was read and can be used; ``at`` is Unix time."""
        self._change(reload_successful=True, reload_success_time=at, reload_error=None)

    def reload_failed(self, error: str) -> None:
        """A config was read and cannot be used; the last good one stays."""
        self._change(reload_successful=False, reload_error=error)

    def set_trust_anchors(self, anchors: Iterable[TrustAnchorValidity]) -> None:
        """The configured certificates in force. ValueError for a bad fingerprint."""
        ends: dict[str, float] = {}
        count = 0
        for anchor in anchors:
            end = anchor.not_after.timestamp()
            ends[anchor.anchor] = min(end, ends.get(anchor.anchor, end))
            count += 1
        first = sorted(ends.items(), key=lambda item: (item[1], item[0]))
        self._change(anchors=tuple(first[:MAX_ANCHORS]), anchor_count=count)

    def set_loaded_modules(self, counts: Mapping[LoadedSignature, int]) -> None:
        """The modules loaded now; a signature that is missing counts 0."""
        complete = {signature: counts.get(signature, 0) for signature in LoadedSignature}
        self._change(loaded_modules=MappingProxyType(complete))

    def set_gap(self, *, enforcement: float, agent: float) -> None:
        """How long this node was without enforcement and without an agent, in seconds."""
        self._change(enforcement_gap=enforcement, agent_gap=agent)

    def set_pins(self, root: PinnedRoot | None, *, current: bool, verity: int) -> None:
        """The pinned file systems have been looked at."""
        self._change(pinned_root=root, pinned_root_current=current, pinned_verity=verity)

    def set_preverified(self, counts: Mapping[PreverifyOutcome, int]) -> None:
        """The module files verified before they are loaded; an outcome that is missing counts 0."""
        complete = {outcome: counts.get(outcome, 0) for outcome in PreverifyOutcome}
        self._change(preverified=MappingProxyType(complete))

    def set_hold_limit(self, seconds: float) -> None:
        """How long a load may wait from now on."""
        self._change(hold_limit=seconds)

    def set_counts_since(self, moment: float) -> None:
        """The kernel's counters began at this Unix time."""
        self._change(counts_since=moment)

    def _change(self, **parts: Any) -> None:
        with self._lock:
            self._snapshot = replace(self._snapshot, **parts)


class Heartbeat:
    """Proof that the agent's loop turns: the loop beats, the health check looks.

    Args:
        max_age: seconds after which the loop counts as stuck.
        now: seconds on a clock that never goes back.
    """

    def __init__(self, max_age: float, now: Callable[[], float] = time.monotonic) -> None:
        self._max_age = max_age
        self._now = now
        self._last: float | None = None

    def beat(self) -> None:
        """The loop has come round."""
        self._last = self._now()

    def problem(self) -> str | None:
        """Why the loop is not well, or None."""
        last = self._last
        if last is None:
            return "the agent's loop has not started"
        age = self._now() - last
        if age > self._max_age:
            return f"the agent's loop has not come round for {age:.1f} s (limit {self._max_age:g} s)"
        return None
