# SPDX-License-Identifier: Apache-2.0
"""A file that let go of its payload is judged like one that did not."""

from __future__ import annotations

import gc
import hashlib
import weakref

import pytest
from tests.unit.signature.test_mldsa import PAYLOAD, Signer, attributes
from tests.vectors.generate import Identity, append, openssl_cms, signed_data, vectors

from kmodgate.errors import SignatureError
from kmodgate.signature import (
    LATEST,
    PROFILES,
    Revocations,
    SignedFile,
    TrustStore,
    let_go,
    load_certificates,
    report,
)


@pytest.mark.parametrize("profile", [LATEST, PROFILES["5.10"], PROFILES["debian-12"]])
def test_every_report_stays_the_same(signer: Identity, stranger: Identity, profile: object) -> None:
    assert isinstance(profile, type(LATEST))
    anchors = load_certificates(signer.pem, "signer.pem")
    good = vectors(signer, stranger)["trusted"][0]
    revocations = [
        Revocations(),
        Revocations.parse(f"bin:{hashlib.sha256(good).hexdigest()}", "by file"),
        Revocations.parse(f"id:{anchors[0].signer.skid}", "by key"),
    ]
    for name, (data, _, _) in vectors(signer, stranger).items():
        for revoked in revocations:
            trust = TrustStore(anchors, revoked)
            file = SignedFile(data)
            assert let_go(file, profile), name
            assert file.size < len(data)
            assert report(file, trust, profile=profile) == report(data, trust, profile=profile), name


@pytest.mark.parametrize("digest", ["sha224", "sha384", "sha512", "sha3-256"])
def test_whatever_digest_a_signer_uses_is_kept(signer: Identity, trust: TrustStore, digest: str) -> None:
    payload = b"payload" * 100
    data = append(payload, openssl_cms(payload, signer, digest))
    file = SignedFile(data)
    assert let_go(file, LATEST)
    found = report(file, trust)
    assert found == report(data, trust)
    assert (found.trusted_by, found.hash_algorithm) == ("signer.pem", digest)


def test_what_was_let_go_is_never_made_up(signer: Identity) -> None:
    payload = b"payload" * 100
    file = SignedFile(append(payload, openssl_cms(payload, signer)))
    assert let_go(file, LATEST)
    assert file.digest("sha256") == hashlib.sha256(payload).digest()
    with pytest.raises(RuntimeError, match="let go"):
        file.payload()
    with pytest.raises(RuntimeError, match="let go"):
        file.digest("sha512")


@pytest.mark.parametrize("with_attributes", [False, True])
def test_a_payload_that_is_signed_itself_is_kept(with_attributes: bool) -> None:
    signer = Signer("mldsa65")
    info = signer.info(attributes=attributes() if with_attributes else b"")
    data = append(PAYLOAD, signed_data(info, digests=("sha512",)))
    file = SignedFile(data)
    assert not let_go(file, LATEST)
    assert bytes(file.payload()) == PAYLOAD
    assert report(file, signer.trust) == report(data, signer.trust)
    assert report(file, signer.trust).trusted_by == "mldsa65.pem"
    assert let_go(SignedFile(data), PROFILES["debian-12"])  # which knows no ML-DSA


def test_a_digest_that_cannot_be_computed_keeps_the_payload(
    signer: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new(name: str, *_: object, **__: object) -> object:
        raise ValueError(f"unsupported hash type {name}")

    payload = b"payload" * 100
    file = SignedFile(append(payload, openssl_cms(payload, signer, "sha3-256")))
    monkeypatch.setattr(hashlib, "new", new)
    assert not let_go(file, LATEST)
    assert bytes(file.payload()) == payload


def test_both_digests_are_those_of_their_bytes(signer: Identity) -> None:
    payload = b"payload" * 100
    data = append(payload, openssl_cms(payload, signer))
    for file in (SignedFile(data), SignedFile(memoryview(data)), SignedFile(bytearray(data))):
        assert file.sha256() == hashlib.sha256(data).digest()
        assert file.digest("sha256") == hashlib.sha256(payload).digest()
    assert SignedFile(payload).sha256() == hashlib.sha256(payload).digest()


class Bytes(bytearray):
    """Bytes whose end can be watched."""


def test_a_problem_holds_no_file_in_a_circle() -> None:
    """A scan switches the search for circles off: unsigned modules must go without it."""
    data = Bytes(b"no signature" * 100)
    gone = weakref.ref(data)
    file = SignedFile(data)
    gc.disable()
    try:
        for _ in range(2):
            with pytest.raises(SignatureError, match="no signature is appended") as caught:
                file.cms()
            del caught
        report(file, TrustStore())
        del file, data
        assert gone() is None
    finally:
        gc.enable()
