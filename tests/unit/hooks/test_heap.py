# SPDX-License-Identifier: Apache-2.0
"""When memory is given back."""

from __future__ import annotations

import time

import pytest

from kmodgate.hooks import heap


def test_memory_is_given_back_after_many_events_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    given: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heap, "give_memory_back", lambda: given.append(now[0]))
    relief = heap.Relief()
    looks = [(101.0, 10), (102.0, 600), (103.0, 5000), (113.0, 5000), (114.0, 5000), (200.0, 5400)]
    for at, count in looks:
        now[0] = at
        relief.look(count)
    assert given == [102.0, 113.0]


def test_the_library_takes_both_calls() -> None:
    heap.few_arenas()
    heap.give_memory_back()
