# SPDX-License-Identifier: Apache-2.0
"""Kubernetes events and the node condition: sent from a thread of its own, few, and never waited for.

Equal notices are one event with a count. What may be sent at once is limited, and so is what
waits; an API server that is away or slow costs notices, which are counted, and nothing else.
The strings must be printable already.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from .api import Api, ApiError, Json, segment

log = logging.getLogger(__name__)

COMPONENT: Final = "kmodgate"
CONDITION: Final = "KernelModulePolicy"

MAX_PENDING: Final = 256
_MAX_KNOWN: Final = 512
_MAX_MESSAGE: Final = 1024  # of an event: pkg/apis/core/validation/events.go
_BURST: Final = 25
_PER_SECOND: Final = 1.0
_SAME_AGAIN: Final = 10.0
_LONGEST_WAIT: Final = 30.0
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
_TOO_MANY: Final = 429


class Outcome(StrEnum):
    """What became of a notice."""

    SENT = "sent"
    DROPPED = "dropped"
    """Too many waited."""
    REFUSED = "refused"
    """The API server took it not: the log says why."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One event, of one pod or node.

    Attributes:
        kind: ``Pod`` or ``Node``.
        namespace: of the pod; of a node's events ``default``.
        name: of the pod or node.
        uid: of the pod's object; of a node its name, as the kubelet writes it.
        reason: CamelCase word.
        message: for people.
        warning: something is wrong.
        container: of the pod.
        same: what makes two notices the same event, beside whom they are about and their reason.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    reason: str
    message: str
    warning: bool = True
    container: str | None = None
    same: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Equal for notices that are one event."""
        return (self.kind, self.uid, self.reason, self.same)


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """The condition ``KernelModulePolicy`` of the node.

    Attributes:
        good: the policy that the config asks for is in force.
        reason: CamelCase word.
        message: for people.
    """

    good: bool
    reason: str
    message: str


@dataclass(slots=True)
class _Sent:
    """An event that the API server has."""

    name: str
    count: int
    first: str
    again: float


@dataclass(slots=True)
class _Pending:
    notice: Notice
    count: int
    first: datetime
    last: datetime


class Notices:
    """Sends notices for one node.

    Args:
        api: the server.
        node: name of the node.
        now: seconds on a clock that never goes back.
        wall: the time.
    """

    def __init__(
        self,
        api: Api,
        node: str,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._node = node
        self._now = now
        self._wall = wall
        self._wake = threading.Condition()
        self._pending: OrderedDict[tuple[str, str, str, str], _Pending] = OrderedDict()
        self._condition: NodeCondition | None = None
        self._condition_said: NodeCondition | None = None
        self._condition_since = ""
        self._condition_asked_for = True
        self._known: OrderedDict[tuple[str, str, str, str], _Sent] = OrderedDict()
        self._counts: Counter[Outcome] = Counter()
        self._tokens = float(_BURST)
        self._tokens_at = now()
        self._failures = 0
        self._not_before = 0.0
        self._closing = False
        self._said: str | None = None
        self._thread = threading.Thread(target=self._run, name="kmodgate-notices", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def tell(self, notice: Notice) -> None:
        """Take a notice. Never waits; one too many is counted as dropped."""
        at = self._wall()
        with self._wake:
            known = self._pending.get(notice.key)
            if known is not None:
                known.notice, known.count, known.last = notice, known.count + 1, at
            elif len(self._pending) < MAX_PENDING:
                self._pending[notice.key] = _Pending(notice, 1, at, at)
            else:
                self._counts[Outcome.DROPPED] += 1
            self._wake.notify()

    def set_condition(self, condition: NodeCondition, *, asked_for: bool = True) -> None:
        """The node's condition is this now. Never waits; only the last one is sent.

        Args:
            condition: what the node's owner is told.
            asked_for: False where no config could be read that would ask for it; a missing right is no
                fault then, and not warned of.
        """
        with self._wake:
            self._condition_asked_for = asked_for
            if condition != self._condition:
                self._condition = condition
                self._wake.notify()

    def counts(self) -> Mapping[Outcome, int]:
        """Events by what became of them. Only ever grows."""
        with self._wake:
            return {outcome: self._counts[outcome] for outcome in Outcome}

    def close(self, timeout: float = 2.0) -> None:
        """Send what waits and may be sent within ``timeout`` seconds, and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                wait = self._wait()
                if wait is None or wait > 0:
                    if self._closing:
                        return
                    self._wake.wait(wait)
                    continue
                condition = self._condition if self._condition != self._condition_said else None
                ready = None if condition is not None else self._take()
            try:
                if condition is not None:
                    self._send_condition(condition)
                elif ready is not None:
                    self._send(ready)
                self._failures, self._said = 0, None
            except ApiError as error:
                self._failed(error, condition, ready)
            except Exception as error:  # noqa: BLE001  # one odd notice must not end the others
                self._failed(ApiError(f"{type(error).__name__}: {error}", status=0), condition, ready)

    def _wait(self) -> float | None:
        """Seconds until something can be sent; None when nothing waits."""
        now = self._now()
        held = max(0.0, self._not_before - now)
        if self._condition is not None and self._condition != self._condition_said:
            return held
        if not self._pending:
            return None
        elapsed, self._tokens_at = now - self._tokens_at, now
        self._tokens = min(float(_BURST), self._tokens + elapsed * _PER_SECOND)
        token = max(0.0, (1.0 - self._tokens) / _PER_SECOND)
        due = min(self._due(key) for key in self._pending) - now
        return max(held, token, due, 0.0)

    def _due(self, key: tuple[str, str, str, str]) -> float:
        known = self._known.get(key)
        return 0.0 if known is None else known.again

    def _take(self) -> _Pending | None:
        now = self._now()
        key = next((key for key in self._pending if self._due(key) <= now), None)
        if key is None:
            return None
        self._tokens -= 1.0
        return self._pending.pop(key)

    def _send(self, pending: _Pending) -> None:
        notice, known = pending.notice, self._known.get(pending.notice.key)
        path = f"/api/v1/namespaces/{segment(notice.namespace)}/events"
        if known is not None:
            change: Json = {
                "count": known.count + pending.count,
                "lastTimestamp": _time(pending.last),
                "message": _cut(notice.message),
            }
            try:
                self._api.patch(f"{path}/{segment(known.name)}", change)
            except ApiError as error:
                if error.status != _NOT_FOUND:
                    raise
                del self._known[notice.key]  # events are deleted after an hour, as a rule
            else:
                known.count += pending.count
                known.again = self._now() + _SAME_AGAIN
                self._known.move_to_end(notice.key)
                self._count(Outcome.SENT)
                return
        name = f"{notice.name[:200].rstrip('.-')}.{uuid.uuid4().hex[:16]}"
        self._api.post(path, self._event(notice, name, pending))
        self._known[notice.key] = _Sent(name, pending.count, _time(pending.first), self._now() + _SAME_AGAIN)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        self._count(Outcome.SENT)

    def _event(self, notice: Notice, name: str, pending: _Pending) -> Json:
        about: Json = {"apiVersion": "v1", "kind": notice.kind, "name": notice.name, "uid": notice.uid}
        if notice.kind == "Pod":
            about["namespace"] = notice.namespace
        if notice.container is not None:
            about["fieldPath"] = f"spec.containers{{{notice.container}}}"
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": notice.namespace},
            "involvedObject": about,
            "type": "Warning" if notice.warning else "Normal",
            "reason": notice.reason,
            "message": _cut(notice.message),
            "count": pending.count,
            "firstTimestamp": _time(pending.first),
            "lastTimestamp": _time(pending.last),
            "source": {"component": COMPONENT, "host": self._node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._node,
        }

    def _send_condition(self, condition: NodeCondition) -> None:
        said = self._condition_said
        now = _time(self._wall())
        if said is None or said.good != condition.good:
            self._condition_since = now
        self._api.patch(
            f"/api/v1/nodes/{segment(self._node)}/status",
            {
                "status": {
                    "conditions": [
                        {
                            "type": CONDITION,
                            "status": "True" if condition.good else "False",
                            "reason": condition.reason,
                            "message": _cut(condition.message),
                            "lastHeartbeatTime": now,
                            "lastTransitionTime": self._condition_since,
                        }
                    ]
                }
            },
        )
        self._condition_said = condition

    def _failed(self, error: ApiError, condition: NodeCondition | None, pending: _Pending | None) -> None:
        optional = condition is not None and not self._condition_asked_for and error.status == _FORBIDDEN
        if optional:
            log.info("the node condition %s is off (kubernetes.nodeCondition), and not set", CONDITION)
        elif str(error) != self._said:
            log.warning("not told to the cluster: %s", error)
            self._said = str(error)
        status = error.status
        if status is None or status >= _SERVER_ERROR or status == _TOO_MANY:
            self._failures += 1
            wait = error.retry_after or min(_LONGEST_WAIT, 2.0 ** min(self._failures - 1, 5))
            self._not_before = self._now() + wait
            if pending is not None:
                self._put_back(pending)
            return
        if pending is not None:
            self._count(Outcome.REFUSED)
        if condition is not None:
            self._condition_said = condition  # asking again will not help

    def _put_back(self, pending: _Pending) -> None:
        with self._wake:
            newer = self._pending.get(pending.notice.key)
            if newer is not None:
                newer.count += pending.count
                newer.first = pending.first
            elif len(self._pending) < MAX_PENDING:
                self._pending[pending.notice.key] = pending
                self._pending.move_to_end(pending.notice.key, last=False)
            else:
                self._counts[Outcome.DROPPED] += 1

    def _count(self, outcome: Outcome) -> None:
        with self._wake:
            self._counts[outcome] += 1


def _cut(message: str) -> str:
    """At most so many bytes as an event may have."""
    data = message.encode()
    if len(data) <= _MAX_MESSAGE:
        return message
    return data[: _MAX_MESSAGE - 3].decode("utf-8", "ignore") + "…"


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
