# SPDX-License-Identifier: Apache-2.0
"""The go/no-go page: what is known of each pool, and what follows. Pure; no I/O.

A pool is a go only if it was looked at: counts of 0 from nodes that did not judge by
``ENFORCE_SIGNED_MODULES``, or not for long enough, say nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .counts import NodeCounts
from .details import Details, What, Who


class Answer(StrEnum):
    """Whether ENFORCE can be switched on in a pool."""

    GO = "go"
    NO_GO = "no_go"
    """It would refuse something."""
    UNCLEAR = "unclear"
    """Too little was seen."""
    ENFORCED = "enforced"
    """It is on already."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One line of a pool: refusals that are alike.

    Attributes:
        what: module, signer, reason; of a count without any event only verdict and reason.
        count: from the event logs, or where these tell nothing from Prometheus.
        pods: owners of the pods, ``namespace/Kind/name``; ``(host)``, ``(kernel)``.
        counted_only: no event tells of these; only their number is known.
    """

    what: What
    count: int
    nodes: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    counted_only: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """One node pool.

    Attributes:
        name: empty for the nodes in no pool.
        why: a sentence for each thing that keeps it from being a go.
        counted: refusals by verdict and reason, from Prometheus.
    """

    name: str
    answer: Answer
    why: tuple[str, ...]
    nodes: tuple[NodeCounts, ...]
    counted: dict[tuple[str, str], int]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The whole page.

    Attributes:
        warnings: what the reader must know of the data.
    """

    pools: tuple[Pool, ...]
    warnings: tuple[str, ...]

    @property
    def go(self) -> bool:
        """Every pool is a go or enforced already, and there is one."""
        return bool(self.pools) and all(pool.answer in {Answer.GO, Answer.ENFORCED} for pool in self.pools)


def make_report(nodes: Sequence[NodeCounts], details: Details, *, minimum_coverage: float) -> Report:
    """Bring counts and details together.

    Args:
        nodes: from Prometheus.
        details: from event logs.
        minimum_coverage: part of the window that a node must have judged by ENFORCE.
    """
    pools = {node.pool: [other for other in nodes if other.pool == node.pool] for node in nodes}
    pool_of = {node.node: node.pool for node in nodes}
    groups = _by_pool(details, pool_of)
    made = tuple(
        _pool(name, members, groups.pop(name, []), minimum_coverage)
        for name, members in sorted(pools.items())
    )
    return Report(made, tuple(_warnings(nodes, details, groups)))


def _by_pool(details: Details, pool_of: dict[str, str]) -> dict[str | None, list[tuple[What, Who]]]:
    """Groups by pool; what tells none is put where its nodes are, if that is one pool."""
    found: dict[str | None, list[tuple[What, Who]]] = {}
    for what, who in details.groups.items():
        pool = what.pool
        if pool is None:
            homes = {pool_of.get(node) for node in who.nodes}
            pool = homes.pop() if len(homes) == 1 else None
        found.setdefault(pool, []).append((what, who))
    return found


def _pool(
    name: str, nodes: list[NodeCounts], groups: list[tuple[What, Who]], minimum_coverage: float
) -> Pool:
    counted: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        counted.update(node.refused)
    refusals = [
        Refusal(what, who.count, tuple(sorted(who.nodes)), tuple(sorted(who.pods)), tuple(sorted(who.images)))
        for what, who in groups
    ]
    told = Counter[tuple[str, str]]()
    for refusal in refusals:
        told[refusal.what.verdict, refusal.what.reason] += refusal.count
    for (verdict, reason), count in sorted(counted.items()):
        missing = count - told[verdict, reason]
        if missing > 0:
            what = What(name, verdict, reason, "", "", "")
            refusals.append(Refusal(what, missing, counted_only=True))
    order = {"would_deny": 0, "deny": 1, "loaded": 2}
    refusals.sort(key=lambda r: (order.get(r.what.verdict, 3), r.counted_only, -r.count, r.what.module))
    would = max(
        sum(count for (verdict, _), count in counted.items() if verdict == "would_deny"),
        sum(r.count for r in refusals if r.what.verdict == "would_deny"),
    )
    answer, why = _answer(nodes, would, minimum_coverage)
    return Pool(name, answer, tuple(why), tuple(nodes), dict(counted), tuple(refusals))


def _answer(nodes: list[NodeCounts], would: int, minimum_coverage: float) -> tuple[Answer, list[str]]:
    if nodes and all(node.enforced for node in nodes):
        return Answer.ENFORCED, []
    against, doubts = [], []
    if would:
        against.append(f"{would} load(s) would have been refused")
    loaded = sum(node.loaded_refused for node in nodes)
    if loaded:
        against.append(f"{loaded} module(s) that are loaded now would be refused at the next boot")
    gone = [node for node in nodes if node.policy is None]
    other = [node for node in nodes if node.policy is not None and not node.judged]
    short = [node for node in nodes if node.judged and node.coverage < minimum_coverage]
    unknown = sum(node.loaded_unknown for node in nodes)
    if gone:
        doubts.append(f"{len(gone)} node(s) were seen and are not now: {_some(gone)}")
    if other:
        doubts.append(
            f"{len(other)} node(s) do not judge by ENFORCE_SIGNED_MODULES; set it, with mode audit: "
            + _some(other)
        )
    if short:
        doubts.append(
            f"{len(short)} node(s) judged by it for less than {minimum_coverage:.0%} of the time: "
            + _some(short)
        )
    if unknown:
        doubts.append(f"of {unknown} loaded module(s) it is not known whether they would be refused")
    answer = Answer.NO_GO if against else Answer.UNCLEAR if doubts else Answer.GO
    return answer, [*against, *doubts]


def _some(nodes: list[NodeCounts], limit: int = 3) -> str:
    more = f" and {len(nodes) - limit} more" if len(nodes) > limit else ""
    return ", ".join(node.node for node in nodes[:limit]) + more


def _warnings(
    nodes: Sequence[NodeCounts], details: Details, rest: dict[str | None, list[tuple[What, Who]]]
) -> list[str]:
    found = []
    untold = sum(node.untold for node in nodes)
    if not details.given:
        found.append("no event log was given (--events): modules, signers and pods are not known")
    elif untold or details.suppressed:
        found.append(
            f"{max(untold, details.suppressed)} event(s) were left out of the logs or lost; the counts have "
            "them"
        )
    if details.others:
        found.append(f"{details.others} line(s) of the event logs are no events of kmodgate")
    if details.left_out:
        found.append(f"{details.left_out} event(s) were passed over: too many different ones")
    strangers = sum(who.count for groups in rest.values() for _, who in groups)
    if strangers:
        found.append(f"{strangers} event(s) are of nodes or pools that Prometheus does not know")
    return found
