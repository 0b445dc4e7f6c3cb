# SPDX-License-Identifier: Apache-2.0
"""A sink's queue: nobody waits for it, each event is sent or counted as dropped, once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from kmodgate.telemetry.events import MissingEvents
from kmodgate.telemetry.lines import Loss, no_statement
from kmodgate.telemetry.sink import Delivery, Patience, Sink


class Place:
    """A target under the test's control."""

    def __init__(self, batch: int = 10) -> None:
        self.batch = batch
        self.got: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.answer: Callable[[Sequence[bytes]], Delivery] = lambda lines: Delivery(len(lines))
        self.reopened = 0
        self.closed = False

    def deliver(self, lines: Sequence[bytes], patience: Patience) -> Delivery:
        while not self.gate.wait(0.01) and not (patience.closing and not patience.left):
            pass
        done = self.answer(lines)
        self.got += lines[: done.count]
        return done

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed = True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.gate.set()


def put(sink: Sink, count: int) -> list[bytes]:
    lines = [b'{"n":%d}\n' % number for number in range(count)]
    for line in lines:
        sink.put({}, line)
    return lines


def end(sink: Sink, seconds: float = 20.0) -> None:
    sink.stop(seconds)
    sink.join()


def test_all_arrive_in_order_in_batches(place: Place) -> None:
    sink = Sink("test", place, statements=no_statement)
    lines = put(sink, 95)
    end(sink)
    assert place.got == lines
    assert place.closed
    assert (sink.counts().sent, sum(sink.counts().dropped.values())) == (95, 0)


def test_a_target_that_hangs_holds_up_nobody(place: Place) -> None:
    place.gate.clear()
    sink = Sink("test", place, statements=no_statement, capacity=50)
    start = time.monotonic()
    put(sink, 10_000)
    assert time.monotonic() - start < 5
    dropped = sink.counts().dropped[Loss.QUEUE_FULL]
    assert 10_000 - 50 - 10 <= dropped <= 10_000 - 50
    place.gate.set()
    end(sink)
    counts = sink.counts()
    assert counts.sent == len(place.got)
    assert counts.sent + sum(counts.dropped.values()) == 10_000


def test_bytes_are_bounded_too(place: Place) -> None:
    place.gate.clear()
    sink = Sink("test", place, statements=no_statement, max_bytes=1000)
    for _ in range(20 + place.batch):
        sink.put({}, b"x" * 100)
    place.gate.set()
    end(sink)
    counts = sink.counts()
    assert 10 <= counts.sent <= 10 + place.batch
    assert counts.sent + counts.dropped[Loss.QUEUE_FULL] == 20 + place.batch


def test_the_end_is_bounded(place: Place) -> None:
    place.gate.clear()
    sink = Sink("test", place, statements=no_statement)
    put(sink, 30)
    start = time.monotonic()
    end(sink, 0.2)
    assert time.monotonic() - start < 5
    assert sink.counts().sent + sum(sink.counts().dropped.values()) >= 20
    sink.put({}, b"late\n")
    assert sink.counts().dropped[Loss.QUEUE_FULL] == 1


def test_a_problem_is_said_once_and_so_is_its_end(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    place.batch = 1
    sink = Sink("test", place, statements=no_statement)
    place.answer = lambda _: Delivery(0, "no space left")
    put(sink, 5)
    wait_for(lambda: sink.counts().dropped[Loss.WRITE_FAILED] == 5)
    place.answer = lambda lines: Delivery(len(lines))
    put(sink, 5)
    end(sink)
    assert [record.message for record in caplog.records] == [
        "event sink test: no space left; events are dropped and counted",
        "event sink test works again",
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("mistake")])
def test_a_target_that_raises_ends_nothing(
    place: Place, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Sequence[bytes]) -> Delivery:
        raise error

    sink = Sink("test", place, statements=no_statement)
    place.answer = broken
    put(sink, 3)
    wait_for(lambda: sink.counts().dropped[Loss.WRITE_FAILED] == 3)
    place.answer = lambda lines: Delivery(len(lines))
    put(sink, 2)
    end(sink)
    assert sink.counts().sent == 2
    assert "event sink test" in caplog.text


def test_what_is_missing_is_stated_to_this_sink(place: Place) -> None:
    place.gate.clear()
    missing = MissingEvents(dict, node="node-a")
    sink = Sink("test", place, statements=missing, capacity=5, interval=0.02)
    put(sink, 40)
    place.gate.set()
    end(sink)
    *_, last = (json.loads(line) for line in place.got)
    assert last["event"] == "suppressed"
    stated = [json.loads(line) for line in place.got if b"suppressed" in line]
    assert sum(record["count"] for record in stated) == sink.counts().dropped[Loss.QUEUE_FULL]
    assert {part["cause"] for record in stated for part in record["missing"]} == {"queue_full"}


def test_a_statement_that_was_not_delivered_comes_again(place: Place) -> None:
    place.batch = 1
    sink = Sink("test", place, statements=MissingEvents(dict), interval=0.02)
    place.answer = lambda _: Delivery(0, "away")
    put(sink, 3)
    wait_for(lambda: sink.counts().dropped[Loss.WRITE_FAILED] == 3)
    time.sleep(0.1)
    assert place.got == []
    place.answer = lambda lines: Delivery(len(lines))
    wait_for(lambda: bool(place.got))
    end(sink)
    (line,) = place.got
    assert json.loads(line)["count"] == 3
    assert sink.counts().sent == 0  # a statement is no event


def test_reopen_is_passed_on_without_an_event(place: Place) -> None:
    sink = Sink("test", place, statements=no_statement)
    sink.reopen()
    wait_for(lambda: place.reopened == 1)
    end(sink)


def test_an_idle_sink_sleeps(place: Place) -> None:
    sink = Sink("test", place, statements=no_statement)
    time.sleep(0.1)
    before = time.thread_time_ns(), time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before[1] < 0.1
    end(sink)
