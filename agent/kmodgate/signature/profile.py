# SPDX-License-Identifier: Apache-2.0
"""What one kernel's signature code knows: its parsers' tables and the algorithms built with it.

This module decides no trust and reads nothing: a profile is chosen by name, or made from facts
that somebody else read on the node. A kernel *knows* an algorithm when its parser has the OID;
it *has* it when the code was built. Unknown refuses the whole message (ENOPKG), known but not
there skips one SignerInfo.

Sources: ``pkcs7_sig_note_digest_algo()`` and ``pkcs7_sig_note_pkey_algo()`` in
``crypto/asymmetric_keys/pkcs7_parser.c``, ``x509_note_sig_algo()`` and
``x509_extract_key_data()`` in ``x509_cert_parser.c`` of Linux 5.10, 6.1, 6.12 and 7.2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

_SHA2 = frozenset({"sha224", "sha256", "sha384", "sha512"})
_SHA3 = frozenset({"sha3-256", "sha3-384", "sha3-512"})
_STREEBOG = frozenset({"streebog256", "streebog512"})
_MLDSA = frozenset({"mldsa44", "mldsa65", "mldsa87"})
_P256_P384 = frozenset({"ecdsa-nist-p256", "ecdsa-nist-p384"})
_P192 = frozenset({"ecdsa-nist-p192"})
_P521 = frozenset({"ecdsa-nist-p521"})
_RSA = frozenset({"rsa"})


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """One kernel, as far as module signatures go. Algorithms have the kernel's own names.

    Attributes:
        name: for people: ``"6.1"``, ``"debian-12"``, or a release.
        digests_known: digests that the PKCS#7 parser takes in a SignerInfo.
        digests: digests that can be computed.
        signatures_known: signature families that the PKCS#7 parser takes (``rsa``,
            ``ecdsa``, ``ecrdsa``, ``sm2``, ``mldsa``).
        ecdsa_sha3: ecdsa-with-SHA3-* are among them.
        certificate_digests: digests with RSA that may sign a certificate.
        keys_known: key algorithms that the certificate parser takes.
        keys: key algorithms that can be used.
        rsa_digests: digests for which RSA PKCS#1 v1.5 knows the prefix.
        rsa_bits: lengths of RSA keys that can be used (``rsa_check_key_length()``).
        rsa_unknown_digest: errno for another digest (ENOENT before the crypto API passed
            errors of templates on).
        rsa_refuses_trivial: signature values 0 and 1 are EINVAL, not EBADMSG (since 6.9).
        ecdsa_short_keys: points of fewer bytes than the curve's are taken (since 6.10).
        checks_usage: keyUsage and basicConstraints must decode (since 6.4).
        empty_constraints: an empty basicConstraints is taken (since 6.12).
        explicit_names: alternatives of a GeneralName are tagged around their type
            (``x509_akid.asn1`` of 5.10 and 6.1).
        matches_key_algorithm: an embedded certificate is the signer only when its key's
            algorithm has the signature's name (before 5.13).
        mldsa_attributes: signed attributes are taken beside ML-DSA
            (CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA, 7.0).
    """

    name: str
    digests_known: frozenset[str]
    digests: frozenset[str]
    signatures_known: frozenset[str]
    ecdsa_sha3: bool
    certificate_digests: frozenset[str]
    keys_known: frozenset[str]
    keys: frozenset[str]
    rsa_digests: frozenset[str]
    rsa_bits: frozenset[int] = frozenset({512, 1024, 1536, 2048, 3072, 4096})
    rsa_unknown_digest: str = "EINVAL"
    rsa_refuses_trivial: bool = True
    ecdsa_short_keys: bool = True
    checks_usage: bool = True
    empty_constraints: bool = True
    explicit_names: bool = False
    matches_key_algorithm: bool = False
    mldsa_attributes: bool = False


_5_10 = KernelProfile(
    name="5.10",
    digests_known=frozenset({"md4", "md5", "sha1"}) | _SHA2,
    digests=frozenset({"md4", "md5", "sha1"}) | _SHA2,
    signatures_known=_RSA,
    ecdsa_sha3=False,
    certificate_digests=frozenset({"md4", "sha1"}) | _SHA2,
    keys_known=frozenset({"rsa", "ecrdsa", "sm2"}),
    keys=_RSA,
    rsa_digests=frozenset({"md5", "sha1"}) | _SHA2,
    rsa_unknown_digest="ENOENT",
    rsa_refuses_trivial=False,
    ecdsa_short_keys=False,
    checks_usage=False,
    empty_constraints=False,
    explicit_names=True,
    matches_key_algorithm=True,
)
_6_1 = replace(
    _5_10,
    name="6.1",
    digests_known=_5_10.digests_known | {"sm3"} | _STREEBOG,
    digests=_5_10.digests | {"sm3"} | _STREEBOG,
    signatures_known=frozenset({"rsa", "ecdsa", "ecrdsa", "sm2"}),
    keys_known=_RSA | {"ecrdsa", "sm2", "ecdsa-nist-p192"} | _P256_P384,
    keys=_RSA | _P192 | _P256_P384,
    matches_key_algorithm=False,
)
_6_12 = replace(
    _6_1,
    name="6.12",
    digests_known=frozenset({"sha1", "sm3"}) | _SHA2 | _SHA3 | _STREEBOG,
    digests=frozenset({"sha1", "sm3"}) | _SHA2 | _SHA3 | _STREEBOG,
    signatures_known=frozenset({"rsa", "ecdsa", "ecrdsa"}),
    ecdsa_sha3=True,
    certificate_digests=frozenset({"sha1"}) | _SHA2 | _SHA3,
    keys_known=_RSA | {"ecrdsa", "ecdsa-nist-p192"} | _P256_P384 | _P521,
    keys=_RSA | _P192 | _P256_P384 | _P521,
    rsa_digests=frozenset({"md5", "sha1"}) | _SHA2 | _SHA3,
    rsa_unknown_digest="EINVAL",
    rsa_refuses_trivial=True,
    ecdsa_short_keys=True,
    checks_usage=True,
    empty_constraints=True,
    explicit_names=False,
)
_7_2 = replace(
    _6_12,
    name="7.2",
    signatures_known=_6_12.signatures_known | {"mldsa"},
    keys_known=_6_12.keys_known | _MLDSA,
    keys=_6_12.keys | _MLDSA,
    mldsa_attributes=True,
)

# SHA-1 and P-192 are left to those who name a kernel: by default they are not there.
LATEST = replace(_7_2, name="latest", digests=_7_2.digests - {"sha1"}, keys=_7_2.keys - _P192)
"""The newest kernel known here, built with every algorithm but the weak ones."""

PROFILES: Mapping[str, KernelProfile] = {
    profile.name: profile
    for profile in (
        LATEST,
        _5_10,
        _6_1,
        _6_12,
        _7_2,
        replace(_5_10, name="debian-11"),
        replace(_6_1, name="debian-12", digests=_6_1.digests - {"sm3"}, keys=_RSA),
        replace(_6_12, name="debian-13", digests=_6_12.digests - {"sm3"}),
        replace(
            _7_2,
            name="debian-14",
            digests=_7_2.digests - {"sm3"},
            keys=_7_2.keys - _MLDSA,
            mldsa_attributes=False,
        ),
    )
}
"""By name: upstream versions with all they can be built with, and distributions' builds."""

_RELEASE = re.compile(r"(\d+)\.(\d+)")
_STEPS = (
    ((5, 13), _6_1),  # ECDSA
    ((6, 4), replace(_6_1, checks_usage=True)),
    (  # SHA-3 comes, SM2 and the MD digests go
        (6, 7),
        replace(
            _6_12,
            keys_known=_6_12.keys_known - _P521,
            keys=_6_12.keys - _P521,
            ecdsa_short_keys=False,
        ),
    ),
    ((6, 10), _6_12),  # P-521
    ((7, 0), _7_2),  # ML-DSA
)
_BUILD_OPTIONS = {
    "CONFIG_CRYPTO_SHA1": frozenset({"sha1"}),
    "CONFIG_CRYPTO_SHA256": frozenset({"sha224", "sha256"}),
    "CONFIG_CRYPTO_SHA512": frozenset({"sha384", "sha512"}),
    "CONFIG_CRYPTO_SHA3": _SHA3,
    "CONFIG_CRYPTO_SM3": frozenset({"sm3"}),  # or CONFIG_CRYPTO_SM3_GENERIC
    "CONFIG_CRYPTO_STREEBOG": _STREEBOG,
    "CONFIG_CRYPTO_MD5": frozenset({"md5"}),
    "CONFIG_CRYPTO_MD4": frozenset({"md4"}),
    "CONFIG_CRYPTO_RSA": _RSA,
    "CONFIG_CRYPTO_ECDSA": _P192 | _P256_P384 | _P521,
    "CONFIG_CRYPTO_MLDSA": _MLDSA,
}


def profile_for(release: str, crypto_names: Collection[str], kconfig: Mapping[str, str]) -> KernelProfile:
    """The profile of a running kernel, from what was read of it.

    The parsers' tables cannot be seen from outside and follow the release. What was built is
    taken from the kernel's configuration, and without one from the algorithms registered now,
    to which the kernel adds by loading modules on demand: there the first counts as present.

    Args:
        release: as ``uname -r`` prints it.
        crypto_names: ``name`` lines of ``/proc/crypto``; may be empty.
        kconfig: ``CONFIG_*`` to ``y``, ``m`` or another value; empty when unreadable.
    """
    match = _RELEASE.match(release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    base = _5_10
    for since, profile in _STEPS:
        if version >= since:
            base = profile
    missing: set[str] = set()
    for option, algorithms in _BUILD_OPTIONS.items():
        built = {kconfig.get(option), kconfig.get(f"{option}_GENERIC")} & {"y", "m"}
        absent = bool(kconfig) and not built
        if absent and not algorithms & set(crypto_names):
            missing |= algorithms
    waived = kconfig.get("CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA") == "y"
    return replace(
        base,
        name=release,
        digests=base.digests - missing,
        keys=base.keys - missing,
        mldsa_attributes=base.mldsa_attributes and waived,
    )
