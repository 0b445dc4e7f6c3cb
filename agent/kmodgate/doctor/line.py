# SPDX-License-Identifier: Apache-2.0
"""One line of the report, and the ways to make one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from kmodgate.node import Finding, Severity

from .seen import Seen

Findings: TypeAlias = dict[str, Finding]
"""What ``node.limits`` found, by code."""


class State(StrEnum):
    """``problem``: the policy cannot be enforced. ``warning``: less holds than one may think."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Attributes:
        code: stable, lower-case with hyphens.
        subject: what was looked at, for people.
        message: what was found; where it is not ``ok`` also what to do.
    """

    code: str
    subject: str
    state: State
    message: str


def ok(code: str, subject: str, message: str) -> Check:
    """Nothing to do."""
    return Check(code, subject, State.OK, message)


def warning(code: str, subject: str, message: str) -> Check:
    """Less holds than one may think."""
    return Check(code, subject, State.WARNING, message)


def problem(code: str, subject: str, message: str) -> Check:
    """The policy cannot be enforced."""
    return Check(code, subject, State.PROBLEM, message)


def unknown(code: str, subject: str, message: str) -> Check:
    """Not seen; the message says how to see it."""
    return Check(code, subject, State.UNKNOWN, message)


def judged(code: str, subject: str, findings: Findings, names: tuple[str, ...], fine: Check) -> Check:
    """The first of the findings with these codes, or ``fine`` when there is none."""
    for name in names:
        if name in findings:
            found = findings[name]
            state = State.PROBLEM if found.severity is Severity.ERROR else State.WARNING
            return Check(code, subject, state, found.message)
    return fine


def only_live(seen: Seen) -> str:
    """How to see what this look could not."""
    return "on the running node" if not seen.live else "with sysfs and procfs mounted"
