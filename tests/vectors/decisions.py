# SPDX-License-Identifier: Apache-2.0
"""Reads ``decisions.yaml`` into cases, one for each combination that a row stands for."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kmodgate.model import (
    Api,
    Decision,
    EffectivePolicy,
    FailurePolicy,
    LoadFacts,
    Mode,
    Origin,
    Policy,
    Reason,
    Stage,
    Verdict,
    Verification,
)

_POLICIES = {"E": Policy.ENFORCE, "D": Policy.DO_NOT_ENFORCE, "U": Policy.UNSPECIFIED}
_Member = TypeVar("_Member", bound=IntEnum)


@dataclass(frozen=True, slots=True)
class Case:
    """One policy, one set of facts, the decision they must give."""

    name: str
    policy: EffectivePolicy
    facts: LoadFacts
    want: Decision

    def __str__(self) -> str:
        facts = self.facts
        return (
            f"{self.policy.policy.name}-{self.policy.mode}-{facts.api.name}-{facts.origin.name}-"
            f"{facts.verification.name}-{facts.stage.name}: {self.name}"
        ).lower()


def _members(kind: type[_Member], names: str | list[str]) -> Iterable[_Member]:
    return list(kind) if names == "*" else [kind[name.upper()] for name in names]


def _row_cases(row: dict[str, Any]) -> Iterable[Case]:
    verdict, reason, number = row["want"]
    code = getattr(errno, number) if isinstance(number, str) else int(number)
    options = row.get("options", {})
    for word, mode, stage, api, origin, verification in itertools.product(
        row["policy"],
        Mode,
        _members(Stage, row.get("stages", ["signature"])),
        _members(Api, row["apis"]),
        _members(Origin, row["origins"]),
        _members(Verification, row["verifications"]),
    ):
        policy = EffectivePolicy(
            policy=_POLICIES[word],
            mode=mode,
            load_pin=row["load_pin"],
            pinned_root_exempt=options.get("pinned_root_exempt", False),
            failure_policy=FailurePolicy(options.get("failure_policy", "Fail")),
            kernel_keyrings=options.get("kernel_keyrings", True),
            revocations=options.get("revocations", False),
        )
        wanted = Verdict[verdict.upper()]
        if wanted is Verdict.DENY and mode is Mode.AUDIT:
            wanted = Verdict.WOULD_DENY
        yield Case(
            row["name"],
            policy,
            LoadFacts(api, origin, verification, stage),
            Decision(wanted, Reason[reason.upper()], code),
        )


def cases() -> list[Case]:
    """Every case of the vector file, in file order."""
    text = (Path(__file__).parent / "decisions.yaml").read_text(encoding="utf-8")
    return [case for row in yaml.safe_load(text) for case in _row_cases(row)]
