# SPDX-License-Identifier: Apache-2.0
"""Every element of a good message, damaged in every way that BER has."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.vectors.generate import tlv

Change = Callable[[int, bytes], bytes]
_MAX = 65000


def _header(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag, size of the header, size of the contents (definite lengths only)."""
    length, size = data[at + 1], 2
    if length & 0x80:
        count = length & 0x7F
        length, size = int.from_bytes(data[at + 2 : at + 2 + count], "big"), 2 + count
    return data[at], size, length


def elements(data: bytes, at: int = 0, end: int | None = None) -> Iterator[int]:
    """Offsets of all elements, outer ones first."""
    end = len(data) if end is None else end
    while at < end:
        tag, size, length = _header(data, at)
        yield at
        if tag & 0x20:
            yield from elements(data, at + size, at + size + length)
        at += size + length


def changed(data: bytes, target: int, change: Change, at: int = 0, end: int | None = None) -> bytes:
    """The message with one element replaced, lengths around it made right."""
    end = len(data) if end is None else end
    out = b""
    while at < end:
        tag, size, length = _header(data, at)
        inner, after = at + size, at + size + length
        if at == target:
            out += change(tag, data[inner:after])
        elif tag & 0x20 and at < target < after:
            out += tlv(tag, changed(data, target, change, inner, after))
        else:
            out += data[at:after]
        at = after
    return out


CHANGES: dict[str, Change] = {
    "left out": lambda _tag, _body: b"",
    "twice": lambda tag, body: tlv(tag, body) * 2,
    "replaced by NULL": lambda _tag, _body: b"\x05\x00",
    "replaced by end of contents": lambda _tag, _body: b"\x00\x00",
    "constructed bit": lambda tag, body: tlv(tag ^ 0x20, body),
    "next tag": lambda tag, body: tlv(tag ^ 0x01, body),
    "context tag": lambda tag, body: tlv(tag ^ 0x80, body),
    "tag of several bytes": lambda _tag, body: b"\x1f\x81\x00" + body,
    "emptied": lambda tag, _body: tlv(tag),
    "one byte short": lambda tag, body: tlv(tag, body[:-1]),
    "NULL inside at the end": lambda tag, body: tlv(tag, body, b"\x05\x00"),
    "NULL behind": lambda tag, body: tlv(tag, body) + b"\x05\x00",
    "indefinite length": lambda tag, body: bytes((tag, 0x80)) + body + b"\x00\x00",
    "indefinite without end": lambda tag, body: bytes((tag, 0x80)) + body,
    "two length bytes": lambda tag, body: bytes((tag, 0x82)) + len(body).to_bytes(2, "big") + body,
    "three length bytes": lambda tag, body: bytes((tag, 0x83)) + len(body).to_bytes(3, "big") + body,
    "length over the end": lambda tag, body: bytes((tag, 0x82, 0x7F, 0xFF)) + body,
}


def mutations(name: str, message: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and messages; the names do not depend on keys, the bytes do."""
    for number, at in enumerate(elements(message)):
        for what, change in CHANGES.items():
            damaged = changed(message, at, change)
            if len(damaged) < _MAX:
                yield f"{name}, element {number}: {what}", damaged
    for size in range(0, len(message), 7):
        yield f"{name}: cut to {size}", message[:size]
    yield f"{name}: one byte behind", message + b"\x00"
    yield f"{name}: more behind", message + b"anything at all"
    chance = random.Random(name)
    for number in range(150):
        noisy = bytearray(message)
        for _ in range(chance.choice((1, 1, 2, 3))):
            noisy[chance.randrange(len(noisy))] = chance.randrange(256)
        yield f"{name}: noise {number}", bytes(noisy)
