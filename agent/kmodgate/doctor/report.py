# SPDX-License-Identifier: Apache-2.0
"""The answer: can this node enforce this policy with this version? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from kmodgate.model import Backend
from kmodgate.rungs import ONLY_WATCHES, obstacles

from .checks import checks
from .ladder import Rung, node_can, rungs
from .line import Check, State
from .seen import Purpose, Seen


class Answer(StrEnum):
    """Whether the policy can be enforced; ``unknown`` when what decides it was out of sight."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that ``doctor`` says.

    Attributes:
        answer: for the policy asked about.
        because: what decides it, when it is not yes.
        rungs: best first.
        obstacles: what of the policy each of them cannot carry out here; empty where it can.
        chosen: the rung that an agent would stand on; None for none, or where that cannot be told.
        checks: of the node.
    """

    answer: Answer
    because: tuple[str, ...]
    rungs: tuple[Rung, ...]
    obstacles: Mapping[Backend, tuple[str, ...]]
    chosen: Backend | None
    checks: tuple[Check, ...]

    @property
    def passed_over(self) -> tuple[tuple[Backend, str], ...]:
        """Rungs that work and are better than the chosen one, each with why it is not taken."""
        found = []
        for rung in self.rungs:
            if rung.backend is self.chosen:
                break
            if rung.offered:
                found.append(
                    (rung.backend, "; ".join(self.obstacles[rung.backend]) or "another was asked for")
                )
        return tuple(found)


def diagnose(seen: Seen, purpose: Purpose) -> Diagnosis:
    """Judge what was seen.

    What a usable rung needs must have been seen for a yes, and nothing may speak against it. What
    only a running kernel shows (sysctls, keyrings) does not count against an image.
    """
    ladder = rungs(seen)
    node = node_can(seen)
    lacks = {
        rung.backend: obstacles(
            rung.backend, purpose.policy, node, configured_certificates=bool(purpose.trust)
        )
        for rung in ladder
    }
    lines = checks(seen, purpose)
    usable = [rung for rung in ladder if purpose.backend in {None, rung.backend}]
    chosen = _chosen(usable, lacks, purpose)
    answer, because = _answer(usable, lacks, chosen, lines)
    return Diagnosis(answer, because, ladder, lacks, chosen, lines)


def _chosen(usable: list[Rung], lacks: Mapping[Backend, tuple[str, ...]], purpose: Purpose) -> Backend | None:
    """As ``hooks.choice`` chooses among rungs that work."""
    for rung in usable:
        watches = rung.backend in ONLY_WATCHES
        if rung.offered and (not lacks[rung.backend] or (watches and purpose.may_observe)):
            # One that could do more was not seen.
            return None if watches and any(other.offered is None for other in usable) else rung.backend
    return None


def _answer(
    usable: list[Rung],
    lacks: Mapping[Backend, tuple[str, ...]],
    chosen: Backend | None,
    lines: tuple[Check, ...],
) -> tuple[Answer, tuple[str, ...]]:
    against = [f"{line.subject}: {line.message}" for line in lines if line.state is State.PROBLEM]
    if not against and all(rung.offered is False for rung in usable):
        against = [problem for rung in usable for problem in rung.problems]
    if against:
        return Answer.NO, tuple(against)
    if chosen is not None:
        return (Answer.NO if lacks[chosen] else Answer.YES), lacks[chosen]
    unseen = [text for rung in usable if rung.offered is None for text in rung.unseen]
    if unseen:
        return Answer.UNKNOWN, tuple(dict.fromkeys(unseen))
    return Answer.NO, tuple(problem for rung in usable if rung.offered for problem in lacks[rung.backend])
