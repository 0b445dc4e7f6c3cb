# SPDX-License-Identifier: Apache-2.0
"""Revocations: what is refused whatever else speaks for it.

This module reads no files and knows no anchors. It is stricter than the kernel's
blacklist keyring on purpose: a ``tbs:`` entry counts under any digest of the
certificate, and a ``bin:`` entry covers the payload without its signature as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509

from kmodgate.errors import ConfigError

_TBS_DIGESTS = ("sha256", "sha384", "sha512", "sha1", "sha224")
_DIGEST_SIZES = frozenset({20, 28, 32, 48, 64})
_SHA256_SIZE = 32


def tbs_digests(certificate: x509.Certificate) -> frozenset[bytes]:
    """Every digest under which the kernel may list a certificate's TBSCertificate."""
    return _digests(certificate.tbs_certificate_bytes)


def _digests(tbs: bytes) -> frozenset[bytes]:
    return frozenset(hashlib.new(name, tbs, usedforsecurity=False).digest() for name in _TBS_DIGESTS)


@dataclass(frozen=True, slots=True)
class Revocations:
    """Revoked things; empty by default.

    Attributes:
        certificates: digests of TBSCertificates (``tbs:``), of any length.
        files: SHA-256 of a whole file or of its payload (``bin:``).
        key_ids: SubjectKeyIdentifiers (``id:``).
        signers: serial number and issuer of revoked certificates that are at hand, as the
            kernel joins them; what a message names its signer by.
    """

    certificates: frozenset[bytes] = frozenset()
    files: frozenset[bytes] = frozenset()
    key_ids: frozenset[bytes] = frozenset()
    signers: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.certificates or self.files or self.key_ids or self.signers)

    @classmethod
    def of_certificate(
        cls, certificate: x509.Certificate, identity: bytes, skid: bytes | None
    ) -> Revocations:
        """A certificate that is revoked itself, under everything that a message may name it by.

        Args:
            certificate: the certificate.
            identity: its serial number and issuer, as the kernel joins them.
            skid: its SubjectKeyIdentifier, or None where it has none.
        """
        return cls(
            certificates=frozenset({hashlib.sha256(certificate.tbs_certificate_bytes).digest()}),
            key_ids=frozenset() if skid is None else frozenset({skid}),
            signers=frozenset({identity}),
        )

    @classmethod
    def parse(cls, text: str, label: str) -> Revocations:
        """Read one entry a line, as the kernel's blacklist keyring describes them.

        ``tbs:HEX``, ``bin:HEX`` or ``id:HEX``; empty lines and ``#`` comments are skipped.

        Raises:
            ConfigError: any other line; a revocation must not be lost to a typing error.
        """
        found: dict[str, set[bytes]] = {"tbs": set(), "bin": set(), "id": set()}
        for number, line in enumerate(text.splitlines(), start=1):
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            kind, _, value = entry.partition(":")
            try:
                digest = bytes.fromhex(value)
            except ValueError:
                digest = b""
            sizes = {"tbs": _DIGEST_SIZES, "bin": frozenset({_SHA256_SIZE})}.get(kind)
            if kind not in found or not digest or (sizes is not None and len(digest) not in sizes):
                raise ConfigError(
                    "not a revocation; write tbs:HEX (digest of a certificate's signed part), "
                    "bin:HEX (SHA-256 of a file) or id:HEX (subject key identifier)",
                    source=label,
                    line=number,
                )
            found[kind].add(digest)
        return cls(frozenset(found["tbs"]), frozenset(found["bin"]), frozenset(found["id"]))

    @classmethod
    def merge(cls, several: Iterable[Revocations]) -> Revocations:
        """All of them together."""
        items = tuple(several)
        return cls(
            frozenset().union(*(item.certificates for item in items)),
            frozenset().union(*(item.files for item in items)),
            frozenset().union(*(item.key_ids for item in items)),
            frozenset().union(*(item.signers for item in items)),
        )

    def names(self, identity: bytes) -> bool:
        """True when an id by which a message names a signer or an issuer is revoked itself.

        Args:
            identity: serial number and issuer as the kernel joins them, or a
                SubjectKeyIdentifier.
        """
        return identity in self.signers or identity in self.key_ids

    def unnamed(self, known: Iterable[tuple[x509.Certificate, bytes | None]]) -> tuple[str, ...]:
        """Entries for certificates that are not among the known ones, as they are written.

        Such an entry is blind to a message that names its signer by issuer and serial number
        alone and brings no certificate along, which is how modules are signed as a rule.

        Args:
            known: every certificate at hand, with its SubjectKeyIdentifier.
        """
        certificates, key_ids = set(self.certificates), set(self.key_ids)
        for certificate, skid in known:
            certificates -= tbs_digests(certificate)
            key_ids -= {skid}
        return (
            *(f"tbs:{value.hex()}" for value in sorted(certificates)),
            *(f"id:{value.hex()}" for value in sorted(key_ids)),
        )

    def revokes(self, certificate: x509.Certificate, skid: bytes | None) -> bool:
        """True when the certificate is revoked, by its signed part or by its key id."""
        if skid is not None and skid in self.key_ids:
            return True
        return self.revokes_tbs(certificate.tbs_certificate_bytes)

    def revokes_tbs(self, tbs: bytes) -> bool:
        """True when a TBSCertificate is listed, under any digest."""
        return bool(self.certificates) and not self.certificates.isdisjoint(_digests(tbs))
