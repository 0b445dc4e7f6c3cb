# SPDX-License-Identifier: Apache-2.0
"""Who wanted which module, from the nodes' event logs: modules, signers, pods.

The logs come from anywhere, one JSON object a line, in any order and more than once: files, or a
pipe from a log store. A line that is none of ours is counted and passed over. Every string in
them was escaped by the agent; none is trusted to be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from .counts import LOAD_PIN

MAX_LINE: Final = 1 << 20
MAX_GROUPS: Final = 20_000
MAX_NAMES: Final = 1000
"""Pods, images and nodes of one group that are told apart."""
_MAX_SEEN: Final = 2_000_000
_KINDS: Final = frozenset({"module_load", "module_inventory", "suppressed"})
_KUBECTL: Final = b"[pod/"
_REFUSALS: Final = ("deny", "would_deny")


@dataclass(frozen=True, slots=True)
class What:
    """Refusals that are alike.

    Attributes:
        pool: empty for none; None where the log does not tell it.
        verdict: ``deny``, ``would_deny``, or ``loaded`` for a module that is loaded already.
    """

    pool: str | None
    verdict: str
    reason: str
    module: str
    signer: str
    sha256: str


@dataclass(slots=True)
class Who:
    """How often, where and by whom."""

    count: int = 0
    nodes: set[str] = field(default_factory=set)
    pods: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Details:
    """What the logs tell.

    Attributes:
        groups: refusals that are alike, and who they were.
        others: lines that are no event of kmodgate.
        left_out: events beyond ``MAX_GROUPS`` different ones.
        suppressed: events that the agents say are missing from their logs.
        given: there was a log at all.
    """

    groups: dict[What, Who] = field(default_factory=dict)
    others: int = 0
    left_out: int = 0
    suppressed: int = 0
    given: bool = False
    _seen: set[tuple[str, str, int]] = field(default_factory=set)

    def read(self, lines: Iterable[bytes], since: datetime, until: datetime) -> None:
        """Take the lines of one log whose time lies within the window."""
        self.given = True
        for line in lines:
            if not line.strip():
                continue
            record = _record(line)
            if record is None:
                self.others += 1
                continue
            moment = _time(record.get("time"))
            if moment is None or not since <= moment <= until:
                continue
            if record["event"] == "suppressed":
                count = record.get("count")
                self.suppressed += count if isinstance(count, int) and not isinstance(count, bool) else 0
            elif not self._again(record):
                self._take(record)

    def told(self, pool: str, verdict: str, reason: str) -> int:
        """Refusals of a pool that the logs tell of."""
        return sum(
            who.count
            for what, who in self.groups.items()
            if (what.pool, what.verdict, what.reason) == (pool, verdict, reason)
        )

    def _again(self, record: dict[str, Any]) -> bool:
        """Whether this very event was read already."""
        sequence = record.get("sequence")
        if not isinstance(sequence, int):
            return False
        key = str(record.get("node")), str(record.get("time")), sequence
        if key in self._seen:
            return True
        if len(self._seen) < _MAX_SEEN:
            self._seen.add(key)
        return False

    def _take(self, record: dict[str, Any]) -> None:
        if record["event"] == "module_inventory":
            if record.get("outcome") != "refused":
                return
            pool, verdict, reason = None, "loaded", _text(record.get("signature"))
        else:
            verdict, reason = _text(record.get("verdict")), _text(record.get("reason"))
            if verdict not in _REFUSALS or reason in LOAD_PIN:
                return
            # An agent from before pools were told says nothing of them.
            pool = _text(record.get("pool")) if "pool" in record else None
        module = _text(record.get("module")) or _text(record.get("path"))
        what = What(pool, verdict, reason, module, _signer(record.get("signer")), _text(record.get("sha256")))
        who = self.groups.get(what)
        if who is None:
            if len(self.groups) >= MAX_GROUPS:
                self.left_out += 1
                return
            who = self.groups[what] = Who()
        who.count += 1
        _add(who.nodes, _text(record.get("node")))
        pod = record.get("pod")
        if isinstance(pod, dict):
            _add(who.pods, _pod(pod))
            _add(who.images, _text(pod.get("image")))
        elif _text(record.get("workload")) in {"host", "kernel", "container"}:
            _add(who.pods, f"({record['workload']})")


def _record(line: bytes) -> dict[str, Any] | None:
    if len(line) > MAX_LINE:
        return None
    if line.startswith(_KUBECTL):  # `kubectl logs --prefix`, and what --all-pods makes of it
        line = line.partition(b"] ")[2]
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("schema") != 1:
        return None
    return record if _text(record.get("event")) in _KINDS else None


def _time(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None


def _pod(pod: dict[str, Any]) -> str:
    """``namespace/Kind/name`` of the owner, else of the pod: pods of one owner are one answer."""
    namespace = _text(pod.get("namespace"))
    owner = pod.get("owner")
    if isinstance(owner, dict) and namespace:
        return f"{namespace}/{_text(owner.get('kind'))}/{_text(owner.get('name'))}"
    if namespace:
        return f"{namespace}/Pod/{_text(pod.get('name'))}"
    return f"uid {_text(pod.get('uid'))}"


def _signer(signer: object) -> str:
    if not isinstance(signer, dict):
        return ""
    return next((text for key in ("subject", "issuer", "skid") if (text := _text(signer.get(key)))), "")


def _text(value: object) -> str:
    return value[:4200] if isinstance(value, str) else ""


def _add(names: set[str], name: str) -> None:
    if name and len(names) < MAX_NAMES:
        names.add(name)
