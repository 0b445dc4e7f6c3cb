# SPDX-License-Identifier: Apache-2.0
"""Certificates and keyrings that the kernel lists in ``/proc/keys``.

The list says which keys exist and that this user may view them. It does not say which
keyring holds a key, and any user can add one to a keyring of their own: it is a label
for reports, never a trust decision. Sources: proc_keys(5), ``security/keys/proc.c``,
``asymmetric_key_describe()`` in ``crypto/asymmetric_keys/asymmetric_type.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kmodgate.errors import NodeError

from .paths import NodePaths, read_text

_LINE = re.compile(
    r"(?P<serial>[0-9a-f]{1,8}) (?P<flags>[A-Za-z-]{5,10}) +(?P<usage>[0-9]+) +(?P<expiry>\S+) "
    r"(?P<perm>[0-9a-f]{8}) +(?P<uid>-?[0-9]+) +(?P<gid>-?[0-9]+) (?P<type>\S+) *(?P<rest>.*)",
    re.ASCII,
)
# For example: Debian Secure Boot CA: 6ccece7e…: X509.rsa bb419ea1 []
_CERTIFICATE = re.compile(
    r"(?P<description>.*): (?P<kind>[A-Za-z0-9]+)\.(?P<algorithm>[A-Za-z0-9_-]+)(?: [0-9a-f]+)? \[\]",
    re.ASCII,
)
_SKID = re.compile(r"[0-9a-f]{2,128}", re.ASCII)
# security/keys/proc.c: R revoked, D dead, i invalidated, N negative.
_UNUSABLE = frozenset("RDiN")


@dataclass(frozen=True, slots=True)
class KeyringCertificate:
    """One asymmetric key.

    Attributes:
        key_id: the key's serial number in the key service, hexadecimal.
        subject: the kernel's short form of the subject, often ``O: CN``.
        skid: SubjectKeyIdentifier in lower-case hexadecimal (the certificate's serial
            number when it has none), or None when the description does not end in one.
        algorithm: the kernel's name: ``rsa``, ``ecdsa-nist-p384``, ….
    """

    key_id: str
    subject: str
    skid: str | None
    algorithm: str


@dataclass(frozen=True, slots=True)
class KernelKeys:
    """What ``/proc/keys`` lists, as far as it concerns module signatures.

    Attributes:
        certificates: usable asymmetric keys.
        keyrings: names of all keyrings in view, for example ``.builtin_trusted_keys``.
    """

    certificates: tuple[KeyringCertificate, ...]
    keyrings: tuple[str, ...]


def parse_keys(text: str) -> KernelKeys:
    """Certificates and keyrings of ``/proc/keys``; other types are passed over.

    Raises:
        NodeError: a line that is no line of ``/proc/keys``.
    """
    certificates = []
    keyrings = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise NodeError(
                f"/proc/keys line {number} has not the form of proc_keys(5); report this as a bug"
            )
        if match["type"] == "keyring":
            keyrings.append(match["rest"].rpartition(":")[0] or match["rest"])
        elif match["type"].startswith("asymmetri") and _UNUSABLE.isdisjoint(match["flags"]):
            certificate = _CERTIFICATE.fullmatch(match["rest"])
            if certificate is not None and certificate["kind"] == "X509" and match["expiry"] != "expd":
                certificates.append(_describe(match["serial"], certificate))
    return KernelKeys(tuple(certificates), tuple(keyrings))


def _describe(serial: str, certificate: re.Match[str]) -> KeyringCertificate:
    description = certificate["description"]
    subject, colon, last = description.rpartition(": ")
    has_skid = bool(colon) and _SKID.fullmatch(last) is not None
    return KeyringCertificate(
        key_id=serial,
        subject=subject if has_skid else description,
        skid=last if has_skid else None,
        algorithm=certificate["algorithm"],
    )


def read_keys(paths: NodePaths) -> KernelKeys | None:
    """The keys in view of this user; None when ``/proc/keys`` is absent.

    Raises:
        NodeError: the list makes no sense.
    """
    text = read_text(paths.proc / "keys")
    return None if text is None else parse_keys(text)
