# SPDX-License-Identifier: Apache-2.0
"""Mutators that know a format, so that what they change reaches the code behind its checks.

Each takes libFuzzer's own mutator and returns one that gets an input and a seeded source of
chance.
"""

from __future__ import annotations

import lzma
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import zstandard

from kmodgate.errors import SignatureError
from kmodgate.signature.trailer import MARKER, split

from . import der

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
TRUST = HERE / "trust"

Scramble: TypeAlias = Callable[[bytes, int], bytes]
Mutate: TypeAlias = Callable[[bytes, random.Random], bytes]


def _seeds(target: str) -> Iterator[bytes]:
    return (path.read_bytes() for path in sorted((CORPUS / target).glob("seed-*")))


def _pool(encodings: Iterable[bytes]) -> list[der.Element]:
    roots = (root for encoding in encodings for root in der.decode(encoding) or ())
    return [element for root in roots for element in root.walk()]


def files(scramble: Scramble) -> Mutate:
    """Mutates the message and appends a fitting trailer, so that its depth is reached."""
    files = [path.read_bytes() for path in sorted((CORPUS / "cms").glob("seed-*"))]
    pool = [
        element for data in files for root in der.decode(split(data).cms) or () for element in root.walk()
    ]
    mutator = der.Mutator(pool, scramble)

    def mutate(data: bytes, chance: random.Random) -> bytes:
        kind = chance.random()
        try:
            parts = split(data)
        except SignatureError:
            return scramble(data, 1 << 16)
        if kind < 0.05:
            return scramble(data, 1 << 16)
        payload = bytes(parts.payload)
        if kind < 0.08:
            payload = scramble(payload, len(payload) + 4) or b"\0"
        message = mutator.mutate(parts.cms, chance)
        header = bytearray(struct.pack(">BBBBB3sI", 0, 0, 2, 0, 0, b"\0\0\0", len(message)))
        if kind > 0.97:
            header[chance.randrange(len(header))] = chance.randrange(256)
        return payload + message + header + MARKER

    return mutate


def certificates(scramble: Scramble) -> Mutate:
    """Mutates DER by its elements and PEM as text."""
    mutator = der.Mutator(_pool(_seeds("certificates")), scramble)

    def mutate(data: bytes, chance: random.Random) -> bytes:
        if data[:1] != b"\x30" or chance.random() < 0.05:
            return scramble(data, 1 << 14)
        return mutator.mutate(data, chance)

    return mutate


def streams(scramble: Scramble) -> Mutate:
    """Damages a stream, or makes a new one with other options of its format."""

    payload = (TRUST / "payload").read_bytes()

    def mutate(data: bytes, chance: random.Random) -> bytes:
        kind = chance.random()
        if kind < 0.5:
            return scramble(data, 1 << 14)
        plain = scramble(payload, 2048) * chance.choice((1, 1, 1, 2, 100))
        stream = _compress(plain, chance)
        if kind < 0.6:
            return stream + scramble(stream, 64)
        return scramble(stream, len(stream) + 4) if kind < 0.8 else stream

    return mutate


def _compress(plain: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(3)
    if kind == 0:
        packer = zlib.compressobj(chance.randrange(10), wbits=31, strategy=chance.randrange(5))
        return packer.compress(plain) + packer.flush()
    if kind == 1:
        filters: list[dict[str, int]] = [
            {
                "id": lzma.FILTER_LZMA2,
                "preset": chance.randrange(3),
                "dict_size": 1 << chance.randrange(12, 20),
                "lc": chance.randrange(5),
                "lp": 0,
                "pb": chance.randrange(5),
            }
        ]
        if chance.random() < 0.3:
            filters.insert(0, {"id": lzma.FILTER_DELTA, "dist": chance.randrange(1, 257)})
        return lzma.compress(plain, check=chance.choice((0, 1, 4, 10)), filters=filters)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        chance.randrange(1, 6),
        window_log=chance.randrange(10, 24),
        write_checksum=chance.random() < 0.5,
        write_content_size=chance.random() < 0.5,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


def elfs(scramble: Scramble) -> Mutate:
    """Puts telling numbers into the header fields."""
    numbers = (
        0,
        1,
        2,
        3,
        40,
        64,
        0xFF,
        0x7FFF,
        0xFFFF,
        1 << 20,
        (1 << 31) - 1,
        (1 << 32) - 1,
        (1 << 63),
        (1 << 64) - 1,
    )

    def mutate(data: bytes, chance: random.Random) -> bytes:
        if len(data) < 64 or chance.random() < 0.3:
            return scramble(data, 1 << 12)
        out = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 3))):
            size = chance.choice((1, 2, 4, 8))
            start = chance.choice((0, len(out) - 3 * 64, len(out) - 3 * 40))
            position = max(0, start) + chance.randrange(64 // size) * size
            number = chance.choice((*numbers, len(out), len(out) - 1, chance.randrange(len(out))))
            octets = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            out[position : position + size] = octets if chance.random() < 0.5 else octets[::-1]
        return bytes(out)

    return mutate
