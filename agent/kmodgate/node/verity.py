# SPDX-License-Identifier: Apache-2.0
"""Trusted dm-verity root digests, and the tables of dm-verity devices. Pure.

It reads no file and asks no device: ``devicemapper`` does. Sources:
``read_trusted_verity_root_digests()`` in ``security/loadpin/loadpin.c``,
``is_trusted_verity_target()`` in ``drivers/md/dm-verity-loadpin.c``, ``verity_status()`` and
``verity_ctr()`` in ``drivers/md/dm-verity-target.c``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kmodgate.errors import ConfigError, NodeError

HEADER: Final = b"# LOADPIN_TRUSTED_VERITY_ROOT_DIGESTS"
MAX_BYTES: Final = 4095
"""LoadPin reads no longer file: one page less the byte that ends a string."""

# SHA-256, SHA-384, SHA-512 and others as long. LoadPin takes any length.
_DIGEST_BYTES: Final = (32, 48, 64)
_HEX: Final = re.compile(rb"[0-9A-Fa-f]+")
_SPACE: Final = b" \t\n\v\f\r"  # isspace() of the kernel in ASCII, for strim()
_SHOWN: Final = 40

_TABLE_WORDS: Final = 10
_VERSIONS: Final = ("0", "1")
_ALGORITHM: Final = re.compile(r"[A-Za-z0-9_().,/-]{1,64}", re.ASCII)
_WORD_OF_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+", re.ASCII)
# What may follow the ten words, and how many words each has with it. None of these lets a block be
# read that has not the digest which the tree gives it.
_HARMLESS: Final = {
    "restart_on_corruption": 1,
    "panic_on_corruption": 1,
    "restart_on_error": 1,
    "panic_on_error": 1,
    "ignore_zero_blocks": 1,
    "check_at_most_once": 1,
    "try_verify_in_tasklet": 1,
    "use_fec_from_device": 2,
    "fec_blocks": 2,
    "fec_start": 2,
    "fec_roots": 2,
    "root_hash_sig_key_desc": 2,
}


def parse_trusted_digests(data: bytes, source: str) -> frozenset[bytes]:
    """The digests of a file in LoadPin's own format.

    1. No more bytes than LoadPin reads.
    2. White space at the end does not count, anywhere else it does.
    3. The first line is the header and nothing else.
    4. Every other line is one digest in hexadecimal; there is at least one.

    A blank line and a digest of another length than SHA-256, SHA-384 or SHA-512 have it is refused
    here. LoadPin lets both pass: the first never matches anything, the second may.

    Args:
        data: the file's bytes.
        source: its name, for messages.

    Raises:
        ConfigError: anything else, with its line.
    """
    if len(data) > MAX_BYTES:  # 1
        raise ConfigError(
            f"has {len(data)} bytes; LoadPin reads at most {MAX_BYTES}: shorten it", source=source
        )
    header, *lines = data.rstrip(_SPACE).split(b"\n")  # 2
    if header != HEADER:  # 3
        raise ConfigError(
            f"the first line is {_shown(header)}; it must be {HEADER.decode()!r} and nothing else",
            source=source,
            line=1,
        )
    if not lines:  # 4
        raise ConfigError(
            "holds no digest: write one a line, or leave the setting out", source=source, line=1
        )
    return frozenset(_digest(line, source, number) for number, line in enumerate(lines, 2))


def _digest(line: bytes, source: str, number: int) -> bytes:
    if not line:
        raise ConfigError("is blank; every line after the first is a digest", source=source, line=number)
    if not _HEX.fullmatch(line):
        raise ConfigError(
            f"{_shown(line)} is no digest: hexadecimal digits only, without spaces or comments",
            source=source,
            line=number,
        )
    if len(line) not in [2 * size for size in _DIGEST_BYTES]:
        raise ConfigError(
            f"has {len(line)} hexadecimal digits; a root digest has 64 (SHA-256), 96 (SHA-384) or "
            "128 (SHA-512)",
            source=source,
            line=number,
        )
    return bytes.fromhex(line.decode())


def _shown(line: bytes) -> str:
    text = ascii(line[:_SHOWN])[1:]
    return text if len(line) <= _SHOWN else f"{text}…"


@dataclass(frozen=True, slots=True)
class TargetLine:
    """One target of a device's live table.

    Attributes:
        kind: the target's type, for instance ``verity`` or ``linear``.
        parameters: its words.
    """

    kind: str
    parameters: str


class UntrustedDeviceError(NodeError):
    """A device that is no dm-verity device with a trusted root digest; the message says why."""


def trusted_root_digest(table: Sequence[TargetLine], trusted: frozenset[bytes]) -> bytes:
    """The root digest of a device, if it is trusted. An empty set trusts nothing.

    1. One target, as LoadPin wants it, and of type verity.
    2. A block that does not match its digest cannot be read: not with ``ignore_corruption``, nor
       with any option that is unknown here.
    3. The root digest is one of the trusted.

    Raises:
        UntrustedDeviceError: one of these does not hold.
    """
    if len(table) != 1:  # 1
        raise UntrustedDeviceError(f"its table has {len(table)} targets, not one")
    (target,) = table
    if target.kind != "verity":
        raise UntrustedDeviceError(f"its target is {ascii(target.kind)[:_SHOWN]}, not verity")
    words = target.parameters.split()
    if len(words) < _TABLE_WORDS or words[0] not in _VERSIONS or not _ALGORITHM.fullmatch(words[7]):
        raise UntrustedDeviceError("its table is none of a dm-verity device")
    _refuse_options(words[_TABLE_WORDS:])  # 2
    text, salt = words[8:_TABLE_WORDS]
    if not _WORD_OF_HEX.fullmatch(text):
        raise UntrustedDeviceError("its table has no root digest")
    if salt != "-" and not _WORD_OF_HEX.fullmatch(salt):
        raise UntrustedDeviceError("its table has no salt where one belongs")
    digest = bytes.fromhex(text)
    if digest not in trusted:  # 3
        raise UntrustedDeviceError(f"its root digest {digest.hex()} is not among the trusted")
    return digest


def _refuse_options(words: Sequence[str]) -> None:
    if not words:
        return
    count, *rest = words
    if count != str(len(rest)):
        raise UntrustedDeviceError("the number of options in its table is wrong")
    while rest:
        length = _HARMLESS.get(rest[0])
        if length is None:
            raise UntrustedDeviceError(
                f"its option {ascii(rest[0])[:_SHOWN]} may let blocks be read that do not match their digest"
            )
        if len(rest) < length:
            raise UntrustedDeviceError(f"its option {rest[0]} lacks its value")
        rest = rest[length:]
