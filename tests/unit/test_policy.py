# SPDX-License-Identifier: Apache-2.0
"""The policy against the vector file, and the compiled table against the policy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from tests.vectors.decisions import Case, cases

from kmodgate import policy
from kmodgate.model import (
    Api,
    EffectivePolicy,
    FailurePolicy,
    LoadFacts,
    Mode,
    Origin,
    Policy,
    Reason,
    Verdict,
    Verification,
)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_evaluate_gives_the_decision_of_the_vector(case: Case) -> None:
    assert policy.evaluate(case.policy, case.facts) == case.want


@pytest.mark.parametrize("case", cases(), ids=str)
def test_compiled_table_holds_the_same_decision(case: Case) -> None:
    table = policy.compile_table(case.policy)
    assert table[policy.table_index(case.facts)] == case.want


def every_policy() -> Iterator[EffectivePolicy]:
    for word, mode, pin, exempt, failure in itertools.product(
        Policy, Mode, (True, False), (True, False), FailurePolicy
    ):
        yield EffectivePolicy(word, mode, pin, exempt, failure)


def test_audit_never_denies_and_never_calls_a_refusal_an_allow() -> None:
    for candidate in every_policy():
        if candidate.mode is not Mode.AUDIT:
            continue
        enforcing = EffectivePolicy(
            candidate.policy,
            Mode.ENFORCE,
            candidate.load_pin,
            candidate.pinned_root_exempt,
            candidate.failure_policy,
        )
        for api, origin, verification in itertools.product(Api, Origin, Verification):
            facts = LoadFacts(api, origin, verification)
            audit, strict = policy.evaluate(candidate, facts), policy.evaluate(enforcing, facts)
            assert audit.verdict is not Verdict.DENY
            assert (audit.reason, audit.errno) == (strict.reason, strict.errno)
            assert (audit.verdict is Verdict.WOULD_DENY) == (strict.verdict is Verdict.DENY)


def test_every_refusal_has_an_errno_and_a_reason_and_an_allow_has_no_errno() -> None:
    for candidate in every_policy():
        for entry in policy.compile_table(candidate):
            if entry.verdict in (Verdict.DENY, Verdict.WOULD_DENY):
                assert entry.errno > 0
                assert entry.reason >= Reason.OUTSIDE_PINNED_ROOT
            else:
                assert entry.errno == 0


def test_only_the_first_look_may_leave_a_load_undecided() -> None:
    for candidate in every_policy():
        for api, origin, verification in itertools.product(Api, Origin, Verification):
            decision = policy.evaluate(candidate, LoadFacts(api, origin, verification))
            if decision.verdict is Verdict.PENDING:
                assert verification is Verification.NOT_YET


def test_unspecified_means_do_not_enforce() -> None:
    for candidate in every_policy():
        if candidate.policy is Policy.UNSPECIFIED:
            twin = EffectivePolicy(
                Policy.DO_NOT_ENFORCE,
                candidate.mode,
                candidate.load_pin,
                candidate.pinned_root_exempt,
                candidate.failure_policy,
            )
            assert policy.compile_table(candidate) == policy.compile_table(twin)


def test_slots_that_stand_for_nothing_never_allow() -> None:
    used = {
        policy.table_index(LoadFacts(api, origin, verification))
        for api, origin, verification in itertools.product(Api, Origin, Verification)
    }
    assert len(used) == len(Api) * len(Origin) * len(Verification)
    for candidate in every_policy():
        table = policy.compile_table(candidate)
        assert len(table) == policy.TABLE_SIZE
        for index in set(range(policy.TABLE_SIZE)) - used:
            assert table[index].verdict in (Verdict.DENY, Verdict.WOULD_DENY)
