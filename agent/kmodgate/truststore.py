# SPDX-License-Identifier: Apache-2.0
"""Reads the certificate and revocation files that a config names into a trust store.

The store itself (``signature.trust``) is pure; this is its I/O, shared by the agent and the
commands.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

from .fsutil import read_regular_file
from .signature import Revocations, TrustAnchor, TrustStore, load_certificates

_MAX_BYTES: Final = 1 << 20


def load_trust(certificates: Iterable[Path], revoked: Iterable[Path]) -> tuple[TrustStore, bytes]:
    """Read certificates and revocations.

    Returns:
        The store, and a digest of all that went into it: another digest, other anchors.

    Raises:
        KmodgateError: a file that cannot be read or holds something else; it is named.
    """
    anchors: list[TrustAnchor] = []
    revocations: list[Revocations] = []
    mix = sha256()
    for path in certificates:
        data = read_regular_file(path, _MAX_BYTES)
        anchors += load_certificates(data, str(path))
        mix.update(b"anchor" + sha256(data).digest())
    for path in revoked:
        data = read_regular_file(path, _MAX_BYTES)
        revocations.append(Revocations.parse(data.decode("utf-8", "replace"), str(path)))
        mix.update(b"revoked" + sha256(data).digest())
    return TrustStore(anchors, Revocations.merge(revocations)), mix.digest()
