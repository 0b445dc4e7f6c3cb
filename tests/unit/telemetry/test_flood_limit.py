# SPDX-License-Identifier: Apache-2.0
"""The flood limit: exact numbers on a clock that stands still, and nobody hides behind a flood."""

from __future__ import annotations

from collections.abc import Callable

from kmodgate.model import LoadEvent, Reason, Verdict
from kmodgate.telemetry.flood import MAX_SOURCES, FloodLimit, LeftOut, Rate

Change = Callable[..., LoadEvent]
KEY = LeftOut(Verdict.DENY, Reason.UNTRUSTED_SIGNER)


def test_burst_then_rate(denial: LoadEvent) -> None:
    limit = FloodLimit(Rate(2.0, 5), Rate(1000.0, 1000))
    assert sum(limit.allow(denial, 10.0) for _ in range(100)) == 5
    assert limit.left_out() == {KEY: 95}
    assert sum(limit.allow(denial, 11.0) for _ in range(10)) == 2
    assert not limit.allow(denial, 11.4)
    assert limit.allow(denial, 11.5)


def test_a_long_rest_refills_only_the_burst(denial: LoadEvent) -> None:
    limit = FloodLimit(Rate(2.0, 5), Rate(1000.0, 1000))
    for _ in range(5):
        limit.allow(denial, 0.0)
    assert sum(limit.allow(denial, 1e9) for _ in range(100)) == 5


def test_a_clock_that_goes_back_gives_nothing(denial: LoadEvent) -> None:
    limit = FloodLimit(Rate(1.0, 1), Rate(1000.0, 1000))
    assert limit.allow(denial, 100.0)
    assert not limit.allow(denial, 50.0)


def test_one_container_does_not_hide_another(denial: LoadEvent, change: Change) -> None:
    limit = FloodLimit(Rate(1.0, 3), Rate(10.0, 10))
    for _ in range(1000):
        limit.allow(denial, 0.0)
    assert limit.allow(change(container_id="another"), 0.0)
    assert limit.allow(change(container_id=None), 0.0)
    assert limit.allow(change(reason=Reason.UNSIGNED), 0.0)


def test_names_that_an_attacker_chooses_make_no_new_source(change: Change) -> None:
    limit = FloodLimit(Rate(1.0, 3), Rate(100.0, 100))
    told = [limit.allow(change(path=f"/x{n}", comm=f"c{n}", module=f"m{n}", pid=n), 0.0) for n in range(50)]
    assert sum(told) == 3


def test_the_total_bounds_any_number_of_sources(change: Change) -> None:
    limit = FloodLimit(Rate(1.0, 3), Rate(5.0, 20))
    told = [limit.allow(change(container_id=str(n)), 0.0) for n in range(MAX_SOURCES * 3)]
    assert sum(told) == 20
    assert sum(limit.left_out().values()) == MAX_SOURCES * 3 - 20
    assert len(limit._sources) == MAX_SOURCES
