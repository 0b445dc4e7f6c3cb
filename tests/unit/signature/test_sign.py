# SPDX-License-Identifier: Apache-2.0
"""Signing: the bytes of sign-file and of openssl, and verify undoes nothing of it."""

from __future__ import annotations

import random
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.vectors import generate
from tests.vectors.generate import Identity, make_identity, make_key, openssl_cms

from kmodgate.errors import InputError, SignatureError
from kmodgate.signature import PROFILES, TrustStore, load_certificates, predict, verify
from kmodgate.signature.sign import FileKey, append, load_private_key, sign

PAYLOAD = generate.make_elf(generate.MODINFO)
MLDSA: dict[str, Any] = {
    "mldsa44": mldsa.MLDSA44PrivateKey,
    "mldsa65": mldsa.MLDSA65PrivateKey,
    "mldsa87": mldsa.MLDSA87PrivateKey,
}
KINDS = ["rsa", "rsa4096", "p256", "p384", "p521", *MLDSA]
SIGN_FILES = sorted(Path("/usr/lib").glob("linux-kbuild-*/scripts/sign-file"))


def make(kind: str) -> Identity:
    if kind == "rsa4096":
        return make_identity(kind, key=rsa.generate_private_key(public_exponent=65537, key_size=4096))
    if kind not in MLDSA:
        return make_identity(kind, kind)
    key = MLDSA[kind].generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, kind)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), 300)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=9))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Identity(key, builder.sign(key, None))


@pytest.fixture(scope="module")
def identities() -> dict[str, Identity]:
    return {kind: make(kind) for kind in KINDS}


def signed_by(identity: Identity, payload: bytes = PAYLOAD, **options: Any) -> tuple[bytes, TrustStore]:
    (anchor,) = load_certificates(identity.pem, "anchor.pem")
    key = load_private_key(identity.key_pem, None, "key.pem")
    return append(payload, sign(payload, anchor, key, **options)), TrustStore([anchor])


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("options", [(), ("-keyid",)], ids=["issuer", "keyid"])
def test_rsa_gives_the_bytes_of_openssl(
    identities: dict[str, Identity], digest: str, options: tuple[str, ...]
) -> None:
    theirs = openssl_cms(PAYLOAD, identities["rsa"], digest, "-noattr", "-nocerts", "-nosmimecap", *options)
    ours, _ = signed_by(identities["rsa"], digest=digest, by_key_id=bool(options))
    assert ours == generate.append(PAYLOAD, theirs)


@pytest.mark.parametrize("kind", ["p256", "p384", "p521"])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_ecdsa_gives_the_bytes_of_openssl_but_for_the_value(
    identities: dict[str, Identity], kind: str, digest: str
) -> None:
    (anchor,) = load_certificates(identities[kind].pem, "anchor.pem")
    key = load_private_key(identities[kind].key_pem, None, "key.pem")
    # The value's length varies by a byte or two: draw until both have the same.
    theirs = openssl_cms(PAYLOAD, identities[kind], digest)
    for _ in range(200):
        ours = sign(PAYLOAD, anchor, key, digest=digest)
        if len(ours) == len(theirs):
            break
    head = next(at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    # r and s, at most 66 bytes each (P-521), in DER: 139 at most.
    assert len(theirs) - head <= 139
    verify(generate.append(PAYLOAD, theirs), TrustStore([anchor]))


@pytest.mark.skipif(
    not SIGN_FILES, reason="no sign-file here: apt-get install linux-kbuild-6.1 (openssl is compared above)"
)
@pytest.mark.parametrize("options", [(), ("-k",)], ids=["issuer", "keyid"])
def test_rsa_gives_the_bytes_of_sign_file(
    identities: dict[str, Identity], tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "key").write_bytes(identities["rsa"].key_pem)
    (tmp_path / "cert").write_bytes(identities["rsa"].pem)
    (tmp_path / "in.ko").write_bytes(PAYLOAD)
    arguments = ["sha256", "key", "cert", "in.ko", "out.ko"]
    subprocess.run([SIGN_FILES[-1], *options, *arguments], cwd=tmp_path, check=True)
    ours, _ = signed_by(identities["rsa"], by_key_id=bool(options))
    assert ours == (tmp_path / "out.ko").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_key_id", [False, True])
def test_what_is_signed_verifies(identities: dict[str, Identity], kind: str, by_key_id: bool) -> None:
    signed, trust = signed_by(identities[kind], by_key_id=by_key_id)
    verified = verify(signed, trust)
    assert verified.anchor is trust.anchors[0]
    assert verified.hash_algorithm == ("sha512" if kind in MLDSA else "sha256")
    assert predict(signed, trust, PROFILES["7.2"]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_byte_anywhere_is_trusted(identities: dict[str, Identity], kind: str) -> None:
    payload = PAYLOAD[:64]
    signed, trust = signed_by(identities[kind], payload)
    verify(signed, trust)
    draw = random.Random(kind)
    places = range(len(signed)) if kind not in MLDSA else sorted(draw.sample(range(len(signed)), 600))
    for place in places:
        changed = bytearray(signed)
        changed[place] ^= draw.randrange(1, 256)
        with pytest.raises(SignatureError):
            verify(bytes(changed), trust)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    payload=st.binary(min_size=1, max_size=3000),
    kind=st.sampled_from(["rsa", "p256", "p384", "p521"]),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_any_payload_verifies_and_no_change_does(
    identities: dict[str, Identity], payload: bytes, kind: str, place: float, flip: int
) -> None:
    signed, trust = signed_by(identities[kind], payload)
    verify(signed, trust)
    changed = bytearray(signed)
    changed[int(place * len(signed))] ^= flip
    with pytest.raises(SignatureError):
        verify(bytes(changed), trust)


@pytest.mark.parametrize(
    ("key", "certificate"), [("rsa", "p256"), ("p256", "rsa"), ("rsa", "mldsa65"), ("mldsa44", "rsa")]
)
def test_a_key_of_another_kind_is_refused(
    identities: dict[str, Identity], key: str, certificate: str
) -> None:
    (anchor,) = load_certificates(identities[certificate].pem, "anchor.pem")
    with pytest.raises(InputError, match="does not belong to the certificate"):
        sign(PAYLOAD, anchor, load_private_key(identities[key].key_pem, None, "key"))


def test_mldsa_goes_with_one_digest(identities: dict[str, Identity]) -> None:
    with pytest.raises(InputError, match="sha512 alone"):
        signed_by(identities["mldsa65"], digest="sha256")


def test_without_a_key_id_none_can_be_named() -> None:
    key = make_key("p256")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + timedelta(days=9))
    identity = Identity(key, builder.sign(key, generate.HASHES["sha256"]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no subject key identifier"):
        signed_by(identity, by_key_id=True)


@pytest.mark.parametrize("form", ["TraditionalOpenSSL", "PKCS8"])
@pytest.mark.parametrize("encoding", ["PEM", "DER"])
def test_keys_in_every_form(identities: dict[str, Identity], encoding: str, form: str) -> None:
    data = identities["rsa"].key.private_bytes(
        getattr(serialization.Encoding, encoding),
        getattr(serialization.PrivateFormat, form),
        serialization.NoEncryption(),
    )
    assert isinstance(load_private_key(data, None, "k"), FileKey)
    assert isinstance(load_private_key(data, b"of no use", "k"), FileKey)


@pytest.mark.parametrize("encoding", ["PEM", "DER"])
def test_encrypted_keys(identities: dict[str, Identity], encoding: str) -> None:
    data = identities["rsa"].key.private_bytes(
        getattr(serialization.Encoding, encoding),
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"right"),
    )
    assert isinstance(load_private_key(data, b"right", "k"), FileKey)
    with pytest.raises(
        InputError, match="k: is encrypted; give --passphrase-file FILE or --passphrase-env NAME"
    ):
        load_private_key(data, None, "k")
    with pytest.raises(InputError, match="k: cannot be decrypted"):
        load_private_key(data, b"wrong", "k")


def test_what_is_no_usable_key(identities: dict[str, Identity]) -> None:
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data, words in (
        (b"text", "k: is no private key in PEM or DER"),
        (b"", "k: is no private key in PEM or DER"),
        (identities["rsa"].pem, "k: is a certificate; give the private key with --key"),
        (other, "k: no kernel verifies keys of this kind; use RSA, ECDSA or ML-DSA"),
    ):
        with pytest.raises(InputError, match=words):
            load_private_key(data, None, "k")


def test_openssl_reads_what_we_write(identities: dict[str, Identity], tmp_path: Path) -> None:
    assert shutil.which("openssl"), "apt-get install openssl"
    (anchor,) = load_certificates(identities["p384"].pem, "anchor.pem")
    key = load_private_key(identities["p384"].key_pem, None, "key.pem")
    (tmp_path / "m.p7s").write_bytes(sign(PAYLOAD, anchor, key))
    (tmp_path / "m").write_bytes(PAYLOAD)
    (tmp_path / "c").write_bytes(identities["p384"].pem)
    options = ["-binary", "-inform", "DER", "-noverify", "-certfile", "c", "-content", "m", "-in", "m.p7s"]
    done = subprocess.run(
        ["openssl", "cms", "-verify", *options, "-out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
