# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.vectors import generate
from tests.vectors.generate import Identity, append, make_identity, sequence, signed_data, signer_info, tlv

from kmodgate.errors import KmodgateError, SignatureError
from kmodgate.signature import Revocations, TrustStore, load_certificates, predict, report, verify

PAYLOAD = generate.make_elf(generate.MODINFO)
REJECTED = "EKEYREJECTED"
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(data: bytes, trust: TrustStore) -> tuple[str, str]:
    with pytest.raises(SignatureError) as caught:
        verify(data, trust)
    return caught.value.status.value, caught.value.errno_name


def test_the_generated_vectors(signer: Identity, stranger: Identity, trust: TrustStore) -> None:
    for name, (data, status, errno) in generate.vectors(signer, stranger).items():
        got = report(data, trust)
        assert (got.status, got.errno) == (status, errno), name
        assert got.sha256 == hashlib.sha256(data).hexdigest(), name


@pytest.mark.parametrize("keyid", [(), ("-keyid",)], ids=["issuer", "skid"])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("kind", ["rsa", "p256", "p384", "p521"])
def test_every_supported_algorithm_as_openssl_signs(kind: str, digest: str, keyid: tuple[str, ...]) -> None:
    identity = make_identity(f"{kind} key", kind)
    store = TrustStore(load_certificates(identity.pem, "key.pem"))
    cms = generate.openssl_cms(PAYLOAD, identity, digest, "-noattr", "-nocerts", "-nosmimecap", *keyid)
    verified = verify(append(PAYLOAD, cms), store)
    assert verified.hash_algorithm == digest
    assert verified.signature_algorithm == ("rsa" if kind == "rsa" else "ecdsa")
    assert verified.anchor.label == "key.pem"
    assert outcome(append(PAYLOAD + b"\0", cms), store) == ("bad_signature", REJECTED)


def test_empty_means_deny(signer: Identity) -> None:
    data = append(PAYLOAD, generate.openssl_cms(PAYLOAD, signer))
    assert outcome(data, TrustStore()) == ("untrusted_signer", REJECTED)


def test_the_report_names_an_unknown_signer(signer: Identity) -> None:
    got = report(append(PAYLOAD, generate.openssl_cms(PAYLOAD, signer)), TrustStore())
    assert got.signer is not None
    assert got.signer.issuer == "CN=signer"
    assert got.signer.serial == f"{signer.certificate.serial_number:x}"
    assert (got.hash_algorithm, got.signature_algorithm) == ("sha256", "rsa")


def _messages(signer: Identity, stranger: Identity) -> dict[str, tuple[bytes, str, str]]:
    good = signer_info(PAYLOAD, signer)
    skid = tlv(0x80, signer.skid)
    digest = tlv(0x04, hashlib.sha256(PAYLOAD).digest())
    attributes = tlv(
        0xA0,
        sequence(generate.oid("contentType"), tlv(0x31, generate.oid("data"))),
        sequence(generate.oid("1.2.840.113549.1.9.4"), tlv(0x31, digest)),
    )
    with_attributes = signer_info(PAYLOAD, signer, attributes=attributes)
    malformed, unsupported, bad = "malformed_signature", "unsupported_signature", "bad_signature"
    return {
        "empty": (b"", malformed, "EBADMSG"),
        "not DER": (b"\x30\x80" + bytes(20), malformed, "EBADMSG"),
        "cut short": (signed_data(good)[:-1], malformed, "EBADMSG"),
        "outer type": (signed_data(good, outer="envelopedData"), malformed, "EINVAL"),
        "foreign outer type": (
            sequence(generate.oid("envelopedData"), tlv(0xA0, sequence())),
            malformed,
            "EINVAL",
        ),
        "no SignedData": (sequence(generate.oid("signedData")), malformed, "EINVAL"),
        "content type": (signed_data(good, content_type="tstInfo"), malformed, "EINVAL"),
        "SignedData version 2": (signed_data(good, version=2), malformed, "EINVAL"),
        "SignerInfo version 2": (signed_data(signer_info(PAYLOAD, signer, version=2)), malformed, "EINVAL"),
        "versions 3 and 1": (signed_data(good, version=3), malformed, "EBADMSG"),
        "versions 1 and 3": (
            signed_data(signer_info(PAYLOAD, signer, version=3, sid=skid)),
            malformed,
            "EBADMSG",
        ),
        "skid in version 1": (signed_data(signer_info(PAYLOAD, signer, sid=skid)), malformed, "EINVAL"),
        "issuer in version 3": (
            signed_data(signer_info(PAYLOAD, signer, version=3), version=3),
            malformed,
            "EINVAL",
        ),
        "empty skid": (
            signed_data(signer_info(PAYLOAD, signer, version=3, sid=tlv(0x80)), version=3),
            malformed,
            "EINVAL",
        ),
        "no signer": (signed_data(), malformed, "EBADMSG"),
        "attributes on one of two": (signed_data(good, with_attributes), malformed, "EINVAL"),
        "CRLs": (signed_data(good, crls=tlv(0xA1, sequence())), malformed, "EBADMSG"),
        "embedded content": (
            signed_data(good, content=tlv(0xA0, tlv(0x04, PAYLOAD))),
            malformed,
            "EBADMSG",
        ),
        "broken certificate": (signed_data(good, certificates=tlv(0xA0, sequence())), malformed, "EBADMSG"),
        "signed attributes": (signed_data(with_attributes), unsupported, REJECTED),
        "digest not announced": (signed_data(good, digests=("sha512",)), malformed, "EBADMSG"),
        "parameters": (
            signed_data(good).replace(generate.algorithm("rsa"), generate.algorithm("rsa")[:-2] + b"\4\0"),
            malformed,
            "EBADMSG",
        ),
        "issuer that is no Name": (
            signed_data(signer_info(PAYLOAD, signer, sid=sequence(tlv(0x31), generate.integer(5)))),
            malformed,
            "EBADMSG",
        ),
        "indirect data": (signed_data(good, content_type="indirectData"), malformed, "EBADMSG"),
        "unknown digest": (
            signed_data(signer_info(PAYLOAD, signer, digest_oid="blake2b")),
            unsupported,
            REJECTED,
        ),
        "unknown digest beside embedded content": (
            signed_data(
                signer_info(PAYLOAD, signer, digest_oid="blake2b"), content=tlv(0xA0, tlv(0x04, PAYLOAD))
            ),
            unsupported,
            REJECTED,
        ),
        "SHA-1": (
            signed_data(signer_info(PAYLOAD, signer, digest="sha1"), digests=("sha1",)),
            unsupported,
            REJECTED,
        ),
        "sha256WithRSA": (
            signed_data(signer_info(PAYLOAD, signer, signature_oid="sha256WithRSA")),
            unsupported,
            REJECTED,
        ),
        "Ed25519": (
            signed_data(signer_info(PAYLOAD, signer, signature_oid="ed25519")),
            unsupported,
            REJECTED,
        ),
        "ECDSA over an RSA key": (
            signed_data(signer_info(PAYLOAD, signer, signature_oid="1.2.840.10045.4.3.2")),
            bad,
            REJECTED,
        ),
        "other digest than signed": (
            signed_data(signer_info(PAYLOAD, signer, digest_oid="sha512"), digests=("sha512",)),
            bad,
            REJECTED,
        ),
        "empty signature": (signed_data(signer_info(PAYLOAD, signer, signature=b"")), bad, REJECTED),
        "signed by another key": (
            signed_data(signer_info(PAYLOAD, signer, signature=generate.raw_signature(PAYLOAD, stranger))),
            bad,
            REJECTED,
        ),
        "trusted beside a bad one": (
            signed_data(good, signer_info(PAYLOAD, signer, signature=b"x")),
            bad,
            REJECTED,
        ),
        "unknown beside SHA-1": (
            signed_data(
                signer_info(PAYLOAD, stranger),
                signer_info(PAYLOAD, signer, digest="sha1"),
                digests=("sha1", "sha256"),
            ),
            unsupported,
            REJECTED,
        ),
        "unknown algorithm beside a trusted one": (
            signed_data(good, signer_info(PAYLOAD, stranger, digest_oid="blake2b")),
            unsupported,
            REJECTED,
        ),
    }


def test_every_message_defect_has_the_errno_of_the_kernel(
    signer: Identity, stranger: Identity, trust: TrustStore
) -> None:
    failures = []
    for name, (cms, status, errno) in _messages(signer, stranger).items():
        got = outcome(append(PAYLOAD, cms), trust)
        if got != (status, errno):
            failures.append(f"{name}: {got}, not {(status, errno)}")
    assert not failures


def test_one_trusted_signer_is_enough(signer: Identity, stranger: Identity, trust: TrustStore) -> None:
    # The signer that is not found is not checked at all, so junk beside it is no obstacle.
    junk = signer_info(PAYLOAD, stranger, signature=b"junk")
    good = signer_info(PAYLOAD, signer)
    for cms in (signed_data(good), signed_data(good, junk)):
        assert verify(append(PAYLOAD, cms), trust).anchor.label == "signer.pem"


def test_the_embedded_certificate_of_an_anchor_changes_nothing(signer: Identity, trust: TrustStore) -> None:
    cms = generate.openssl_cms(PAYLOAD, signer, "sha256", "-noattr", "-nosmimecap")
    assert verify(append(PAYLOAD, cms), trust).anchor.label == "signer.pem"
    assert outcome(append(PAYLOAD + b"x", cms), trust) == ("bad_signature", REJECTED)


def test_a_certificate_inside_that_has_no_part_is_refused(
    signer: Identity, stranger: Identity, trust: TrustStore
) -> None:
    cms = signed_data(signer_info(PAYLOAD, signer), certificates=tlv(0xA0, stranger.der))
    assert predict(append(PAYLOAD, cms), trust) is None
    assert outcome(append(PAYLOAD, cms), trust) == ("malformed_signature", "EBADMSG")
    both = TrustStore(trust.anchors + load_certificates(stranger.pem, "stranger.pem"))
    assert verify(append(PAYLOAD, cms), both).anchor.label == "signer.pem"
    broken = bytearray(stranger.der)
    broken[-1] ^= 1  # a self-signature that does not match spoils the message
    cms = signed_data(signer_info(PAYLOAD, signer), certificates=tlv(0xA0, bytes(broken)))
    # A wrong RSA value unpads to noise: EINVAL as a rule, as from the kernel.
    assert outcome(append(PAYLOAD, cms), trust)[0] == "bad_signature"


def test_a_certificate_inside_never_makes_itself_trusted(stranger: Identity, trust: TrustStore) -> None:
    cms = generate.openssl_cms(PAYLOAD, stranger, "sha256", "-noattr", "-nosmimecap")
    assert outcome(append(PAYLOAD, cms), trust) == ("untrusted_signer", REJECTED)
    # With its certificate at hand, a tampered payload shows even for a stranger.
    assert outcome(append(PAYLOAD + b"x", cms), trust) == ("bad_signature", REJECTED)


def test_an_embedded_certificate_cannot_stand_in_for_the_anchor(
    signer: Identity, stranger: Identity, trust: TrustStore
) -> None:
    double = make_identity("signer", key=stranger.key, serial=signer.certificate.serial_number)
    cms = signed_data(signer_info(PAYLOAD, double), certificates=tlv(0xA0, double.der))
    assert outcome(append(PAYLOAD, cms), trust) == ("untrusted_signer", REJECTED)
    cms = signed_data(signer_info(PAYLOAD, signer), certificates=tlv(0xA0, double.der))
    assert outcome(append(PAYLOAD, cms), trust)[0] == "bad_signature"


def test_two_keys_under_one_id_must_both_verify(signer: Identity, stranger: Identity) -> None:
    double = make_identity("signer", key=stranger.key, serial=signer.certificate.serial_number)
    anchors = load_certificates(signer.pem + double.pem, "both.pem")
    data = append(PAYLOAD, signed_data(signer_info(PAYLOAD, signer)))
    assert outcome(data, TrustStore(anchors)) == ("bad_signature", REJECTED)
    renewed = make_identity("signer", key=signer.key, serial=signer.certificate.serial_number)
    anchors = load_certificates(signer.pem + renewed.pem, "both.pem")
    assert verify(data, TrustStore(anchors))


def test_revocation_wins(signer: Identity, stranger: Identity) -> None:
    data = append(PAYLOAD, signed_data(signer_info(PAYLOAD, signer), signer_info(PAYLOAD, stranger)))
    anchors = load_certificates(signer.pem + stranger.pem, "both.pem")
    tbs = hashlib.sha256(stranger.certificate.tbs_certificate_bytes).digest()
    for revocations in (
        Revocations(certificates=frozenset({tbs})),
        Revocations(files=frozenset({hashlib.sha256(data).digest()})),
        Revocations(files=frozenset({hashlib.sha256(PAYLOAD).digest()})),
        Revocations(key_ids=frozenset({stranger.skid})),
    ):
        assert verify(data, TrustStore(anchors))
        assert outcome(data, TrustStore(anchors, revocations)) == ("revoked", REJECTED)


def test_the_report_of_a_revoked_file_names_its_signer(signer: Identity, trust: TrustStore) -> None:
    data = append(PAYLOAD, signed_data(signer_info(PAYLOAD, signer)))
    revocations = Revocations(files=frozenset({hashlib.sha256(data).digest()}))
    got = report(data, TrustStore(trust.anchors, revocations))
    assert (got.status, got.errno) == ("revoked", REJECTED)
    assert got.signer is not None
    assert got.signer.subject == "CN=signer"
    assert got.sha256 == hashlib.sha256(data).hexdigest()


def test_an_unsigned_file_can_be_revoked(trust: TrustStore) -> None:
    revocations = Revocations(files=frozenset({hashlib.sha256(PAYLOAD).digest()}))
    assert outcome(PAYLOAD, TrustStore(trust.anchors, revocations)) == ("revoked", REJECTED)


def test_a_revoked_certificate_inside_refuses(signer: Identity, stranger: Identity) -> None:
    cms = signed_data(signer_info(PAYLOAD, signer), certificates=tlv(0xA0, stranger.der))
    tbs = hashlib.sha512(stranger.certificate.tbs_certificate_bytes).digest()
    store = TrustStore(load_certificates(signer.pem, "a"), Revocations(certificates=frozenset({tbs})))
    assert outcome(append(PAYLOAD, cms), store) == ("revoked", REJECTED)


@pytest.mark.parametrize(("days", "words"), [((-30, -10), "expired on"), ((10, 30), "not valid before")])
def test_expiry_is_told_and_refused_only_on_request(days: tuple[int, int], words: str) -> None:
    identity = make_identity("old", days=days)
    store = TrustStore(load_certificates(identity.pem, "old.pem"))
    data = append(PAYLOAD, generate.openssl_cms(PAYLOAD, identity))
    now = datetime.now(UTC)
    assert words in verify(data, store, now=now).detail
    assert words not in verify(data, store).detail
    with pytest.raises(SignatureError, match=words) as caught:
        verify(data, store, now=now, require_validity=True)
    assert caught.value.errno_name == REJECTED
    assert verify(data, store, now=now + timedelta(days=sum(days) / 2), require_validity=True)
    with pytest.raises(ValueError, match="needs the time"):
        verify(data, store, require_validity=True)


@QUICK
@given(data=st.data())
def test_any_changed_byte_is_never_trusted(data: st.DataObject, signer: Identity, trust: TrustStore) -> None:
    good = append(PAYLOAD, signed_data(signer_info(PAYLOAD, signer)))
    position = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(1, 255))
    changed = bytearray(good)
    changed[position] ^= value
    with pytest.raises(SignatureError):
        verify(changed, trust)


@QUICK
@given(data=st.data())
def test_a_truncated_file_is_never_trusted(data: st.DataObject, signer: Identity, trust: TrustStore) -> None:
    good = append(PAYLOAD, signed_data(signer_info(PAYLOAD, signer)))
    start = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(start, len(good) - (start == 0)))
    with pytest.raises(SignatureError):
        verify(good[start:end], trust)


@QUICK
@given(payload=st.binary(max_size=64), cms=st.binary(max_size=300), raw=st.booleans())
def test_no_input_raises_anything_else(payload: bytes, cms: bytes, raw: bool, trust: TrustStore) -> None:
    with pytest.raises(KmodgateError):
        verify(payload + cms if raw else append(payload, cms), trust)


@QUICK
@given(data=st.data())
def test_no_damaged_message_raises_anything_else(
    data: st.DataObject, signer: Identity, trust: TrustStore
) -> None:
    message = bytearray(
        signed_data(
            signer_info(PAYLOAD, signer), certificates=tlv(0xA0, signer.der), content_type="indirectData"
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    revocations = Revocations(key_ids=frozenset({b"x"}))
    report(append(PAYLOAD, bytes(message)), TrustStore(trust.anchors, revocations))


@pytest.mark.parametrize("which", ["object identifier", "serial number", "key identifier", "issuer"])
def test_a_report_stays_small_whatever_the_message_holds(which: str, signer: Identity) -> None:
    long = b"\x81" * 50_000 + b"\x01"
    name = signer.certificate.issuer.public_bytes()
    common_name = sequence(generate.oid("2.5.4.3"), tlv(0x0C, b"x" * 50_000))
    infos = {
        "object identifier": signer_info(PAYLOAD, signer).replace(generate.oid("sha256"), tlv(0x06, long)),
        "serial number": signer_info(PAYLOAD, signer, sid=sequence(name, tlv(0x02, long))),
        "key identifier": signer_info(PAYLOAD, signer, version=3, sid=tlv(0x80, long)),
        "issuer": signer_info(
            PAYLOAD, signer, sid=sequence(sequence(tlv(0x31, common_name)), generate.integer(5))
        ),
    }
    message = signed_data(infos[which], version=3 if which == "key identifier" else 1)
    got = report(append(PAYLOAD, message), TrustStore())
    assert got.status != "trusted_signature"
    assert len(repr(got)) < 2500
