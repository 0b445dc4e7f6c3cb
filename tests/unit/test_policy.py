# SPDX-License-Identifier: Apache-2.0
"""The policy against the vector file, and the compiled table against the policy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

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
    Stage,
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
    both = (True, False)
    for values in itertools.product(Policy, Mode, both, both, FailurePolicy, both, both):
        yield EffectivePolicy(*values)


def every_fact() -> Iterator[LoadFacts]:
    for api, origin, verification, stage in itertools.product(Api, Origin, Verification, Stage):
        yield LoadFacts(api, origin, verification, stage)


def test_audit_never_denies_and_never_calls_a_refusal_an_allow() -> None:
    for candidate in every_policy():
        if candidate.mode is not Mode.AUDIT:
            continue
        enforcing = replace(candidate, mode=Mode.ENFORCE)
        for facts in every_fact():
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
        for facts in every_fact():
            if policy.evaluate(candidate, facts).verdict is Verdict.PENDING:
                assert facts.verification is Verification.NOT_YET


def test_unspecified_means_do_not_enforce() -> None:
    for candidate in every_policy():
        if candidate.policy is Policy.UNSPECIFIED:
            twin = replace(candidate, policy=Policy.DO_NOT_ENFORCE)
            assert policy.compile_table(candidate) == policy.compile_table(twin)


def test_slots_that_stand_for_nothing_never_allow() -> None:
    used = {policy.table_index(facts) for facts in every_fact()}
    assert len(used) == len(Stage) * len(Api) * len(Origin) * len(Verification)
    for candidate in every_policy():
        table = policy.compile_table(candidate)
        assert len(table) == policy.TABLE_SIZE
        for index in set(range(policy.TABLE_SIZE)) - used:
            assert table[index].verdict in (Verdict.DENY, Verdict.WOULD_DENY)


def test_revoked_never_gets_in() -> None:
    for candidate in every_policy():
        for facts in every_fact():
            if facts.verification is Verification.REVOKED:
                decision = policy.evaluate(candidate, facts)
                assert decision.verdict in (Verdict.DENY, Verdict.WOULD_DENY)
                assert decision.reason is Reason.REVOKED


def test_with_revocations_no_load_gets_in_unseen() -> None:
    """Whatever lets a load in, its bytes were asked for, or the origin refuses it anyway."""
    for candidate in every_policy():
        if candidate.revocations:
            for facts in every_fact():
                if facts.verification is Verification.NOT_YET:
                    assert policy.evaluate(candidate, facts).verdict is not Verdict.ALLOW


def test_the_bytes_are_asked_for_only_where_that_can_matter() -> None:
    for candidate in every_policy():
        table = policy.compile_table(candidate)
        by_keyrings = candidate.policy is Policy.ENFORCE and not candidate.kernel_keyrings
        assert policy.judges_bytes(table) == (candidate.revocations or by_keyrings)


def test_without_that_nothing_is_held_against_the_bytes() -> None:
    for candidate in every_policy():
        if policy.judges_bytes(policy.compile_table(candidate)):
            continue
        for facts in every_fact():
            if facts.stage is Stage.BYTES and facts.verification is not Verification.REVOKED:
                in_kernel = LoadFacts(facts.api, facts.origin, Verification.KERNEL_TRUSTED)
                assert policy.evaluate(candidate, facts) == policy.evaluate(candidate, in_kernel)
