# SPDX-License-Identifier: Apache-2.0
"""What would change a verdict: every change is carried out here, and must keep its promise."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tests.vectors.generate import MODINFO, Identity, append, make_elf, make_identity, openssl_cms

from kmodgate.model import EffectivePolicy, Mode, Origin, Policy, Reason, Verdict, Verification
from kmodgate.signature import PROFILES, Revocations, TrustStore, load_certificates
from kmodgate.whatif import Case, Change, changes, judge

ELF = make_elf(MODINFO)
ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
LOAD_PIN = EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=True)
FREE = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=False)


@pytest.fixture(scope="module")
def operator() -> Identity:
    return make_identity("operator")


@pytest.fixture(scope="module")
def stranger() -> Identity:
    return make_identity("stranger")


@pytest.fixture(scope="module")
def signed(operator: Identity) -> Case:
    return Case(
        data=append(ELF, openssl_cms(ELF, operator)),
        policy=ENFORCE,
        trust=TrustStore(load_certificates(operator.pem, "operator.pem")),
        origin=Origin.OTHER_FILESYSTEM,
        now=datetime.now(UTC),
    )


def found(case: Case) -> dict[str, Change]:
    outcome = judge(case)
    listed = changes(case, outcome)
    assert all(change.decision.verdict is not outcome.decision.verdict for change in listed)
    assert len({change.kind for change in listed}) == len(listed)
    return {change.kind: change for change in listed}


def weakens(kinds: dict[str, Change]) -> set[str]:
    return {kind for kind, change in kinds.items() if change.danger is not None}


def test_nothing_is_offered_that_was_not_tried(signed: Case) -> None:
    """Each change, applied by hand here, gives the verdict it is shown with."""
    kinds = found(signed)
    assert set(kinds) == {"tamper", "distrust", "revoke-signer", "revoke-file", "force"}
    assert judge(replace(signed, forced=True)).decision == kinds["force"].decision
    assert judge(replace(signed, trust=TrustStore())).decision == kinds["distrust"].decision
    digest = hashlib.sha256(signed.data).digest()
    revoked = TrustStore(signed.trust.anchors, Revocations(files=frozenset({digest})))
    assert judge(replace(signed, trust=revoked)).decision == kinds["revoke-file"].decision
    assert kinds["tamper"].decision.reason is Reason.BAD_SIGNATURE
    assert digest.hex() in kinds["revoke-file"].change


def test_an_unsigned_module(signed: Case) -> None:
    kinds = found(replace(signed, data=ELF))
    assert set(kinds) == {"sign", "mode-audit"}
    assert kinds["sign"].decision.reason is Reason.TRUSTED_SIGNATURE
    assert kinds["sign"].danger is None
    assert kinds["mode-audit"].decision.verdict is Verdict.WOULD_DENY
    # The promise, kept: a real signature over the same payload.
    assert judge(signed).decision == kinds["sign"].decision
    local = found(replace(signed, data=ELF, origin=Origin.PINNED_ROOT))
    assert weakens(local) == {"pinned-root-exempt", "policy", "mode-audit"}
    bare = found(replace(signed, data=ELF, trust=TrustStore()))
    assert "kmodgate.trust.certificates" in bare["sign"].change
    assert bare["sign"].danger is not None


def test_an_unknown_signer(signed: Case, stranger: Identity) -> None:
    case = replace(signed, data=append(ELF, openssl_cms(ELF, stranger)))
    kinds = found(case)
    assert set(kinds) == {"sign", "trust-certificate", "mode-audit"}
    assert f"{stranger.certificate.serial_number:x}" in kinds["trust-certificate"].change
    assert kinds["trust-certificate"].provided is not None
    more = TrustStore((*signed.trust.anchors, *load_certificates(stranger.pem, "stranger.pem")))
    assert judge(replace(case, trust=more)).decision == kinds["trust-certificate"].decision


def test_only_the_entries_that_revoke_are_named(signed: Case, operator: Identity) -> None:
    others = frozenset(hashlib.sha256(bytes([number])).digest() for number in range(40))
    payload = hashlib.sha256(ELF).digest()
    revocations = Revocations(files=others | {payload}, key_ids=frozenset({operator.skid, b"other"}))
    case = replace(signed, trust=TrustStore(signed.trust.anchors, revocations))
    assert judge(case).verification is Verification.REVOKED
    kinds = found(case)
    # Signing anew is no way out: the payload itself is revoked.
    assert set(kinds) == {"unrevoke", "mode-audit"}
    assert kinds["unrevoke"].change.count(":") - 1 == 1
    assert f"bin:{payload.hex()}" in kinds["unrevoke"].change
    assert f"id:{operator.skid.hex()}" in kinds["unrevoke"].change
    assert kinds["unrevoke"].danger is not None
    by_key = replace(
        case, trust=TrustStore(signed.trust.anchors, Revocations(key_ids=frozenset({operator.skid})))
    )
    assert "sign" in found(by_key)


def test_a_certificate_that_is_revoked_itself(signed: Case) -> None:
    (anchor,) = signed.trust.anchors
    revocations = Revocations.of_certificate(anchor.certificate, anchor.identity, anchor.skid)
    case = replace(signed, trust=TrustStore(signed.trust.anchors, revocations))
    assert judge(case).verification is Verification.REVOKED
    kinds = found(case)
    assert "take CN=operator out of kmodgate.trust.revokedCertificates" in kinds["unrevoke"].change
    assert kinds["unrevoke"].decision.reason is Reason.TRUSTED_SIGNATURE
    # Another key is a way out: nothing but this one is revoked.
    assert "sign" in kinds


def test_a_revoked_module_is_let_in_by_no_policy(signed: Case) -> None:
    digest = hashlib.sha256(signed.data).digest()
    trust = TrustStore(signed.trust.anchors, Revocations(files=frozenset({digest})))
    for policy in (ENFORCE, LOAD_PIN, FREE):
        assert "policy" not in found(replace(signed, trust=trust, policy=policy))


def test_an_expired_signer(signed: Case) -> None:
    old = make_identity("old", days=(-30, -10))
    case = replace(
        signed,
        data=append(ELF, openssl_cms(ELF, old)),
        trust=TrustStore(load_certificates(old.pem, "old.pem")),
        require_validity=True,
    )
    kinds = found(case)
    assert set(kinds) == {"sign", "no-require-validity", "mode-audit"}
    assert kinds["no-require-validity"].danger is not None
    assert "require-validity" in found(replace(case, require_validity=False))


def test_an_algorithm_that_the_kernel_lacks(signed: Case) -> None:
    curve = make_identity("curve", "p256")
    case = replace(
        signed,
        data=append(ELF, openssl_cms(ELF, curve)),
        trust=TrustStore(load_certificates(curve.pem, "curve.pem")),
        profile=PROFILES["5.10"],
    )
    assert judge(case).decision.reason is Reason.UNSUPPORTED_SIGNATURE
    assert "Linux 6.1" in found(case)["kernel"].change


def test_loadpin_asks_for_the_place(signed: Case) -> None:
    kinds = found(replace(signed, data=ELF, policy=LOAD_PIN))
    assert set(kinds) == {"pinned-root", "loadpin-off", "mode-audit"}
    assert weakens(kinds) == set(kinds)
    trusted = found(replace(signed, policy=LOAD_PIN))
    assert trusted["policy"].danger is None
    assert trusted["policy"].decision.reason is Reason.TRUSTED_SIGNATURE
    memory = found(replace(signed, data=ELF, policy=LOAD_PIN, origin=Origin.MEMORY))
    assert memory["pinned-root"].decision.reason is Reason.PINNED_ROOT


def test_what_ends_an_allow_without_a_signature(signed: Case) -> None:
    local = found(replace(signed, data=ELF, policy=LOAD_PIN, origin=Origin.PINNED_ROOT))
    assert set(local) == {"other-file-system", "memory", "policy"}
    assert local["memory"].decision.reason is Reason.NO_FILE
    free = found(replace(signed, data=ELF, policy=FREE))
    assert set(free) == {"policy", "loadpin-on"}
    exempt = replace(ENFORCE, pinned_root_exempt=True)
    kinds = found(replace(signed, data=ELF, policy=exempt, origin=Origin.PINNED_ROOT))
    assert "no-pinned-root-exempt" in kinds


def test_audit_would_deny_and_enforcing_denies(signed: Case) -> None:
    audit = replace(ENFORCE, mode=Mode.AUDIT)
    kinds = found(replace(signed, data=ELF, policy=audit))
    assert kinds["mode-enforce"].decision.verdict is Verdict.DENY
    assert kinds["sign"].decision.verdict is Verdict.ALLOW


def test_forced_loads(signed: Case) -> None:
    kinds = found(replace(signed, forced=True))
    assert kinds["no-force"].decision.verdict is Verdict.ALLOW
    assert "sign" not in kinds


@pytest.mark.parametrize("data", [b"", b"\xfd7zXZ\0garbage"])
def test_a_file_that_cannot_be_read_has_no_signature_to_mend(signed: Case, data: bytes) -> None:
    kinds = found(replace(signed, data=data))
    assert judge(replace(signed, data=data)).verification is Verification.UNREADABLE
    assert set(kinds) == {"mode-audit"}
