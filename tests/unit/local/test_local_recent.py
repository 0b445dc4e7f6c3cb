# SPDX-License-Identifier: Apache-2.0
"""The last events: bounded, and what is gone is counted exactly."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from kmodgate.local.recent import DENIALS, Recent


def put(recent: Recent, number: int, verdict: str = "deny", size: int = 10) -> None:
    recent.put({"sequence": number, "verdict": verdict}, b"x" * size)


def numbers(recent: Recent, position: int, limit: int = 100) -> list[object]:
    return [event.record["sequence"] for event in recent.piece(position, limit).events]


def test_the_oldest_make_room() -> None:
    recent = Recent(max_events=3)
    for number in range(5):
        put(recent, number)
    assert recent.span() == (2, 5)
    assert numbers(recent, 0) == [2, 3, 4]
    piece = recent.piece(1, 2)
    assert (piece.gone, piece.position) == (1, 4)


def test_bytes_are_bounded_too() -> None:
    recent = Recent(max_bytes=100)
    for number in range(5):
        put(recent, number, size=40)
    assert numbers(recent, 0) == [3, 4]
    put(recent, 5, size=101)
    assert numbers(recent, 0) == []
    assert recent.span() == (6, 6)


def test_refusals_outlive_what_else_is_told() -> None:
    recent = Recent(max_events=2)
    put(recent, 0, "would_deny")
    for number in range(1, 50):
        put(recent, number, "allow")
    assert [record["sequence"] for record in recent.denials()] == [0]
    for number in range(50, 100):
        put(recent, number)
    assert [record["sequence"] for record in recent.denials()] == list(range(100 - DENIALS, 100))


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(1, 9))
def test_what_a_reader_gets_and_misses_adds_up(steps: list[int], room: int) -> None:
    """Whatever turns of writing and reading: each event is read or counted as gone, once, in order."""
    recent, told, position, got, gone = Recent(max_events=room), 0, 0, list[object](), 0
    for step in steps:
        if step:
            for _ in range(step):
                put(recent, told)
                told += 1
        else:
            piece = recent.piece(position, 4)
            gone += piece.gone
            position = piece.position
            got += [event.record["sequence"] for event in piece.events]
    assert got == sorted(set(got))  # type: ignore[type-var]  # numbers all
    assert len(got) + gone == position <= told


def test_threads_agree() -> None:
    recent, read = Recent(max_events=50), list[int]()

    def reader() -> None:
        position = 0
        while position < 20_000:
            piece = recent.piece(position, 7)
            position = piece.position
            read.append(len(piece.events) + piece.gone)

    thread = threading.Thread(target=reader)
    thread.start()
    for number in range(20_000):
        put(recent, number)
    thread.join(60)
    assert sum(read) == 20_000
