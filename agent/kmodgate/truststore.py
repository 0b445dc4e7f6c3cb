# SPDX-License-Identifier: Apache-2.0
"""Reads the certificate and revocation files that a config names into a trust store.

The store itself (``signature.trust``) is pure; this is its I/O, shared by the agent and the
commands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from .fsutil import read_regular_file
from .signature import Revocations, TrustAnchor, TrustStore, load_certificates

_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TrustFiles:
    """What certificate and revocation files hold.

    Attributes:
        store: anchors and revocations.
        digest: of all that went into it: another digest, other anchors.
        unnamed: revocation entries for certificates that none of the files holds, see
            ``Revocations.unnamed``.
    """

    store: TrustStore
    digest: bytes
    unnamed: tuple[str, ...]


def read_trust(
    certificates: Iterable[Path], revoked: Iterable[Path], revoked_certificates: Iterable[Path] = ()
) -> TrustFiles:
    """Read certificates and revocations.

    Raises:
        KmodgateError: a file that cannot be read or holds something else; it is named.
    """
    mix = sha256()

    def read(path: Path, role: bytes) -> bytes:
        data = read_regular_file(path, _MAX_BYTES)
        mix.update(role + sha256(data).digest())
        return data

    def anchors_in(paths: Iterable[Path], role: bytes) -> list[TrustAnchor]:
        return [anchor for path in paths for anchor in load_certificates(read(path, role), str(path))]

    anchors = anchors_in(certificates, b"anchor")
    entries = Revocations.merge(
        Revocations.parse(read(path, b"revoked").decode("utf-8", "replace"), str(path)) for path in revoked
    )
    named = anchors_in(revoked_certificates, b"certificate")
    unnamed = entries.unnamed((one.certificate, one.skid) for one in [*anchors, *named])
    revocations = Revocations.merge([entries, *map(_revocation_of, named)])
    return TrustFiles(TrustStore(anchors, revocations), mix.digest(), unnamed)


def load_trust(
    certificates: Iterable[Path], revoked: Iterable[Path], revoked_certificates: Iterable[Path] = ()
) -> tuple[TrustStore, bytes]:
    """The store and the digest of ``read_trust``."""
    found = read_trust(certificates, revoked, revoked_certificates)
    return found.store, found.digest


def _revocation_of(anchor: TrustAnchor) -> Revocations:
    return Revocations.of_certificate(anchor.certificate, anchor.identity, anchor.skid)
