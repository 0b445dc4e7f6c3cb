# SPDX-License-Identifier: Apache-2.0
"""A dm-verity hash tree, as Documentation/admin-guide/device-mapper/verity.rst has it: version 1.

Written here so that the guests need no more than a kernel; whether it is right, the kernel says at
each block it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Tree:
    """Hashes of a file.

    Attributes:
        hashes: the contents of the hash device, without a superblock.
        root: the root digest.
        table: the target's parameters, with ``%1`` and ``%2`` for data and hash device.
    """

    hashes: bytes
    root: bytes
    table: str


def tree(data: bytes, salt: bytes) -> Tree:
    """The tree over whole blocks of data.

    Raises:
        ValueError: the data ends within a block.
    """
    if not data or len(data) % BLOCK:
        raise ValueError(f"{len(data)} bytes are no whole number of blocks")
    levels: list[bytes] = []
    lower = data
    while not levels or len(lower) > BLOCK:
        digests = b"".join(_digest(lower[at : at + BLOCK], salt) for at in range(0, len(lower), BLOCK))
        lower = digests + bytes(-len(digests) % BLOCK)
        levels.append(lower)
    root = _digest(lower, salt)
    words = f"1 %1 %2 {BLOCK} {BLOCK} {len(data) // BLOCK} 0 sha256 {root.hex()} {salt.hex() or '-'}"
    # The level that the root digest covers comes first.
    return Tree(b"".join(reversed(levels)), root, words)


def _digest(block: bytes, salt: bytes) -> bytes:
    return sha256(salt + block).digest()
