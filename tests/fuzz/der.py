# SPDX-License-Identifier: Apache-2.0
"""Mutates DER by its elements, so that what is changed is the structure and not its lengths.

The decoder here is lenient and knows no type: whatever is not an element stays bytes. It
shares no code with the parsers under test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

MAX_DEPTH = 40
_CONSTRUCTED = 0x20
_OID, _INTEGER, _SET = 0x06, 0x02, 0x31
_SHORT_FORM = 128  # X.690 section 8.1.3.4
_HEADER = 2  # tag and length of the smallest element


@dataclass(slots=True)
class Element:
    """One element: ``children`` when its content is a sequence of elements, else ``content``."""

    tag: int
    content: bytes = b""
    children: list[Element] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        """This element and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def copy(self) -> Element:
        """A deep copy."""
        return Element(self.tag, self.content, [child.copy() for child in self.children])

    def encode(self) -> bytes:
        """Definite lengths, shortest form."""
        body = b"".join(child.encode() for child in self.children) if self.children else self.content
        return bytes((self.tag,)) + length(len(body)) + body


def length(size: int) -> bytes:
    """A definite length in its shortest form."""
    if size < _SHORT_FORM:
        return bytes((size,))
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(octets),)) + octets


def decode(data: bytes, depth: int = 0) -> list[Element] | None:
    """The elements that ``data`` is made of, or None when it is not made of elements."""
    elements = []
    position = 0
    while position < len(data):
        if position + 2 > len(data) or depth > MAX_DEPTH:
            return None
        tag, size = data[position], data[position + 1]
        position += 2
        if size >= _SHORT_FORM:
            octets = size & 0x7F
            if not octets or octets > 3 or position + octets > len(data):
                return None
            size = int.from_bytes(data[position : position + octets], "big")
            position += octets
        if position + size > len(data):
            return None
        content = data[position : position + size]
        children = decode(content, depth + 1) if tag & _CONSTRUCTED else None
        elements.append(Element(tag, content, children or []))
        position += size
    return elements


class Mutator:
    """Changes one to four things in a tree of elements.

    Args:
        pool: elements of valid messages, to put in place of others.
        scramble: changes bytes without regard to structure (libFuzzer's own mutator).
    """

    def __init__(self, pool: Sequence[Element], scramble: Callable[[bytes, int], bytes]) -> None:
        self._pool = pool
        self._scramble = scramble
        self._oids = sorted({element.content for element in pool if element.tag == _OID})

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        """A changed encoding of ``data``; scrambled bytes when it is no DER."""
        roots = decode(data)
        if not roots:
            return self._scramble(data, len(data) + 8)
        top = Element(0, b"", roots)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            self._change(top, chance)
        if chance.random() < 0.5:
            for element in top.walk():
                if element.tag == _SET:
                    element.children.sort(key=Element.encode)
        encoded = b"".join(element.encode() for element in top.children)
        return _respell(encoded, chance) if chance.random() < 0.05 else encoded

    def _change(self, top: Element, chance: random.Random) -> None:
        parents = [element for element in top.walk() if element.children]
        if not parents:
            top.children = [chance.choice(self._pool).copy()]
            return
        siblings = chance.choice(parents).children
        index = chance.randrange(len(siblings))
        element = siblings[index]
        kind = chance.randrange(10)
        if chance.random() < 0.01:  # what takes longer than its length
            siblings[index : index + 1] = [element] * chance.choice((10, 30, 100, 1000))
        elif kind == 0:
            del siblings[index]
        elif kind == 1:
            siblings.insert(chance.randrange(len(siblings) + 1), element.copy())
        elif kind == 2:
            siblings[index] = chance.choice(self._pool).copy()
        elif kind == 3:
            siblings.insert(index, chance.choice(self._pool).copy())
        elif kind == 4:
            element.tag = chance.choice((0xA0, 0xA1, 0x80, 0x81, 0x30, 0x31, 4, 2, 5, chance.randrange(256)))
        elif kind == 5:
            chance.shuffle(siblings)
        elif kind == 6:
            siblings[index] = Element(chance.choice((0x30, 0x31, 0xA0, 0xA3)), b"", [element])
        elif kind == 7 and element.children:
            siblings[index : index + 1] = element.children
        else:
            self._change_content(element, chance)

    def _change_content(self, element: Element, chance: random.Random) -> None:
        leaves = [leaf for leaf in element.walk() if not leaf.children]
        leaf = chance.choice(leaves)
        if chance.random() < 0.01:
            leaf.content = (leaf.content or b"\0") * chance.choice((10, 100, 1000))
        elif leaf.tag == _OID and chance.random() < 0.8:
            leaf.content = chance.choice(self._oids)
        elif leaf.tag == _INTEGER and len(leaf.content) <= 2:
            leaf.content = bytes((chance.randrange(6),))
        else:
            leaf.content = self._scramble(leaf.content or b"\0", len(leaf.content) + 4)


def _respell(encoded: bytes, chance: random.Random) -> bytes:
    """What BER allows and DER does not, and bytes behind the end."""
    kind = chance.randrange(3)
    if kind == 0:
        return encoded + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 5)))
    if len(encoded) < _HEADER:
        return encoded
    body = _body(encoded)
    if kind == 1:  # an indefinite length
        return encoded[:1] + b"\x80" + body + b"\0\0"
    return encoded[:1] + b"\x84" + len(body).to_bytes(4, "big") + body  # a long form of a length


def _body(encoded: bytes) -> bytes:
    octets = encoded[1] & 0x7F if encoded[1] >= _SHORT_FORM else 0
    return encoded[2 + octets :]
