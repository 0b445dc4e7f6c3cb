# SPDX-License-Identifier: Apache-2.0
"""What would change a verdict: each change is tried, none is guessed. Pure.

A ``Case`` is everything that a verdict depends on. ``changes`` alters one thing at a time, runs
the signature report and ``policy.evaluate`` again, and keeps what gives another verdict. It
reads no files and signs nothing: that a new signature is trusted is an assumption, and said.
"""

from __future__ import annotations

from kmodgate.model import Verdict

from .case import Candidates, Case, Change, Outcome, judge, report_on
from .losses import AWAY_FROM_ALLOW
from .remedies import TOWARDS_ALLOW

__all__ = ["Case", "Change", "Outcome", "changes", "judge", "report_on"]


def changes(case: Case, found: Outcome) -> tuple[Change, ...]:
    """Every single change that gives another verdict: first what is safest.

    Args:
        case: the load.
        found: what ``judge`` made of it.
    """
    allowed = found.decision.verdict is Verdict.ALLOW
    sources: tuple[Candidates, ...] = AWAY_FROM_ALLOW if allowed else TOWARDS_ALLOW
    result = []
    for attempt in (attempt for source in sources for attempt in source(case, found)):
        then = judge(attempt.case).decision
        if then.verdict is not found.decision.verdict:
            result.append(Change(attempt.kind, attempt.change, then, attempt.provided, attempt.danger))
    return tuple(result)
