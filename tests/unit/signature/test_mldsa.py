# SPDX-License-Identifier: Apache-2.0
"""ML-DSA: the data itself is signed, and signed attributes are let pass (Linux 7.0)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import mldsa
from tests.vectors.generate import append, integer, oid, sequence, signed_data, tlv

from kmodgate.errors import SignatureError
from kmodgate.signature import LATEST, PROFILES, TrustStore, load_certificates, predict, verify
from kmodgate.signature.kernel.mldsa import decodes_as_mldsa

PAYLOAD = b"payload" * 20
KINDS: dict[str, tuple[Any, str]] = {
    "mldsa44": (mldsa.MLDSA44PrivateKey, "2.16.840.1.101.3.4.3.17"),
    "mldsa65": (mldsa.MLDSA65PrivateKey, "2.16.840.1.101.3.4.3.18"),
    "mldsa87": (mldsa.MLDSA87PrivateKey, "2.16.840.1.101.3.4.3.19"),
}
NOW = datetime.now(UTC)


class Signer:
    """An ML-DSA key with a self-signed certificate."""

    def __init__(self, kind: str) -> None:
        make, self.oid = KINDS[kind]
        self.key = make.generate()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, kind)])
        builder = (
            x509.CertificateBuilder(name, name, self.key.public_key(), 7)
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=9))
        )
        self.certificate = builder.sign(self.key, None)
        pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        self.trust = TrustStore(load_certificates(pem, f"{kind}.pem"))

    def info(
        self, *, attributes: bytes = b"", digest: str = "sha512", signature: bytes | None = None
    ) -> bytes:
        message = b"\x31" + attributes[1:] if attributes else PAYLOAD
        value = self.key.sign(message) if signature is None else signature
        name = self.certificate.subject.public_bytes()
        return sequence(
            integer(1),
            sequence(name, integer(7)),
            sequence(oid(digest)),
            attributes,
            sequence(oid(self.oid)),
            tlv(0x04, value),
        )


def attributes(digest: str = "sha512") -> bytes:
    value = hashlib.new(digest, PAYLOAD).digest()
    return tlv(
        0xA0,
        sequence(oid("contentType"), tlv(0x31, oid("data"))),
        sequence(oid("1.2.840.113549.1.9.4"), tlv(0x31, tlv(0x04, value))),
    )


@pytest.fixture(scope="module", params=sorted(KINDS))
def signer(request: pytest.FixtureRequest) -> Signer:
    return Signer(request.param)


def test_signed_data_is_trusted(signer: Signer) -> None:
    data = append(PAYLOAD, signed_data(signer.info(), digests=("sha512",)))
    verified = verify(data, signer.trust)
    assert verified.signature_algorithm in KINDS
    with pytest.raises(SignatureError, match="does not match"):
        verify(append(PAYLOAD + b"x", signed_data(signer.info(), digests=("sha512",))), signer.trust)


def test_signed_attributes_are_let_pass_where_the_kernel_does(signer: Signer) -> None:
    data = append(PAYLOAD, signed_data(signer.info(attributes=attributes()), digests=("sha512",)))
    assert verify(data, signer.trust)
    strict = replace(LATEST, mldsa_attributes=False)
    assert predict(data, signer.trust, strict) == "EKEYREJECTED"
    with pytest.raises(SignatureError, match="signed attributes"):
        verify(data, signer.trust, profile=strict)
    changed = append(PAYLOAD + b"x", signed_data(signer.info(attributes=attributes()), digests=("sha512",)))
    with pytest.raises(SignatureError, match="not the module's"):
        verify(changed, signer.trust)


def test_attributes_go_with_sha512_only(signer: Signer) -> None:
    info = signer.info(attributes=attributes("sha256"), digest="sha256")
    data = append(PAYLOAD, signed_data(info, digests=("sha256",)))
    assert predict(data, signer.trust) == "EKEYREJECTED"  # EINVAL below, as everything by a trusted key


def test_a_value_of_another_length_is_refused(signer: Signer) -> None:
    data = append(PAYLOAD, signed_data(signer.info(signature=b"short"), digests=("sha512",)))
    with pytest.raises(SignatureError) as caught:
        verify(data, signer.trust)
    assert caught.value.errno_name == "EKEYREJECTED"


def test_older_kernels_do_not_know_it(signer: Signer) -> None:
    data = append(PAYLOAD, signed_data(signer.info(), digests=("sha512",)))
    for name in ("5.10", "6.1", "6.12"):
        assert predict(data, signer.trust, PROFILES[name]) == "EKEYREJECTED"
        with pytest.raises(SignatureError) as caught:
            verify(data, signer.trust, profile=PROFILES[name])
        assert caught.value.status == "unsupported_signature"


def test_attributes_beside_rsa_are_refused_even_where_ml_dsa_waives_them(signer: Signer) -> None:
    """The kernel looks at the first SignerInfo only; a second one of any kind slips through."""
    first = signer.info(attributes=attributes())
    second = first.replace(oid(signer.oid), oid("1.2.840.113549.1.1.1"), 1)
    data = append(PAYLOAD, signed_data(first, second, digests=("sha512",)))
    with pytest.raises(SignatureError):
        verify(data, signer.trust)


def _damaged(value: bytes, kind: str) -> dict[str, tuple[bytes, bool]]:
    """Values of the right length, and whether they decode (as a real 7.2 kernel has it)."""
    high = bytearray(value)
    high[200:209] = b"\xff" * 9
    hint = bytearray(value)
    hint[-1] = 0xFF
    commitment = bytearray(value)
    commitment[0] ^= 1
    return {
        f"{kind} noise": (hashlib.shake_256(b"x").digest(len(value)), False),
        f"{kind} response out of range": (bytes(high), False),
        f"{kind} hint": (bytes(hint), False),
        f"{kind} commitment": (bytes(commitment), True),
        f"{kind} untouched": (value, True),
    }


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_value_that_does_not_decode_is_told_from_a_mismatch(kind: str) -> None:
    key = KINDS[kind][0].generate()
    for name, (value, decodes) in _damaged(key.sign(PAYLOAD), kind).items():
        assert decodes_as_mldsa(kind, value) == decodes, name


def test_with_its_certificate_inside_the_errno_tells(signer: Signer) -> None:
    inside = tlv(0xA0, signer.certificate.public_bytes(serialization.Encoding.DER))
    size = len(signer.key.sign(b""))
    for value, errno_name in (
        (hashlib.shake_256(b"x").digest(size), "EBADMSG"),
        (signer.key.sign(b"another"), "EKEYREJECTED"),
    ):
        info = signer.info(signature=value)
        data = append(PAYLOAD, signed_data(info, digests=("sha512",), certificates=inside))
        assert predict(data, signer.trust) == errno_name
