# SPDX-License-Identifier: Apache-2.0
"""Public keys and one signature: ``public_key_verify_signature()``.

``cryptography`` does the arithmetic. Where it says no, or would judge the encoding more strictly
than the kernel, the kernel's own reading is gone through by hand: it decides between EKEYREJECTED,
EBADMSG and EINVAL, and now and then accepts.

Sources: ``crypto/asymmetric_keys/public_key.c``, ``crypto/rsa.c``, ``rsa-pkcs1pad.c`` (until
6.12) and ``rsassa-pkcs1.c``, ``crypto/ecdsa.c``, ``ecdsa-x962.c``, ``crypto/mldsa.c``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from kmodgate.model import SignatureStatus
from kmodgate.signature.profile import KernelProfile

from .answer import Refusal
from .ber import compile_grammar, decode, group, leaf
from .mldsa import decodes_as_mldsa

BytesLike: TypeAlias = bytes | bytearray | memoryview

# An exponent of a modulus' length takes 60 ms to raise to, and a message has room for hundreds
# of signatures. Nobody makes such keys; OpenSSL refuses them, too.
_MAX_EXPONENT_BITS = 64
_MAX_MODULUS_BYTES = 2048  # MAX_EXTERN_MPI_BITS
_LIMB = 8

_INTEGER, _SEQUENCE = 0x02, 0x30
_UNCOMPRESSED = 4

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),  # noqa: S303  # where the kernel's profile has it
    "sha224": hashes.SHA224(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
    "sha3-256": hashes.SHA3_256(),
    "sha3-384": hashes.SHA3_384(),
    "sha3-512": hashes.SHA3_512(),
    "md5": hashes.MD5(),  # noqa: S303
}
_PREHASHED = {name: Prehashed(algorithm) for name, algorithm in _HASHES.items()}
_PKCS1V15 = padding.PKCS1v15()

# EMSA-PKCS1-v1_5 prefixes (RFC 8017 section 9.2 note 1): SEQUENCE { AlgorithmIdentifier, … }.
_OID_TAILS = {
    "md5": bytes.fromhex("06082a864886f70d0205"),
    "sha1": bytes.fromhex("06052b0e03021a"),
    "sha224": bytes.fromhex("0609608648016503040204"),
    "sha256": bytes.fromhex("0609608648016503040201"),
    "sha384": bytes.fromhex("0609608648016503040202"),
    "sha512": bytes.fromhex("0609608648016503040203"),
    "sha3-256": bytes.fromhex("0609608648016503040208"),
    "sha3-384": bytes.fromhex("0609608648016503040209"),
    "sha3-512": bytes.fromhex("060960864801650304020a"),
}


def _prefix(name: str) -> bytes:
    oid, size = _OID_TAILS[name], _HASHES[name].digest_size
    identifier = bytes((_SEQUENCE, len(oid) + 2)) + oid + b"\x05\x00"
    return bytes((_SEQUENCE, len(identifier) + 2 + size)) + identifier + bytes((0x04, size))


_PREFIXES = {name: _prefix(name) for name in _OID_TAILS}
_CURVES: dict[str, ec.EllipticCurve] = {
    "ecdsa-nist-p192": ec.SECP192R1(),
    "ecdsa-nist-p256": ec.SECP256R1(),
    "ecdsa-nist-p384": ec.SECP384R1(),
    "ecdsa-nist-p521": ec.SECP521R1(),
}
_MldsaKey: TypeAlias = (
    type[mldsa.MLDSA44PublicKey] | type[mldsa.MLDSA65PublicKey] | type[mldsa.MLDSA87PublicKey]
)
_MLDSA: dict[str, tuple[_MldsaKey, int]] = {
    "mldsa44": (mldsa.MLDSA44PublicKey, 2420),
    "mldsa65": (mldsa.MLDSA65PublicKey, 3309),
    "mldsa87": (mldsa.MLDSA87PublicKey, 4627),
}


class PublicKey:
    """A key as it stands in a certificate.

    Attributes:
        algorithm: the kernel's name: ``rsa``, ``ecdsa-nist-p256``, ``mldsa65``, …
        raw: contents of the BIT STRING.
    """

    __slots__ = ("algorithm", "raw")

    def __init__(self, algorithm: str, raw: bytes) -> None:
        self.algorithm = algorithm
        self.raw = raw


class Signature:
    """``struct public_key_signature``.

    Attributes:
        family: ``pkey_algo``: ``rsa``, ``ecdsa``, ``mldsa65``, …
        encoding: ``pkcs1``, ``x962`` or ``raw``.
        digest: ``hash_algo``; ``"none"`` where the algorithm takes the data.
        takes_data: it signs the data and not a digest.
        value: the signature.
        message: what is signed.
        digest_source: gives the message's digest by name; None computes it.
    """

    __slots__ = ("digest", "digest_source", "encoding", "family", "message", "takes_data", "value")

    def __init__(self, family: str, encoding: str, digest: str, *, takes_data: bool = False) -> None:
        self.family = family
        self.encoding = encoding
        self.digest = digest
        self.takes_data = takes_data
        self.value = b""
        self.message: BytesLike = b""
        self.digest_source: Callable[[str], bytes] | None = None


def digest_of(name: str, message: BytesLike) -> bytes:
    """A digest by the kernel's name.

    Raises:
        Refusal: ENOPKG for one that cannot be computed here.
    """
    try:
        return hashlib.new(name.replace("-", "_"), message, usedforsecurity=False).digest()
    except ValueError as error:
        raise Refusal("ENOPKG", f"digest {name} cannot be computed here") from error


def _rejected(errno_name: str, detail: str) -> Refusal:
    return Refusal(errno_name, detail, SignatureStatus.BAD_SIGNATURE)


def check_signature(key: PublicKey, signature: Signature, profile: KernelProfile) -> None:
    """``public_key_verify_signature()``.

    Raises:
        Refusal: EKEYREJECTED for another kind of key or a value that does not match, EINVAL and
            EBADMSG for values that cannot be, ENOENT for what was not built.
    """
    _choose_algorithm(key, signature, profile)
    if key.algorithm == "rsa":
        _check_rsa(key.raw, signature, profile)
    elif key.algorithm in _CURVES:
        _check_ecdsa(key, signature, profile)
    else:
        _check_mldsa(key, signature)


def check_key(key: PublicKey, profile: KernelProfile) -> None:
    """Whether the kernel could use a key at all.

    Raises:
        Refusal: as for the first signature by it.
    """
    if key.algorithm not in profile.keys:
        raise Refusal("ENOENT", f"{key.algorithm} is not built into the kernel")
    if key.algorithm == "rsa":
        if _rsa_key(key.raw, profile.rsa_bits)[1].bit_length() > _MAX_EXPONENT_BITS:
            raise _rejected("EKEYREJECTED", f"RSA exponents above {_MAX_EXPONENT_BITS} bits are not tried")
    elif key.algorithm in _CURVES:
        _ec_key(key.algorithm, key.raw, short=profile.ecdsa_short_keys)
    else:
        _mldsa_key(key)


def _choose_algorithm(key: PublicKey, signature: Signature, profile: KernelProfile) -> None:
    """``software_key_determine_akcipher()``, and whether the algorithm it names is there."""
    family = key.algorithm.split("-", 1)[0]
    if not profile.matches_key_algorithm and family != signature.family:
        raise _rejected("EKEYREJECTED", f"a key for {family} beside a signature by {signature.family}")
    digest = signature.digest
    if family == "ecdsa" and (digest not in _HASHES or digest == "md5"):
        raise _rejected("EINVAL", f"ECDSA over {digest}")
    if family == "ecdsa" and digest.startswith("sha3-") and not profile.ecdsa_sha3:
        raise _rejected("EINVAL", f"ECDSA over {digest}")
    if family.startswith("mldsa") and digest not in {"none", "sha512"}:
        raise _rejected("EINVAL", f"ML-DSA over attributes with a digest other than SHA-512 ({digest})")
    if (family == "ecrdsa" and not digest.startswith("streebog")) or (family == "sm2" and digest != "sm3"):
        raise _rejected("EINVAL", f"{family} over {digest}")
    if key.algorithm not in profile.keys:
        raise Refusal("ENOENT", f"{key.algorithm} is not built into the kernel")
    if family == "rsa" and digest not in profile.rsa_digests:
        unsupported = SignatureStatus.UNSUPPORTED_SIGNATURE
        raise Refusal(
            profile.rsa_unknown_digest, f"RSA over {digest} is not known to the kernel", unsupported
        )


class _RsaKey:
    """What the key's decoder notes."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.modulus = self.exponent = 0
        self.modulus_size = 0


def _note_modulus(key: _RsaKey, _header: int, _tag: int, start: int, length: int) -> None:
    if not length:
        raise _rejected("EINVAL", "an RSA key without modulus")
    key.modulus = int.from_bytes(key.raw[start : start + length], "big")
    key.modulus_size = length


def _note_exponent(key: _RsaKey, _header: int, _tag: int, start: int, length: int) -> None:
    if not length or length > key.modulus_size:
        raise _rejected("EINVAL", "an RSA key without a usable exponent")
    key.exponent = int.from_bytes(key.raw[start : start + length], "big")


_RSA_KEY = compile_grammar(group(_SEQUENCE, leaf(_INTEGER, _note_modulus), leaf(_INTEGER, _note_exponent)))


@lru_cache(maxsize=256)
def _rsa_key(raw: bytes, bits: frozenset[int]) -> tuple[int, int, int, rsa.RSAPublicKey | None]:
    """``rsa_set_pub_key()``: modulus, exponent, length in bytes; and for ``cryptography``."""
    parsed = _RsaKey(raw)
    decode(_RSA_KEY, parsed, raw)
    if max(parsed.modulus_size, 0) > _MAX_MODULUS_BYTES:
        raise _rejected("ENOMEM", "an RSA key that is too long for the kernel")
    limbs = -(-parsed.modulus.bit_length() // (8 * _LIMB))
    if limbs * _LIMB * 8 not in bits:
        raise _rejected(
            "EINVAL",
            f"RSA keys of {parsed.modulus.bit_length()} bits cannot be used by this kernel "
            f"({', '.join(str(size) for size in sorted(bits))} can)",
        )
    ready: rsa.RSAPublicKey | None = None
    if parsed.modulus.bit_length() == limbs * _LIMB * 8:
        try:
            ready = rsa.RSAPublicNumbers(parsed.exponent, parsed.modulus).public_key()
        except (ValueError, UnsupportedAlgorithm):
            ready = None
    return parsed.modulus, parsed.exponent, limbs * _LIMB, ready


def _digest(signature: Signature) -> bytes:
    if signature.digest_source is not None:
        return signature.digest_source(signature.digest)
    return digest_of(signature.digest, signature.message)


_MISMATCH = "the signature does not match"


def _check_rsa(raw: bytes, signature: Signature, profile: KernelProfile) -> None:
    modulus, exponent, size, ready = _rsa_key(raw, profile.rsa_bits)
    if exponent.bit_length() > _MAX_EXPONENT_BITS:
        raise _rejected("EKEYREJECTED", f"RSA exponents above {_MAX_EXPONENT_BITS} bits are not tried")
    digest = _digest(signature)
    if len(signature.value) != size:
        raise _rejected("EINVAL", f"an RSA signature of {len(signature.value)} bytes by a key of {size}")
    if ready is not None and signature.digest in _PREHASHED:
        try:
            ready.verify(signature.value, digest, _PKCS1V15, _PREHASHED[signature.digest])
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):
            pass
        else:
            return
    value = int.from_bytes(signature.value, "big")
    low, high = (2, modulus - 2) if profile.rsa_refuses_trivial else (0, modulus - 1)
    if not low <= value <= high:
        raise _rejected("EINVAL", "an RSA signature out of the key's range")
    _check_padding(pow(value, exponent, modulus).to_bytes(size, "big"), signature.digest, digest)


def _check_padding(block: bytes, name: str, digest: bytes) -> None:
    """``00 01 FF…FF 00 prefix digest`` (RFC 8017 section 8.2.2), step by step."""
    if block[0] != 0:
        raise _rejected("EINVAL", _MISMATCH)
    end = 2
    while end < len(block) and block[end] == 0xFF:
        end += 1
    prefix = _PREFIXES[name]
    rest = block[end + 1 :]
    if block[1] != 1 or end < 10 or end == len(block) or block[end] != 0 or not rest.startswith(prefix):
        raise _rejected("EBADMSG", _MISMATCH)
    if not hmac.compare_digest(rest[len(prefix) :], digest):
        raise _rejected("EKEYREJECTED", _MISMATCH)


class _EcdsaValue:
    """r and s as the kernel's decoder takes them: unsigned, of bounded length."""

    def __init__(self, raw: bytes, size: int) -> None:
        self.raw = raw
        self.size = size
        self.numbers: list[int] = []


def _note_number(value: _EcdsaValue, _header: int, _tag: int, start: int, length: int) -> None:
    if not length or length > value.size + 1 or (length > value.size and value.raw[start] != 0):
        raise _rejected("EINVAL", "an ECDSA signature with a number of impossible length")
    value.numbers.append(int.from_bytes(value.raw[start : start + length], "big"))


_ECDSA_VALUE = compile_grammar(group(_SEQUENCE, leaf(_INTEGER, _note_number), leaf(_INTEGER, _note_number)))


@lru_cache(maxsize=256)
def _ec_key(algorithm: str, raw: bytes, *, short: bool) -> ec.EllipticCurvePublicKey:
    """``ecdsa_set_pub_key()``."""
    curve = _CURVES[algorithm]
    half = (len(raw) - 1) // 2
    full = -(-curve.key_size // 64) * 8
    fits = -(-half // 8) * 8 == full and (half == full or short) if raw else False
    if not fits or len(raw) % 2 == 0 or raw[0] != _UNCOMPRESSED:
        raise _rejected("EINVAL", "an elliptic-curve key that is no uncompressed point of its curve")
    x, y = (int.from_bytes(part, "big") for part in (raw[1 : 1 + half], raw[1 + half :]))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _rejected("EINVAL", "an elliptic-curve key that is not on its curve") from error


def _check_ecdsa(key: PublicKey, signature: Signature, profile: KernelProfile) -> None:
    point = _ec_key(key.algorithm, key.raw, short=profile.ecdsa_short_keys)
    digest = _digest(signature)
    value = _EcdsaValue(signature.value, -(-point.curve.key_size // 64) * 8)
    decode(_ECDSA_VALUE, value, signature.value)
    r, s = value.numbers
    order = _ORDERS[key.algorithm]
    if not (0 < r < order and 0 < s < order):
        raise _rejected("EBADMSG", "an ECDSA signature with a number out of range")
    try:
        point.verify(encode_dss_signature(r, s), digest, ec.ECDSA(_PREHASHED[signature.digest]))
    except InvalidSignature as error:
        raise _rejected("EKEYREJECTED", _MISMATCH) from error


# Orders of the groups (SEC 2, FIPS 186-4 appendix D.1.2).
_ORDERS = {
    "ecdsa-nist-p192": 0xFFFFFFFFFFFFFFFFFFFFFFFF99DEF836146BC9B1B4D22831,
    "ecdsa-nist-p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ecdsa-nist-p384": int(
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
    ),
    "ecdsa-nist-p521": int(
        "01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"
        "FA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409",
        16,
    ),
}


def _mldsa_key(
    key: PublicKey,
) -> tuple[mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey, int]:
    kind, size = _MLDSA[key.algorithm]
    try:
        return kind.from_public_bytes(key.raw), size
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _rejected("EINVAL", "an ML-DSA key of the wrong length") from error


def _check_mldsa(key: PublicKey, signature: Signature) -> None:
    """``mldsa_verify()``."""
    public, size = _mldsa_key(key)
    if len(signature.value) != size:
        raise _rejected("EBADMSG", f"an ML-DSA signature of {len(signature.value)} bytes, not {size}")
    try:
        public.verify(signature.value, signature.message)
    except InvalidSignature as error:
        decodes = decodes_as_mldsa(key.algorithm, signature.value)
        raise _rejected("EKEYREJECTED" if decodes else "EBADMSG", _MISMATCH) from error
