# SPDX-License-Identifier: Apache-2.0
"""The answer: can this node enforce this policy with this version? Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.rungs import ONLY_WATCHES, refusals

from .checks import checks
from .ladder import Rung, rungs
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
        answer: for the policy asked about, with a rung that this version has.
        because: what decides it, when it is not yes.
        node_can: best rung that the node offers, implemented or not; None when none.
    """

    answer: Answer
    because: tuple[str, ...]
    rungs: tuple[Rung, ...]
    checks: tuple[Check, ...]

    @property
    def node_can(self) -> Rung | None:
        """Best rung that the node offers, whether this version has it or not."""
        return next((rung for rung in self.rungs if rung.offered), None)


def diagnose(seen: Seen, purpose: Purpose) -> Diagnosis:
    """Judge what was seen.

    What a usable rung needs must have been seen for a yes, and nothing may speak against it. What
    only a running kernel shows (sysctls, keyrings) does not count against an image.
    """
    ladder = rungs(seen)
    lines = checks(seen, purpose)
    usable = [rung for rung in ladder if rung.implemented]
    against = [f"{line.subject}: {line.message}" for line in lines if line.state is State.PROBLEM]
    if not against and all(rung.offered is False for rung in usable):
        against = [problem for rung in usable for problem in rung.problems]
    if against:
        return Diagnosis(Answer.NO, tuple(against), ladder, lines)
    best = next((rung for rung in usable if rung.offered), None)
    if best is not None and best.backend in ONLY_WATCHES and any(rung.offered is None for rung in usable):
        best = None  # one that could do more was not seen
    if best is None:
        unseen = [text for rung in usable for text in rung.unseen]
        return Diagnosis(Answer.UNKNOWN, tuple(dict.fromkeys(unseen)), ladder, lines)
    lacking = refusals(best.backend, purpose.policy, configured_certificates=bool(purpose.trust))
    if best.backend in ONLY_WATCHES and not lacking:
        lacking = tuple(_without_switch(seen, purpose.policy))
    return Diagnosis(Answer.NO if lacking else Answer.YES, lacking, ladder, lines)


def _without_switch(seen: Seen, policy: EffectivePolicy) -> Iterator[str]:
    """What a kernel lacks that is to refuse by itself; a lack of CONFIG_MODULE_SIG is a check's finding."""
    if policy.mode is not Mode.ENFORCE or policy.policy is Policy.ENFORCE or not policy.load_pin:
        return
    if "loadpin" not in (seen.facts.lsms or ()):
        yield (
            "the best backend here only watches, and the kernel has no LoadPin of its own; write "
            "cannotEnforce: observe, or loadPin: off"
        )
