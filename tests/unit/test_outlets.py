# SPDX-License-Identifier: Apache-2.0
"""All the ways out of one agent together: reload, SIGHUP, the end, and what is counted."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from tests.unit.local.conftest import BASE

from kmodgate.config import EventSinks, FileSinkConfig, OtlpSinkConfig
from kmodgate.local.client import ask_status
from kmodgate.local.place import Listening
from kmodgate.outlets import Outlets
from kmodgate.telemetry.collector import AgentMetrics
from kmodgate.telemetry.lines import Loss
from kmodgate.telemetry.sinkmetrics import EventSink
from kmodgate.telemetry.status import AgentStatus

VALIDATOR = jsonschema.Draft202012Validator(
    json.loads(files("kmodgate.telemetry").joinpath("event.schema.json").read_text())
)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_sent(outlets: Outlets, count: int) -> bool:
    return outlets.counts()[EventSink.FILE].sent >= count


@pytest.fixture
def stdout(tmp_path: Path) -> Path:
    return tmp_path / "stdout"


@pytest.fixture
def outlets(stdout: Path) -> Iterator[Outlets]:
    with stdout.open("wb") as stream, Outlets(stream, node="node-a") as outlets:
        yield outlets


def file_sink(path: Path) -> EventSinks:
    return EventSinks(file=FileSinkConfig(path))


def test_every_way_out_tells_the_same(tmp_path: Path, stdout: Path) -> None:
    path = tmp_path / "events.jsonl"
    with stdout.open("wb") as stream, Outlets(stream, node="node-a") as outlets:
        outlets.configure(file_sink(path))
        for _ in range(10):
            outlets.log.write(BASE)
        position = outlets.recent.span()
    told = stdout.read_bytes()
    assert path.read_bytes() == told
    assert position == (0, 10)
    assert b"".join(kept.line for kept in outlets.recent.piece(0, 99).events) == told
    for line in told.splitlines():
        VALIDATOR.validate(json.loads(line))
    counts = outlets.counts()
    assert (counts[EventSink.STDOUT].sent, counts[EventSink.FILE].sent) == (10, 10)
    assert set(counts) == {EventSink.STDOUT, EventSink.FILE}


def test_a_reload_changes_sinks_and_keeps_counts(tmp_path: Path, outlets: Outlets) -> None:
    outlets.log._flood.allow = lambda *_: True  # type: ignore[method-assign]  # no limit here
    one, two = tmp_path / "one", tmp_path / "two"
    outlets.configure(file_sink(one))
    outlets.log.write(BASE)
    outlets.configure(file_sink(one))  # the same: not even reopened
    outlets.log.write(BASE)
    outlets.configure(file_sink(two))
    outlets.log.write(BASE)
    wait_for(lambda: outlets.counts()[EventSink.FILE].sent == 3)
    assert len(one.read_bytes().splitlines()) == 2
    assert len(two.read_bytes().splitlines()) == 1
    outlets.configure(EventSinks())
    outlets.log.write(BASE)
    wait_for(lambda: outlets.counts()[EventSink.STDOUT].sent == 4)
    for number in range(20):  # and no trace but a number stays of each
        outlets.configure(file_sink(tmp_path / f"more-{number}"))
        outlets.log.write(BASE)
        wait_for(partial(has_sent, outlets, 4 + number))
    outlets.configure(EventSinks())
    wait_for(lambda: all(sink.over for _, sink in outlets._ending))
    outlets.configure(EventSinks())
    assert not outlets._ending
    assert outlets.counts()[EventSink.FILE].sent == 23


def test_sighup_lets_go_of_a_file_that_was_renamed(tmp_path: Path, outlets: Outlets) -> None:
    path = tmp_path / "events.jsonl"
    outlets.configure(file_sink(path))
    outlets.log.write(BASE)
    wait_for(lambda: path.exists() and path.stat().st_size > 0)
    moved = path.rename(tmp_path / "moved")
    outlets.reopen()
    wait_for(lambda: moved not in {fd.resolve() for fd in Path("/proc/self/fd").iterdir()})


def test_sinks_that_hang_hold_up_neither_each_other_nor_the_end(tmp_path: Path) -> None:
    """A pipe that nobody reads for stdout, a collector that answers nothing, and a file that works."""
    reader, writer = os.pipe()
    path = tmp_path / "events.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        otlp = OtlpSinkConfig("127.0.0.1", silent.getsockname()[1], "/v1/logs", tls=False, timeout=30.0)
        with os.fdopen(writer, "wb", 0) as stream:
            outlets = Outlets(stream, close_seconds=0.3)
            outlets.log._flood.allow = lambda *_: True  # type: ignore[method-assign]  # no limit here
            with outlets:
                outlets.configure(EventSinks(FileSinkConfig(path), otlp))
                longest = 0.0
                for number in range(3000):
                    start = time.perf_counter()
                    outlets.log.write(BASE)
                    longest = max(longest, time.perf_counter() - start)
                    if number % 100 == 0:
                        wait_for(partial(has_sent, outlets, number))
                assert longest < 2.0
                wait_for(lambda: outlets.counts()[EventSink.FILE].sent == 3000)
                start = time.monotonic()
            assert time.monotonic() - start < 6
    os.close(reader)
    counts = outlets.counts()
    assert sum(counts[EventSink.FILE].dropped.values()) == 0
    assert counts[EventSink.OTLP].sent == 0
    assert counts[EventSink.OTLP].dropped[Loss.QUEUE_FULL] > 1500
    assert counts[EventSink.STDOUT].dropped[Loss.QUEUE_FULL] > 1000


def test_metrics(tmp_path: Path, outlets: Outlets) -> None:
    metrics = AgentMetrics(AgentStatus(), process=False)
    metrics.attach_event_log(outlets.log, outlets.counts)
    outlets.configure(file_sink(tmp_path / "missing/events"))
    outlets.log.write(BASE)
    wait_for(lambda: outlets.counts()[EventSink.FILE].dropped[Loss.WRITE_FAILED] == 1)
    wait_for(lambda: outlets.counts()[EventSink.STDOUT].sent == 1)
    value = metrics.registry.get_sample_value
    assert value("kmodgate_event_sink_sent_total", {"sink": "stdout"}) == 1
    assert value("kmodgate_event_sink_sent_total", {"sink": "file"}) == 0
    dropped = {"sink": "file", "cause": "write_failed"}
    assert value("kmodgate_event_sink_dropped_total", dropped) == 1
    assert value("kmodgate_event_sink_dropped_total", {**dropped, "cause": "queue_full"}) == 0
    assert value("kmodgate_event_sink_sent_total", {"sink": "otlp"}) is None


def test_an_agent_without_a_socket_goes_on(
    tmp_path: Path, outlets: Outlets, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "agent.sock").write_text("")
    outlets.serve(dict, lambda: Listening(tmp_path / "agent.sock"))
    assert "no `kmodgate status` and `kmodgate events` on this node: " in caplog.text
    assert outlets.log.write(BASE) == 1


def test_the_socket_ends_with_the_agent(tmp_path: Path, stdout: Path) -> None:
    path, before = tmp_path / "run/agent.sock", set(threading.enumerate())
    with stdout.open("wb") as stream, Outlets(stream) as outlets:
        outlets.serve(lambda: {"schema": 1}, lambda: Listening(path))
        assert ask_status(path) == {"schema": 1}
    assert not path.exists()
    assert set(threading.enumerate()) <= before


def test_bursts_of_reloads_and_events_lose_nothing_uncounted(tmp_path: Path, outlets: Outlets) -> None:
    outlets.log._flood.allow = lambda *_: True  # type: ignore[method-assign]  # no limit here
    for number in range(500):
        outlets.configure(file_sink(tmp_path / f"file-{number % 3}") if number % 4 else EventSinks())
        outlets.log.write(replace(BASE, pid=number))
    expected = 500 - 125
    wait_for(lambda: (c := outlets.counts()[EventSink.FILE]).sent + sum(c.dropped.values()) == expected)
    assert outlets.counts()[EventSink.FILE].sent == expected
