# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from tests.vectors.generate import Identity, make_identity

from kmodgate.errors import ConfigError
from kmodgate.signature import Revocations, TrustStore, load_certificates


def test_pem_and_der_give_the_same_anchor(signer: Identity) -> None:
    (pem,) = load_certificates(signer.pem, "a")
    (der,) = load_certificates(signer.der, "a")
    assert pem.identity == der.identity
    assert pem.skid == signer.skid
    assert pem.signer.subject == "CN=signer"
    assert pem.signer.serial == f"{signer.certificate.serial_number:x}"


def test_a_bundle_gives_all(signer: Identity, stranger: Identity) -> None:
    anchors = load_certificates(b"# ours\n" + signer.pem + stranger.pem, "bundle.pem")
    assert [anchor.signer.subject for anchor in anchors] == ["CN=signer", "CN=stranger"]


def test_both_ids_find_the_anchor(signer: Identity) -> None:
    anchors = load_certificates(signer.pem, "a")
    store = TrustStore(anchors)
    assert list(store.find(anchors[0].identity)) == list(anchors)
    assert list(store.find(signer.skid)) == list(anchors)
    assert not TrustStore().find(signer.skid)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no X.509 certificate"),
        (b"hello", "no X.509 certificate"),
        (b"\x30\x03\x02\x01\x00", "does not parse"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "does not parse"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "private key"),
    ],
)
def test_a_bad_file_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_certificates(data, "ours.pem")
    assert str(caught.value).startswith("ours.pem: ")


def test_a_broken_self_signature_is_refused(signer: Identity) -> None:
    damaged = bytearray(signer.der)
    damaged[-1] ^= 1
    with pytest.raises(ConfigError, match=r"no kernel loads .*signature does not match"):
        load_certificates(bytes(damaged), "ours.der")


def test_a_key_that_no_module_uses_is_refused(signer: Identity) -> None:
    from datetime import UTC, datetime  # noqa: PLC0415  # one test only

    from cryptography import x509  # noqa: PLC0415

    key = ed25519.Ed25519PrivateKey.generate()
    name = signer.certificate.subject
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 5)
        .not_valid_before(datetime(2024, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2034, 1, 1, tzinfo=UTC))
        .sign(key, None)
    )
    with pytest.raises(ConfigError, match=r"no kernel loads .*issue it for RSA"):
        load_certificates(certificate.public_bytes(serialization.Encoding.PEM), "ed.pem")


def test_revocations_are_read_as_the_kernel_describes_them() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    text = f"# list\n\ntbs:{digest}\nbin:{digest}  # one file\nid:0a0b\n"
    revocations = Revocations.parse(text, "list")
    assert revocations.certificates == revocations.files == {bytes.fromhex(digest)}
    assert revocations.key_ids == {b"\x0a\x0b"}


@pytest.mark.parametrize("line", ["tbs:", "tbs:xyz", "bin:00", "tbs:0011", "sha:00", "nonsense", "id:"])
def test_a_line_that_is_no_revocation_is_an_error(line: str) -> None:
    with pytest.raises(ConfigError, match=r"^list:2: "):
        Revocations.parse(f"# head\n{line}\n", "list")


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_a_certificate_is_revoked_under_any_digest(signer: Identity, digest: str) -> None:
    value = hashlib.new(digest, signer.certificate.tbs_certificate_bytes).digest()
    (anchor,) = load_certificates(signer.pem, "a")
    store = TrustStore([anchor], Revocations(certificates=frozenset({value})))
    assert store.is_revoked(anchor.identity)
    assert store.is_revoked(signer.skid)


def test_names_do_not_drive_the_terminal() -> None:
    (anchor,) = load_certificates(make_identity("a\x1b[31mb").pem, "a")
    assert anchor.signer.subject == "CN=a\\1B[31mb"
