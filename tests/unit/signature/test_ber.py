# SPDX-License-Identifier: Apache-2.0
"""The model of the kernel's decoder: what it takes, and with which habits."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vectors.generate import tlv

from kmodgate.signature.kernel.answer import Refusal
from kmodgate.signature.kernel.ber import anything, choice, compile_grammar, decode, group, leaf, many


class Notes:
    """What actions were told, in order."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.seen: list[bytes] = []


def note(notes: Notes, _header: int, _tag: int, start: int, length: int) -> None:
    notes.seen.append(notes.data[start : start + length])


def run(root: object, data: bytes) -> list[bytes]:
    notes = Notes(data)
    decode(compile_grammar(root), notes, data)  # type: ignore[arg-type]  # elements are opaque here
    return notes.seen


def refused(root: object, data: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        run(root, data)
    return caught.value.errno_name


PAIR = group(0x30, leaf(0x02, note), leaf(0x04, note))


def test_elements_in_order() -> None:
    assert run(PAIR, tlv(0x30, tlv(0x02, b"\1"), tlv(0x04, b"x"))) == [b"\1", b"x"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        tlv(0x30, tlv(0x02, b"\1")),
        tlv(0x30, tlv(0x04, b"x"), tlv(0x02, b"\1")),
        tlv(0x30, tlv(0x02, b"\1"), tlv(0x04, b"x"), tlv(0x05)),
        tlv(0x30, tlv(0x02, b"\1"), tlv(0x04, b"x"))[:-1],
        b"\x3f\x10\x00",  # a tag of several bytes
        b"\x30\x83\x00\x00\x06" + tlv(0x02, b"\1") + tlv(0x04, b"x"),  # a length of three bytes
        b"\x30\x80" + tlv(0x02, b"\1") + tlv(0x04, b"x"),  # no end of contents
        b"\x30\x80" + tlv(0x02, b"\1") + tlv(0x04, b"x") + b"\x00\x01",
        b"\x30\x08\x02\x80\x01\x00\x00\x04\x01x",  # a primitive of indefinite length
    ],
)
def test_what_is_refused(data: bytes) -> None:
    assert refused(PAIR, data) == "EBADMSG"


@pytest.mark.parametrize(
    "data",
    [
        tlv(0x30, tlv(0x02, b"\1"), tlv(0x04, b"x")) + b"anything",  # bytes after the end
        b"\x30\x80" + tlv(0x02, b"\1") + tlv(0x04, b"x") + b"\x00\x00",  # indefinite
        b"\x30\x82\x00\x06" + tlv(0x02, b"\1") + tlv(0x04, b"x"),  # a longer length than needed
        tlv(0x10, tlv(0x02, b"\1"), tlv(0x04, b"x")),  # a primitive SEQUENCE
    ],
)
def test_what_the_kernel_overlooks(data: bytes) -> None:
    assert run(PAIR, data) == [b"\1", b"x"]


def test_size_comes_before_the_first_byte() -> None:
    assert refused(PAIR, bytes(65536)) == "EMSGSIZE"
    assert refused(PAIR, bytes(65535)) == "EBADMSG"


def test_any_takes_an_indefinite_element_with_its_end_mark() -> None:
    inner = b"\x24\x80" + tlv(0x04, b"x") + b"\x00\x00"
    assert run(group(0x30, anything(note)), tlv(0x30, inner)) == [tlv(0x04, b"x") + b"\x00\x00"]
    nested = b"\x24\x80" + inner + b"\x00\x00"
    assert run(group(0x30, anything(note)), tlv(0x30, nested)) == [inner + b"\x00\x00"]
    assert refused(group(0x30, anything(note)), tlv(0x30, b"\x24\x80" + tlv(0x04, b"x"))) == "EBADMSG"


def test_repeated_elements_need_one() -> None:
    numbers = many(0x31, leaf(0x02, note))
    assert run(numbers, tlv(0x31, tlv(0x02, b"\1"), tlv(0x02, b"\2"))) == [b"\1", b"\2"]
    assert run(numbers, b"\x31\x80" + tlv(0x02, b"\1") + tlv(0x02, b"\2") + b"\0\0") == [b"\1", b"\2"]
    assert refused(numbers, tlv(0x31)) == "EBADMSG"


def test_a_choice_at_the_end_of_its_container_is_not_missed() -> None:
    """The flag of the element before still stands, so the machine finds the choice answered."""
    either = group(0x30, leaf(0x02), choice(leaf(0x04, note), leaf(0x05, note)))
    assert run(either, tlv(0x30, tlv(0x02, b"\1"), tlv(0x05))) == [b""]
    assert run(either, tlv(0x30, tlv(0x02, b"\1"))) == []
    assert refused(either, tlv(0x30, tlv(0x02, b"\1"), tlv(0x06))) == "EBADMSG"


def test_actions_after_an_optional_element_run_only_when_it_was_there() -> None:
    grammar = group(0x30, many(0xA0, leaf(0x02), optional=True, after=note), leaf(0x04))
    assert run(grammar, tlv(0x30, tlv(0xA0, tlv(0x02, b"\1")), tlv(0x04))) == [tlv(0x02, b"\1")]
    assert run(grammar, tlv(0x30, tlv(0x04))) == []


def test_an_action_at_the_end_of_a_group_gets_its_contents() -> None:
    grammar = many(0x31, group(0x30, leaf(0x02), action=note))
    assert run(grammar, tlv(0x31, tlv(0x30, tlv(0x02, b"\1")))) == [tlv(0x02, b"\1")]


@given(data=st.binary(max_size=80))
def test_nothing_but_a_refusal_comes_out(data: bytes) -> None:
    grammar = group(
        0x30,
        anything(note, optional=True),
        many(0x31, choice(leaf(0x02), group(0xA0, anything()))),
        choice(many(0xA0, anything()), many(0xA1, anything()), optional=True, after=note),
    )
    with contextlib.suppress(Refusal):
        run(grammar, b"\x30" + data)
