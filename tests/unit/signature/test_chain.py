# SPDX-License-Identifier: Apache-2.0
"""Certificates inside the message, from the signer's up to a trust anchor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from tests.vectors import generate
from tests.vectors.generate import Identity, append, make_key, signed_data, signer_info, tlv

from kmodgate.errors import SignatureError
from kmodgate.signature import Revocations, TrustStore, load_certificates, predict, verify

PAYLOAD = b"payload" * 20
NOW = datetime.now(UTC)


def issue(
    name: str,
    issuer: Identity | None = None,
    *,
    ca: bool = True,
    path_length: int | None = None,
    cert_sign: bool | None = None,
    days: tuple[int, int] = (-1, 365),
    claimed_issuer: str | None = None,
) -> Identity:
    """A certificate with key identifiers; a CA unless told otherwise."""
    key = make_key("p256")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    above = subject if issuer is None else issuer.certificate.subject
    if claimed_issuer is not None:
        above = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, claimed_issuer)])
    signing_key = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder(above, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False
        )
    )
    if ca:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=path_length), critical=True
        )
    if cert_sign is not None:
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=cert_sign, **usage), critical=True
        )
    return Identity(key, builder.sign(signing_key, hashes.SHA256()))


def message(*certificates: Identity, signer: Identity | None = None) -> bytes:
    """A module signed by the first (or the given) certificate, with all of them inside."""
    info = signer_info(PAYLOAD, signer or certificates[0], signature_oid="1.2.840.10045.4.3.2")
    # Sorted, as DER has a SET OF.
    inside = tlv(0xA0, *sorted(one.der for one in certificates)) if certificates else b""
    return append(PAYLOAD, signed_data(info, certificates=inside))


def store(*anchors: Identity, revoked: Revocations | None = None) -> TrustStore:
    pem = b"".join(anchor.pem for anchor in anchors)
    return TrustStore(load_certificates(pem, "anchors.pem"), revoked)


@dataclass(frozen=True)
class Tree:
    root: Identity
    middle: Identity
    leaf: Identity


@pytest.fixture(scope="module")
def tree() -> Tree:
    root = issue("root")
    middle = issue("middle", root)
    return Tree(root, middle, issue("leaf", middle, ca=False))


def status(data: bytes, trust: TrustStore) -> str:
    with pytest.raises(SignatureError) as caught:
        verify(data, trust)
    return caught.value.status.value


@pytest.mark.parametrize("anchor", ["root", "middle", "leaf"])
def test_any_certificate_of_the_path_may_be_the_anchor(tree: Tree, anchor: str) -> None:
    data = message(tree.leaf, tree.middle)
    verified = verify(data, store(getattr(tree, anchor)))
    assert verified.signer.subject == "CN=leaf"
    assert verified.anchor.signer.subject == f"CN={anchor}"
    assert ("certified by" in verified.detail) == (anchor != "leaf")


def test_the_root_inside_changes_nothing(tree: Tree) -> None:
    assert verify(message(tree.leaf, tree.middle, tree.root), store(tree.root))
    assert status(message(tree.leaf, tree.middle, tree.root), store(issue("other"))) == "untrusted_signer"


def test_a_gap_in_the_path_is_no_path(tree: Tree) -> None:
    assert status(message(tree.leaf), store(tree.root)) == "untrusted_signer"
    assert verify(message(tree.leaf), store(tree.middle))
    assert status(message(signer=tree.leaf), store(tree.middle)) == "untrusted_signer"


def refused_where_the_kernel_accepts(data: bytes, trust: TrustStore) -> str:
    assert predict(data, trust) is None
    return status(data, trust)


def test_an_issuer_must_be_a_ca(tree: Tree) -> None:
    leaf = issue("below", tree.leaf, ca=False)
    for anchor in (tree.leaf, tree.middle):
        data = message(leaf, tree.leaf)
        assert refused_where_the_kernel_accepts(data, store(anchor)) == "untrusted_signer"


def test_an_issuer_must_be_allowed_to_sign_certificates() -> None:
    for cert_sign, good in ((True, True), (False, False)):
        root = issue("root", cert_sign=cert_sign)
        data = message(issue("leaf", root, ca=False))
        if good:
            assert verify(data, store(root))
        else:
            assert refused_where_the_kernel_accepts(data, store(root)) == "untrusted_signer"


def test_path_length_counts_the_cas_below() -> None:
    for length, good in ((1, True), (0, False)):
        root = issue("root", path_length=length)
        middle = issue("middle", root)
        data = message(issue("leaf", middle, ca=False), middle)
        if good:
            assert verify(data, store(root))
        else:
            assert refused_where_the_kernel_accepts(data, store(root)) == "untrusted_signer"


def test_names_must_chain(tree: Tree) -> None:
    stray = issue("leaf", tree.middle, ca=False, claimed_issuer="somebody else")
    data = message(stray, tree.middle)
    assert refused_where_the_kernel_accepts(data, store(tree.root)) == "untrusted_signer"


def test_a_certificate_with_an_anchors_ids_must_be_the_anchor() -> None:
    anchor = issue("anchor")
    copy = bytearray(anchor.der)
    at = anchor.der.index(b"anchor", anchor.der.index(b"anchor") + 1)
    copy[at : at + 6] = b"ANCHOR"  # the subject: not self-signed any more, the ids stay
    info = signer_info(PAYLOAD, anchor, signature_oid="1.2.840.10045.4.3.2")
    data = append(PAYLOAD, signed_data(info, certificates=tlv(0xA0, bytes(copy))))
    assert refused_where_the_kernel_accepts(data, store(anchor)) == "malformed_signature"


@pytest.mark.parametrize("revoked", ["root", "middle", "leaf"])
def test_any_revoked_certificate_of_the_path_refuses(tree: Tree, revoked: str) -> None:
    data = message(tree.leaf, tree.middle)
    certificate = getattr(tree, revoked).certificate
    tbs = hashlib.sha256(certificate.tbs_certificate_bytes).digest()
    skid = getattr(tree, revoked).skid
    for revocations in (
        Revocations(certificates=frozenset({tbs})),
        Revocations(key_ids=frozenset({skid})),
    ):
        assert status(data, store(tree.root, revoked=revocations)) == "revoked"


def test_a_revoked_path_beside_a_good_one_refuses(tree: Tree) -> None:
    other = issue("other")
    infos = [signer_info(PAYLOAD, one, signature_oid="1.2.840.10045.4.3.2") for one in (other, tree.leaf)]
    inside = tlv(0xA0, *sorted((tree.leaf.der, tree.middle.der)))
    data = append(PAYLOAD, signed_data(*infos, certificates=inside))
    assert verify(data, store(other))
    tbs = hashlib.sha256(tree.root.certificate.tbs_certificate_bytes).digest()
    revocations = Revocations(certificates=frozenset({tbs}))
    assert status(data, store(other, tree.root, revoked=revocations)) == "revoked"


def test_an_expired_certificate_in_the_path_is_told(tree: Tree) -> None:
    expired = issue("old", tree.root, days=(-30, -10))
    leaf = issue("leaf", expired, ca=False)
    data = message(leaf, expired)
    assert "expired on" in verify(data, store(tree.root), now=NOW).detail
    with pytest.raises(SignatureError, match="validity is required"):
        verify(data, store(tree.root), now=NOW, require_validity=True)


def test_every_byte_of_a_path_counts(tree: Tree) -> None:
    data = message(tree.leaf, tree.middle)
    trust = store(tree.root)
    start = len(PAYLOAD)
    accepted = [
        position
        for position in range(start, len(data))
        if _trusted(data[:position] + bytes((data[position] ^ 0x01,)) + data[position + 1 :], trust)
    ]
    assert accepted == []


def _trusted(data: bytes, trust: TrustStore) -> bool:
    try:
        verify(data, trust)
    except SignatureError:
        return False
    return True


def test_a_crowd_of_certificates_or_signers_is_not_worked_through(tree: Tree) -> None:
    crowd = [issue(f"c{number}", ca=False) for number in range(25)]
    assert status(message(tree.leaf, *crowd), store(tree.leaf)) == "unsupported_signature"
    info = signer_info(PAYLOAD, tree.leaf, signature_oid="1.2.840.10045.4.3.2")
    data = append(PAYLOAD, signed_data(*[info] * 25))
    assert status(data, store(tree.leaf)) == "unsupported_signature"
    assert generate.MARKER in data
