# SPDX-License-Identifier: Apache-2.0
"""No byte of a trusted file can be changed, left out or put in.

The files are the seeds of the fuzz corpus: their keys were thrown away, so nothing here
can be signed anew.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import der
from tests.fuzz.mutators import CORPUS
from tests.fuzz.targets import anchors, signed_payload
from tests.vectors.generate import MARKER

from kmodgate.errors import SignatureError
from kmodgate.signature import report, verify
from kmodgate.signature.trailer import split

RIGID = sorted(path.name for path in (CORPUS / "cms").glob("seed-rigid-*"))
# A SignerInfo whose signer becomes unknown is not looked at, and one trusted signer is enough.
SEVERAL = ["seed-two-signers", "seed-three-signers"]
TRAILER = 12 + len(MARKER)


def load(name: str) -> bytes:
    return (CORPUS / "cms" / name).read_bytes()


def trusted(data: bytes | bytearray) -> bool:
    return report(data, anchors()).status == "trusted_signature"


def flips(data: bytes, first: int, last: int) -> Iterator[tuple[int, bytearray]]:
    """Each bit of each byte, one at a time."""
    changed = bytearray(data)
    for position in range(first, last):
        for bit in range(8):
            changed[position] ^= 1 << bit
            yield position, changed
            changed[position] ^= 1 << bit


def test_there_is_one_of_each_kind() -> None:
    assert {name.removeprefix("seed-rigid-") for name in RIGID} >= {
        "rsa",
        "rsa-skid",
        "ecdsa",
        "ecdsa-skid",
        "chain-of-one",
        "chain-of-two",
        "embedded-anchor",
    }


@pytest.mark.parametrize("name", RIGID)
def test_no_bit_of_the_message_can_be_changed(name: str) -> None:
    data = load(name)
    assert trusted(data)
    for position, changed in flips(data, len(signed_payload()), len(data)):
        assert not trusted(changed), f"byte {position} is now {changed[position]:#x}"


@pytest.mark.parametrize("name", ["seed-rigid-rsa", "seed-rigid-chain-of-one"])
def test_no_byte_of_the_trailer_can_have_another_value(name: str) -> None:
    data = load(name)
    changed = bytearray(data)
    for position in range(len(data) - TRAILER, len(data)):
        for value in set(range(256)) - {data[position]}:
            changed[position] = value
            assert not trusted(changed), f"byte {position} is {value:#x}"
        changed[position] = data[position]


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_signers_only_one_that_becomes_unknown_may_change(name: str) -> None:
    data = load(name)
    assert trusted(data)
    start = len(signed_payload())
    kept = {position - start for position, changed in flips(data, start, len(data)) if trusted(changed)}
    allowed: set[int] = set()
    known = {anchor.skid for anchor in anchors().anchors} | {anchor.identity for anchor in anchors().anchors}
    for first, element in signer_infos(split(data).cms):
        version, sid = element.children[0], element.children[1]
        identity = first + header(element) + len(version.encode())
        end = identity + len(sid.encode())
        serial, name_ = sid.children[1].content, sid.children[0]
        issuer = b"".join(child.encode() for child in name_.children)
        # Of a signer that is known its name may change; of one that is not, all behind it may.
        allowed |= set(range(identity, end if serial + issuer in known else first + len(element.encode())))
    assert kept <= allowed


def header(element: der.Element) -> int:
    """Octets of tag and length."""
    return len(element.encode()) - sum(len(child.encode()) for child in element.children)


def signer_infos(message: bytes) -> Iterator[tuple[int, der.Element]]:
    """Each SignerInfo and its place in the message."""
    (outer,) = der.decode(message) or []
    position = len(message)
    infos = outer.children[1].children[0].children[-1].children
    for element in reversed(infos):
        position -= len(element.encode())
        yield position, element


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(RIGID), st.integers(0, len(signed_payload()) - 1), st.integers(1, 255))
def test_no_byte_of_the_payload_can_be_changed(name: str, position: int, change: int) -> None:
    changed = bytearray(load(name))
    changed[position] ^= change
    assert not trusted(changed)


@pytest.mark.parametrize("name", RIGID)
def test_nothing_can_be_left_out(name: str) -> None:
    data = load(name)
    for size in range(len(data)):
        assert not trusted(data[:size]), f"the first {size} bytes"
        assert not trusted(data[:size] + data[size + 1 :]), f"without byte {size}"
        assert size == 0 or not trusted(data[size:]), f"without the first {size} bytes"


@pytest.mark.parametrize("name", RIGID)
def test_nothing_can_be_put_in(name: str) -> None:
    data = load(name)
    for position in range(len(data) + 1):
        for value in (b"\0", b"\xff", b"\x30", b"\x05\x00"):
            longer = data[:position] + value + data[position:]
            assert not trusted(longer), f"{value.hex()} at {position}"


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300),
    st.binary(max_size=80),
    st.binary(max_size=12),
    st.sampled_from([MARKER, MARKER + b"\n", b""]),
)
def test_the_pieces_are_always_the_file(payload: bytes, message: bytes, fields: bytes, marker: bytes) -> None:
    data = payload + message + fields + marker
    try:
        parts = split(data)
    except SignatureError:
        return
    assert bytes(parts.payload) + bytes(parts.tail) == data


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(RIGID + SEVERAL), st.data())
def test_verify_and_report_agree(name: str, draw: st.DataObject) -> None:
    data = bytearray(load(name))
    for _ in range(draw.draw(st.integers(0, 2))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        verify(data, anchors())
        status = "trusted_signature"
    except SignatureError as error:
        status = error.status
    assert report(data, anchors()).status == status
