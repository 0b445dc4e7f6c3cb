# SPDX-License-Identifier: Apache-2.0
"""Makes the signatures that ``signature.verify`` checks: the bytes that the kernel's ``sign-file`` makes.

This module reads no files, asks for no passphrase and talks to no token: a token's key comes as a
function. Whoever calls it is expected to verify what it made before anyone else has to.

Sources: ``scripts/sign-file.c`` (detached, no certificates, no signed attributes), RFC 5652
section 5, RFC 8017 section 9.2 (DigestInfo), RFC 3279 section 2.2.3 (ECDSA value), RFC 9882.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from kmodgate.errors import InputError

from .cms import (
    AlgorithmIdentifier,
    ContentInfo,
    EncapsulatedContentInfo,
    IssuerAndSerialNumber,
    SignedData,
    SignerInfo,
)
from .trailer import MARKER, PKEY_ID_PKCS7, BytesLike
from .trust import TrustAnchor

DIGESTS: Final = ("sha256", "sha384", "sha512")
DEFAULT_DIGEST: Final = "sha256"
# ML-DSA signs the data itself; the digest named beside it must be this one (RFC 9882 section 3.3).
MLDSA_DIGEST: Final = "sha512"

_SIGNED_DATA = x509.ObjectIdentifier("1.2.840.113549.1.7.2")
_DATA = x509.ObjectIdentifier("1.2.840.113549.1.7.1")
_RSA = "1.2.840.113549.1.1.1"
_HASHES: dict[str, tuple[str, str, hashes.HashAlgorithm]] = {  # digest, ecdsa-with-, the algorithm
    "sha256": ("2.16.840.1.101.3.4.2.1", "1.2.840.10045.4.3.2", hashes.SHA256()),
    "sha384": ("2.16.840.1.101.3.4.2.2", "1.2.840.10045.4.3.3", hashes.SHA384()),
    "sha512": ("2.16.840.1.101.3.4.2.3", "1.2.840.10045.4.3.4", hashes.SHA512()),
}
_MLDSA: dict[type, str] = {
    mldsa.MLDSA44PublicKey: "2.16.840.1.101.3.4.3.17",
    mldsa.MLDSA65PublicKey: "2.16.840.1.101.3.4.3.18",
    mldsa.MLDSA87PublicKey: "2.16.840.1.101.3.4.3.19",
}
_BY_ISSUER, _BY_KEY_ID = 1, 3  # CMSVersion, RFC 5652 section 5.3
_TRAILER = struct.Struct(">2xB5xI")  # struct module_signature: id_type, sig_len; all else is zero

_MldsaPrivateKey: TypeAlias = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
_PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | _MldsaPrivateKey


class SigningKey(Protocol):
    """A private key, wherever it is. Each method gives the value as it stands in a SignerInfo.

    Raises:
        InputError: it is a key of another kind, or it does not sign.
    """

    def rsa(self, digest: bytes, name: str) -> bytes:
        """PKCS#1 v1.5 over a digest made with the algorithm of that name."""
        ...

    def ecdsa(self, digest: bytes, name: str) -> bytes:
        """ECDSA over a digest: DER."""
        ...

    def mldsa(self, data: BytesLike) -> bytes:
        """Pure ML-DSA over the data, with an empty context."""
        ...


class FileKey:
    """A key that was read from a file."""

    def __init__(self, key: _PrivateKey) -> None:
        self._key = key

    def rsa(self, digest: bytes, name: str) -> bytes:
        """See ``SigningKey``."""
        if not isinstance(self._key, rsa.RSAPrivateKey):
            raise _mismatch()
        return self._key.sign(digest, padding.PKCS1v15(), Prehashed(_HASHES[name][2]))

    def ecdsa(self, digest: bytes, name: str) -> bytes:
        """See ``SigningKey``."""
        if not isinstance(self._key, ec.EllipticCurvePrivateKey):
            raise _mismatch()
        return self._key.sign(digest, ec.ECDSA(Prehashed(_HASHES[name][2])))

    def mldsa(self, data: BytesLike) -> bytes:
        """See ``SigningKey``."""
        if not isinstance(self._key, _MldsaPrivateKey):
            raise _mismatch()
        return self._key.sign(bytes(data))


class TokenKey:
    """A key that stays in a token.

    Args:
        sign_rsa: CKM_RSA_PKCS: pads a DigestInfo and signs it.
        sign_ecdsa: CKM_ECDSA: signs a digest; r and s, each as long as the curve's order.
    """

    def __init__(self, sign_rsa: Callable[[bytes], bytes], sign_ecdsa: Callable[[bytes], bytes]) -> None:
        self._sign_rsa, self._sign_ecdsa = sign_rsa, sign_ecdsa

    def rsa(self, digest: bytes, name: str) -> bytes:
        """See ``SigningKey``."""
        algorithm = _algorithm(_HASHES[name][0], asn1.Null())
        return self._sign_rsa(asn1.encode_der(_DigestInfo(digest_algorithm=algorithm, digest=digest)))

    def ecdsa(self, digest: bytes, name: str) -> bytes:
        """See ``SigningKey``."""
        del name
        value = self._sign_ecdsa(digest)
        half = len(value) // 2
        return encode_dss_signature(int.from_bytes(value[:half], "big"), int.from_bytes(value[half:], "big"))

    def mldsa(self, data: BytesLike) -> bytes:
        """See ``SigningKey``."""
        del data
        raise InputError("ML-DSA keys in tokens are not supported; sign with a key file")


@asn1.sequence
class _DigestInfo:
    digest_algorithm: AlgorithmIdentifier
    digest: bytes


def _mismatch() -> InputError:
    return InputError(
        "the private key does not belong to the certificate; give the two that were made together"
    )


def load_private_key(data: bytes, passphrase: bytes | None, label: str) -> FileKey:
    """Read a private key: PEM (PKCS#8 or traditional) or DER.

    Args:
        data: the file's bytes.
        passphrase: for an encrypted key; ignored for any other.
        label: names the file in errors.

    Raises:
        InputError: no key, one of a kind that signs no modules, a passphrase that is missing or wrong.
    """
    pem = data.lstrip().startswith(b"-----BEGIN")
    load = serialization.load_pem_private_key if pem else serialization.load_der_private_key
    try:
        key = _load(load, data, passphrase, label)
    except UnsupportedAlgorithm as error:
        raise InputError(f"{label}: {error}") from error
    except ValueError as error:
        if passphrase is not None and (b"ENCRYPTED" in data or not pem):
            problem = "cannot be decrypted, or is no private key; is the passphrase right?"
        elif b"BEGIN CERTIFICATE" in data:
            problem = "is a certificate; give the private key with --key and the certificate with --cert"
        else:
            problem = f"is no private key in PEM or DER ({error})"
        raise InputError(f"{label}: {problem}") from error
    if not isinstance(key, _PrivateKey):
        raise InputError(f"{label}: no kernel verifies keys of this kind; use RSA, ECDSA or ML-DSA")
    return FileKey(key)


def _load(load: Callable[..., object], data: bytes, passphrase: bytes | None, label: str) -> object:
    try:
        return load(data, passphrase)
    except TypeError as error:  # a passphrase is missing, or one is given to a key without
        if passphrase is None:
            raise InputError(
                f"{label}: is encrypted; give --passphrase-file FILE or --passphrase-env NAME"
            ) from error
        return load(data, None)


def sign(
    payload: BytesLike,
    certificate: TrustAnchor,
    key: SigningKey,
    *,
    digest: str | None = None,
    by_key_id: bool = False,
) -> bytes:
    """The PKCS#7 message over a module without signature.

    Args:
        payload: the module's bytes.
        certificate: names the signer.
        key: the private key of the certificate; that is not checked here.
        digest: of ``DIGESTS``; None for SHA-256, and for ML-DSA the only one it goes with.
        by_key_id: name the signer by SubjectKeyIdentifier (``sign-file -k``), not by issuer and serial.

    Raises:
        InputError: the certificate has no key id, or the key or digest does not go with it.
    """
    public = certificate.public_key
    pure = next((oid for kind, oid in _MLDSA.items() if isinstance(public, kind)), None)
    name = digest or (MLDSA_DIGEST if pure else DEFAULT_DIGEST)
    if pure and name != MLDSA_DIGEST:
        raise InputError(f"ML-DSA goes with {MLDSA_DIGEST} alone; leave --hash out")
    hash_oid, ecdsa_oid, _ = _HASHES[name]
    if pure:
        algorithm = _algorithm(pure)
        value = key.mldsa(payload)
    elif isinstance(public, rsa.RSAPublicKey):
        algorithm = _algorithm(_RSA, asn1.Null())
        value = key.rsa(hashlib.new(name, payload).digest(), name)
    else:
        algorithm = _algorithm(ecdsa_oid)
        value = key.ecdsa(hashlib.new(name, payload).digest(), name)
    return _message(certificate, _algorithm(hash_oid), algorithm, value, by_key_id=by_key_id)


def _algorithm(oid: str, parameters: asn1.Null | None = None) -> AlgorithmIdentifier:
    return AlgorithmIdentifier(algorithm=x509.ObjectIdentifier(oid), parameters=parameters)


def _message(
    certificate: TrustAnchor,
    digest: AlgorithmIdentifier,
    algorithm: AlgorithmIdentifier,
    value: bytes,
    *,
    by_key_id: bool,
) -> bytes:
    version: int = _BY_ISSUER
    sid: IssuerAndSerialNumber | bytes
    if by_key_id:
        if certificate.skid is None:
            raise InputError(
                f"{certificate.label}: has no subject key identifier, so it cannot be named by one"
            )
        version, sid = _BY_KEY_ID, certificate.skid
    else:
        issuer = asn1.decode_der(asn1.TLV, certificate.certificate.issuer.public_bytes())
        sid = IssuerAndSerialNumber(issuer=issuer, serial_number=certificate.certificate.serial_number)
    signer = SignerInfo(
        version=version,
        sid=sid,
        digest_algorithm=digest,
        signed_attrs=None,
        signature_algorithm=algorithm,
        signature=value,
        unsigned_attrs=None,
    )
    data = SignedData(
        version=version,
        digest_algorithms=asn1.SetOf([digest]),
        encap_content_info=EncapsulatedContentInfo(content_type=_DATA, content=None),
        certificates=None,
        signer_infos=asn1.SetOf([signer]),
    )
    return asn1.encode_der(ContentInfo(content_type=_SIGNED_DATA, content=data))


def append(payload: BytesLike, message: bytes) -> bytes:
    """A module with its signature: payload, message, ``struct module_signature``, marker."""
    return b"".join((payload, message, _TRAILER.pack(PKEY_ID_PKCS7, len(message)), MARKER))
