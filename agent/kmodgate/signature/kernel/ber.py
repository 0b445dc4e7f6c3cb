# SPDX-License-Identifier: Apache-2.0
"""The kernel's BER decoder: a grammar becomes a program, the program walks the bytes.

A decoder in its own right would differ from the kernel's in what it overlooks: bytes after the
outermost element, indefinite lengths, the constructed bit, and an optional element at the end of
its container, which leaves the "matched" flag of the element before it standing. So the
machine is modelled, flags and all.

Sources: ``lib/asn1_decoder.c``; what ``scripts/asn1_compiler.c`` makes of a grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .answer import Refusal

MAX_SIZE = 65535

_CONSTRUCTED = 0x20
_LONG_TAG = 0x1F
_INDEFINITE = 0x80

# action(context, header length, tag, start of contents, length of contents)
Action: TypeAlias = Callable[[Any, int, int, int, int], None]

_MATCH, _END, _ACT, _MAYBE_ACT, _COND_FAIL, _RETURN, _COMPLETE = range(7)
_MATCHED, _LAST_MATCHED = 2, 4

# (code, conditional, skippable, tag or None for any, action, jump target or None)
_Operation: TypeAlias = tuple[int, bool, bool, int | None, Action | None, int | None]


@dataclass(frozen=True, slots=True)
class Element:
    """A node of a grammar.

    Attributes:
        tag: identifier octet; None matches any tag. In a choice: unused.
        children: of a constructed element, or the alternatives of a choice.
        repeated: SET OF or SEQUENCE OF: ``children`` once or more.
        alternatives: this is a CHOICE.
        optional: may be missing.
        action: runs on a primitive when matched, on a constructed element at its end.
        after: runs after the element, with the bounds of whatever was seen last; for an
            optional element only when it was there.
    """

    tag: int | None = None
    children: tuple[Element, ...] = ()
    repeated: bool = False
    alternatives: bool = False
    optional: bool = False
    action: Action | None = None
    after: Action | None = None

    @property
    def compound(self) -> bool:
        """Has contents that the machine walks into."""
        return bool(self.children) and not self.alternatives


def leaf(tag: int, action: Action | None = None, *, optional: bool = False) -> Element:
    """A primitive element."""
    return Element(tag, optional=optional, action=action)


def anything(action: Action | None = None, *, optional: bool = False) -> Element:
    """ANY."""
    return Element(None, optional=optional, action=action)


def group(
    tag: int,
    *children: Element,
    optional: bool = False,
    action: Action | None = None,
    after: Action | None = None,
) -> Element:
    """SEQUENCE, or an explicit tag around one element."""
    return Element(tag, children, optional=optional, action=action, after=after)


def many(tag: int, child: Element, *, optional: bool = False, after: Action | None = None) -> Element:
    """SEQUENCE OF or SET OF; the kernel wants one at least."""
    return Element(tag, (child,), repeated=True, optional=optional, after=after)


def choice(*alternatives: Element, optional: bool = False, after: Action | None = None) -> Element:
    """CHOICE."""
    return Element(None, alternatives, alternatives=True, optional=optional, after=after)


class _Compiler:
    """Lays elements out in the order of the kernel's compiler."""

    def __init__(self) -> None:
        self.program: list[_Operation] = []
        self._later: list[tuple[int, Element]] = []

    def _emit(
        self,
        code: int,
        *,
        conditional: bool = False,
        skippable: bool = False,
        tag: int | None = None,
        action: Action | None = None,
        target: int | None = None,
    ) -> None:
        self.program.append((code, conditional, skippable, tag, action, target))

    def compile(self, root: Element) -> tuple[_Operation, ...]:
        """The whole grammar; optional compounds stand after the end, reached by a jump."""
        self._place(root, conditional=False, optional=False)
        self._emit(_COMPLETE)
        while self._later:
            position, element = self._later.pop(0)
            operation = self.program[position]
            self.program[position] = (*operation[:5], len(self.program))
            self._contents(element)
            self._emit(_RETURN)
        return tuple(self.program)

    def _place(self, element: Element, *, conditional: bool, optional: bool) -> None:
        if element.alternatives:
            for number, alternative in enumerate(element.children):
                self._place(alternative, conditional=conditional or number > 0, optional=True)
            if not element.optional:
                self._emit(_COND_FAIL)
            if element.after is not None:
                self._emit(_ACT, action=element.after)
            return
        optional = optional or element.optional
        inline = element.compound and not optional
        if element.compound and optional:
            self._later.append((len(self.program), element))
        action = None if element.compound else element.action
        self._emit(_MATCH, conditional=conditional, skippable=optional, tag=element.tag, action=action)
        if inline:
            self._contents(element)
        if element.after is not None:
            self._emit(_MAYBE_ACT if optional else _ACT, action=element.after)

    def _contents(self, element: Element) -> None:
        first = len(self.program)
        for child in element.children:
            self._place(child, conditional=False, optional=False)
        self._emit(_END, action=element.action, target=first if element.repeated else None)


Program: TypeAlias = tuple[_Operation, ...]


def compile_grammar(root: Element) -> Program:
    """Turn a grammar into a program for ``decode``."""
    return _Compiler().compile(root)


def _bad(position: int, problem: str) -> Refusal:
    return Refusal("EBADMSG", f"byte {position} of the DER: {problem}")


def _indefinite_length(data: Sequence[int], start: int, end: int) -> int:
    """Length of the contents of an indefinite element, its end mark included."""
    position, level = start, 1
    while True:
        if end - position < 2:
            raise _bad(position, "an element of indefinite length does not end")
        tag = data[position]
        position += 1
        if tag == 0:
            if data[position] != 0:
                raise _bad(position, "not an end of contents")
            position += 1
            level -= 1
            if level == 0:
                return position - start
            continue
        if tag & _LONG_TAG == _LONG_TAG:
            more = True
            while more:
                if end - position < 2:
                    raise _bad(position, "a tag runs over the end")
                more = bool(data[position] & 0x80)
                position += 1
        length = data[position]
        position += 1
        if length == _INDEFINITE:
            if not tag & _CONSTRUCTED:
                raise _bad(position, "a primitive of indefinite length")
            level += 1
            continue
        if length > _INDEFINITE:
            size = length - _INDEFINITE
            if size > 7 or size > end - position:
                raise _bad(position, "a length of too many bytes")
            length = int.from_bytes(bytes(data[position : position + size]), "big")
            position += size
        if length > end - position:
            raise _bad(position, "an element runs over the end of its container")
        position += length


def decode(program: Program, context: object, data: bytes) -> None:  # one machine
    """Run a program over ``data``; its actions fill ``context``.

    Raises:
        Refusal: EMSGSIZE above 65,535 bytes, EBADMSG for what the machine refuses, or what an
            action raises.
    """
    end = len(data)
    if end > MAX_SIZE:
        raise Refusal("EMSGSIZE", f"it has {end} bytes; the kernel reads {MAX_SIZE} at most")
    pc = dp = tdp = length = tag = header = flags = 0
    containers: list[tuple[int, int, int]] = []  # start, outer end or 0 for indefinite, header
    returns: list[int] = []
    while True:
        code, conditional, skippable, want, action, target = program[pc]
        pc += 1
        if code == _MATCH:
            if (conditional and flags & _MATCHED) or (skippable and dp == end):
                flags &= ~_LAST_MATCHED
                continue
            flags = 0
            if end - dp < 2:
                raise _bad(dp, "it ends before an element does")
            tag = data[dp]
            if tag & _LONG_TAG == _LONG_TAG:
                raise _bad(dp, "tags of several bytes are not supported")
            constructed = 0
            if want is not None:
                constructed = want & _CONSTRUCTED
                # Where a constructed element is wanted the bit itself is not looked at.
                if (want ^ tag) & ~constructed:
                    if skippable:
                        continue
                    raise _bad(dp, f"tag {tag:#04x} where {want:#04x} belongs")
            flags = _MATCHED
            header = 2
            length = data[dp + 1]
            dp += 2
            indefinite = length == _INDEFINITE
            if indefinite:
                if not tag & _CONSTRUCTED:
                    raise _bad(dp, "a primitive of indefinite length")
                if end - dp < 2:
                    raise _bad(dp, "it ends before an element does")
            elif length > _INDEFINITE:
                size = length - _INDEFINITE
                if size > 2:
                    raise _bad(dp, "a length of more than two bytes")
                if size > end - dp:
                    raise _bad(dp, "it ends before an element does")
                header += size
                length = data[dp] if size == 1 else data[dp] << 8 | data[dp + 1]
                dp += size
            if not indefinite and length > end - dp:
                raise _bad(dp, "an element runs over the end of its container")
            tdp = dp
            if constructed:
                if indefinite:
                    containers.append((dp, 0, header))
                else:
                    containers.append((dp, end, header))
                    end = dp + length
                if target is not None:
                    returns.append(pc)
                    pc = target
                continue
            if indefinite:
                length = _indefinite_length(data, dp, end)
            if action is not None:
                action(context, header, tag, dp, length)
            dp += length
        elif code == _END:
            start, outer, its_header = containers[-1]
            if outer == 0:
                if end - dp < 2:
                    raise _bad(dp, "an element of indefinite length does not end")
                if data[dp] != 0:
                    if target is None:
                        raise _bad(dp, "bytes follow the last element of a container")
                    pc = target
                    continue
                if data[dp + 1] != 0:
                    raise _bad(dp, "not an end of contents")
                dp += 2
                length = dp - start - 2
            else:
                if dp < end and target is not None:
                    pc = target
                    continue
                if dp != end:
                    raise _bad(dp, "bytes follow the last element of a container")
                length = end - start
                end = outer
            containers.pop()
            tdp, header = start, its_header
            if action is not None:
                action(context, header, 0, tdp, length)
        elif code == _ACT or (code == _MAYBE_ACT and flags & _LAST_MATCHED):
            assert action is not None  # noqa: S101  # by construction
            action(context, header, tag, tdp, length)
        elif code == _COND_FAIL:
            if not flags & _MATCHED:
                raise _bad(dp, "none of the alternatives that belong here")
        elif code == _RETURN:
            pc = returns.pop()
            flags |= _MATCHED | _LAST_MATCHED
        elif code == _COMPLETE:
            return
