# SPDX-License-Identifier: Apache-2.0
"""Kernel records become events: what is known, what is not, and what is hostile."""

from __future__ import annotations

import itertools
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kmodgate.hooks import abi
from kmodgate.model import (
    Api,
    By,
    EffectivePolicy,
    Mode,
    ModuleInfo,
    Origin,
    Policy,
    Reason,
    SignatureReport,
    SignatureStatus,
    Signer,
    Verdict,
    Verification,
)
from kmodgate.observe import Observer, is_routine
from kmodgate.policy import compile_table
from kmodgate.telemetry.events import is_remarkable

ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
AUDIT = EffectivePolicy(Policy.ENFORCE, Mode.AUDIT, load_pin=True)
REPORT = SignatureReport(
    SignatureStatus.UNTRUSTED_SIGNER,
    "EKEYREJECTED",
    signer=Signer(issuer="CN=stranger"),
    module=ModuleInfo("kmgtest", None, None, None),
    detail="the signer is not among the trust anchors",
)


def put(field: object, data: bytes) -> None:
    for index, byte in enumerate(data):
        field[index] = byte  # type: ignore[index]


def denied(digest: bytes = b"\xaa" * 32) -> abi.Event:
    record = abi.Event(
        time=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        generation=1,
        tgid=2**22 + 1,
        tid=2**22 + 2,
        parent=1,
        uid=1000,
        device=254 << 20 | 3,
        inode=42,
        size=7743,
        result=-129,
        error=129,
        verdict=Verdict.DENY,
        reason=Reason.UNTRUSTED_SIGNER,
        api=Api.FINIT_MODULE,
        origin=Origin.OTHER_FILESYSTEM,
        by=By.KMODGATE,
        verification=Verification.UNTRUSTED_SIGNER,
        has_digest=1,
        path_length=10,
        hold=5_000_000,
        decision_time=6_000_000,
    )
    put(record.digest, digest)
    put(record.comm, b"insmod")
    put(record.fstype, b"tmpfs")
    put(record.path, b"/tmp/x.ko\0")
    return record


@pytest.fixture
def observer() -> Observer:
    known = {b"\xaa" * 32: REPORT}
    made = Observer(known.get, node="node-1")
    made.policy_changed(1, ENFORCE)
    return made


def test_a_denial_is_told_whole(observer: Observer) -> None:
    event = observer.event(denied())
    assert (event.verdict, event.reason, event.errno, event.result) == (
        Verdict.DENY,
        Reason.UNTRUSTED_SIGNER,
        129,
        -129,
    )
    assert (event.policy, event.mode) == (Policy.ENFORCE, Mode.ENFORCE)
    assert (event.path, event.file_system, event.device, event.inode) == ("/tmp/x.ko", "tmpfs", (254, 3), 42)
    assert event.signer == Signer(issuer="CN=stranger")
    assert event.module == "kmgtest"
    assert event.node == "node-1"
    assert event.sha256 == "aa" * 32
    assert (event.hold_ns, event.decision_ns) == (5_000_000, 6_000_000)
    assert abs((datetime.now(UTC) - event.time).total_seconds()) < 5


def test_a_process_that_is_gone_has_no_executable(observer: Observer) -> None:
    assert observer.event(denied()).exe is None


def test_the_executable_is_noted_when_the_question_comes(observer: Observer) -> None:
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    started = int(fields[19]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    observer.asked(9, os.getpid(), os.getpid(), started)
    record = denied()
    record.question = 9
    assert observer.event(record).exe == str(Path("/proc/self/exe").readlink())


def test_another_process_under_the_same_number_is_not_taken_for_it(observer: Observer) -> None:
    record = denied()
    record.tgid = record.tid = os.getpid()
    record.start_time = 1
    assert observer.event(record).exe is None


def test_the_policy_is_that_of_the_generation_that_decided(observer: Observer) -> None:
    observer.policy_changed(2, AUDIT)
    assert observer.event(denied()).mode is Mode.ENFORCE
    later = denied()
    later.generation = 2
    assert observer.event(later).mode is Mode.AUDIT


def test_what_nobody_verified_is_said_to_be_unknown(observer: Observer) -> None:
    record = denied(b"\xbb" * 32)
    record.reason, record.verification = Reason.AGENT_UNAVAILABLE, Verification.AGENT_AWAY
    event = observer.event(record)
    assert event.signature_status is None
    assert event.signer is None
    assert event.signature_detail is not None
    assert "agent" in event.signature_detail


def test_a_load_from_memory_has_no_file(observer: Observer) -> None:
    record = denied()
    record.api, record.origin, record.path_length = Api.INIT_MODULE, Origin.MEMORY, 0
    event = observer.event(record)
    assert (event.path, event.file_system, event.device, event.inode) == (None, None, None, None)
    assert not event.path_truncated


def test_names_that_are_no_text_survive(observer: Observer) -> None:
    record = denied()
    put(record.comm, b"\xff\x1b[2Jx\n")
    event = observer.event(record)
    assert event.comm is not None
    assert os.fsencode(event.comm) == b"\xff\x1b[2Jx\n"


def test_a_path_too_long_for_the_record_is_said_to_be_cut(observer: Observer) -> None:
    record = denied()
    record.path_length = 0
    event = observer.event(record)
    assert event.path is None
    assert event.path_truncated


def allowed_alone(**changes: int) -> abi.Event:
    """The record of a load that was let in without the agent."""
    record = abi.Event(verdict=Verdict.ALLOW, by=By.KERNEL, verification=Verification.KERNEL_TRUSTED)
    record.reason = Reason.TRUSTED_SIGNATURE
    for name, value in changes.items():
        setattr(record, name, value)
    return record


@pytest.mark.parametrize(
    ("reason", "by", "verification"),
    [
        (Reason.TRUSTED_SIGNATURE, By.KERNEL, Verification.KERNEL_TRUSTED),
        (Reason.PINNED_ROOT, By.KMODGATE, Verification.NOT_YET),
        (Reason.NOT_RESTRICTED, By.KMODGATE, Verification.NOT_YET),
    ],
)
def test_what_is_routine_would_not_be_logged(
    observer: Observer, reason: Reason, by: By, verification: Verification
) -> None:
    record = allowed_alone(reason=reason, by=by, verification=verification)
    assert is_routine(record)
    assert not is_remarkable(observer.event(record))


def test_no_other_reason_lets_a_load_in_without_the_agent() -> None:
    found = set()
    for kind, mode, load_pin, exempt in itertools.product(Policy, Mode, (False, True), (False, True)):
        policy = EffectivePolicy(kind, mode, load_pin=load_pin, pinned_root_exempt=exempt)
        found |= {entry.reason for entry in compile_table(policy) if entry.verdict is Verdict.ALLOW}
    assert found == {Reason.TRUSTED_SIGNATURE, Reason.PINNED_ROOT, Reason.NOT_RESTRICTED}


@pytest.mark.parametrize(
    "changes", [{"verdict": Verdict.DENY}, {"question": 1}, {"has_digest": 1}, {"result": -8}]
)
def test_what_is_out_of_the_ordinary_is_not_routine(changes: dict[str, int]) -> None:
    assert not is_routine(allowed_alone(**changes))
