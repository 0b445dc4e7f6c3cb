# SPDX-License-Identifier: Apache-2.0
"""What a rung cannot enforce is refused, with a remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kmodgate.model import Backend, EffectivePolicy, Mode, Policy
from kmodgate.rungs import BEFORE_THE_KERNEL, NO_DIGEST, ONLY_WATCHES, refusals


def policy(word: Policy = Policy.ENFORCE, **more: Any) -> EffectivePolicy:
    return EffectivePolicy(word, Mode.ENFORCE, load_pin=True, **more)


@pytest.mark.parametrize(
    ("asked", "certificates", "remedies"),
    [
        (policy(), False, ()),
        (policy(), True, ("trust.certificates",)),
        (policy(kernel_keyrings=False), True, ("trust.certificates", "trust.kernelKeyrings")),
        (policy(revocations=True), False, ("trust.revoked",)),
        (policy(pinned_root_exempt=True), False, ()),
        # LoadPin alone: certificates count for nothing there, revocations do.
        (policy(Policy.DO_NOT_ENFORCE), True, ()),
        (policy(Policy.DO_NOT_ENFORCE, kernel_keyrings=False), True, ()),
        (policy(Policy.UNSPECIFIED, revocations=True), False, ("trust.revoked",)),
    ],
)
def test_without_digests(asked: EffectivePolicy, certificates: bool, remedies: tuple[str, ...]) -> None:
    found = refusals(Backend.BPF_LSM_BASIC, asked, configured_certificates=certificates)
    assert len(found) == len(remedies)
    for text, remedy in zip(found, remedies, strict=True):
        assert text.startswith("backend bpf-lsm-basic takes no digest")
        assert remedy in text
        assert "or use a node with Linux 5.18 or later" in text


def test_audit_asks_for_the_same() -> None:
    audit = EffectivePolicy(Policy.ENFORCE, Mode.AUDIT, load_pin=True)
    assert refusals(Backend.BPF_LSM_BASIC, audit, configured_certificates=True)


def test_other_rungs_refuse_nothing() -> None:
    asked = policy(kernel_keyrings=False, revocations=True)
    for backend in set(Backend) - NO_DIGEST - BEFORE_THE_KERNEL - ONLY_WATCHES:
        assert refusals(backend, asked, configured_certificates=True) == ()


@pytest.mark.parametrize(
    ("asked", "certificates", "words"),
    [
        (policy(), False, ()),
        (policy(), True, ("trust.certificates",)),
        (policy(kernel_keyrings=False), False, ("trust.kernelKeyrings",)),
        (policy(pinned_root_exempt=True), False, ("pinnedRootExempt",)),
        (policy(revocations=True), False, ("trust.revoked",)),
        (policy(Policy.UNSPECIFIED), True, ()),
        (policy(Policy.UNSPECIFIED, revocations=True), False, ("trust.revoked",)),
    ],
)
def test_what_a_kernel_alone_cannot_refuse(
    asked: EffectivePolicy, certificates: bool, words: tuple[str, ...]
) -> None:
    found = refusals(Backend.TRACEFS, asked, configured_certificates=certificates)
    assert len(found) == len(words)
    for text, word in zip(found, words, strict=True):
        assert word in text
        assert "cannotEnforce: observe" in text
    audit = replace(asked, mode=Mode.AUDIT)
    assert refusals(Backend.TRACEFS, audit, configured_certificates=certificates) == ()
