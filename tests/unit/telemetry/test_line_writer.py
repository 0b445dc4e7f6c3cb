# SPDX-License-Identifier: Apache-2.0
"""The writer against real pipes: slow, full, broken, and a disk without space."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kmodgate.telemetry.lines import LineWriter, Loss, Statement


@contextmanager
def pipe(*, blocking: bool = True) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    with os.fdopen(reader, "rb", 0) as r, os.fdopen(writer, "wb", 0) as w:
        yield r, w


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def test_lines_arrive_in_order() -> None:
    with pipe() as (reader, stream):
        writer = LineWriter(stream)
        lines = [f"line {n}\n".encode() for n in range(200)]
        assert all(writer.put(line) for line in lines)
        writer.close()
        assert reader.read(1 << 16) == b"".join(lines)
        assert sum(writer.lost().values()) == 0


def test_a_pipe_that_nobody_reads_never_blocks_put_or_close() -> None:
    for blocking in (True, False):
        with pipe(blocking=blocking) as (_, stream):
            writer = LineWriter(stream, capacity=10)
            begin = time.monotonic()
            kept = sum(writer.put(b"x" * 8191 + b"\n") for _ in range(1000))
            assert time.monotonic() - begin < 1.0
            assert kept < 1000
            assert writer.lost()[Loss.QUEUE_FULL] == 1000 - kept
            begin = time.monotonic()
            writer.close(timeout=0.3)
            assert time.monotonic() - begin < 1.5
            assert not writer._thread.is_alive()
            lost = writer.lost()
            # Every line is either in the pipe (whole, at most 64 KiB of them) or counted.
            assert 1000 - 8 <= sum(lost.values()) <= 1000


def test_a_reader_that_comes_back_gets_whole_lines() -> None:
    with pipe(blocking=False) as (reader, stream):
        writer = LineWriter(stream, capacity=50)
        lines = [bytes([65 + n]) * 10_000 + b"\n" for n in range(20)]
        assert all(writer.put(line) for line in lines)
        time.sleep(0.1)  # the pipe is full by now
        received = bytearray()
        drain = threading.Thread(target=lambda: received.extend(_read(reader, 20 * 10_001)))
        drain.start()
        drain.join(5)
        writer.close()
        assert bytes(received) == b"".join(lines)


def _read(reader: BinaryIO, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += reader.read(3000)
    return bytes(data)


def test_a_reader_that_is_gone_is_counted_and_survived() -> None:
    with pipe() as (reader, stream):
        writer = LineWriter(stream)
        reader.close()
        for _ in range(3):
            writer.put(b"nobody hears this\n")
        eventually(lambda: writer.lost()[Loss.WRITE_FAILED] == 3)
        assert writer._thread.is_alive()
        writer.close()


def test_a_full_disk_is_counted() -> None:
    with Path("/dev/full").open("wb", buffering=0) as stream:
        writer = LineWriter(stream)
        writer.put(b"no room\n")
        writer.close()
        assert writer.lost() == {Loss.QUEUE_FULL: 0, Loss.WRITE_FAILED: 1}


def test_a_torn_line_is_ended_before_the_next() -> None:
    with pipe() as (reader, stream):
        writer = LineWriter(stream)
        writer._torn = True
        writer.put(b"whole\n")
        writer.close()
        assert reader.read(100) == b"\nwhole\n"


def test_put_after_close_is_a_loss() -> None:
    with pipe() as (_, stream):
        writer = LineWriter(stream)
        writer.close()
        writer.close()
        assert not writer.put(b"late\n")
        assert writer.lost()[Loss.QUEUE_FULL] == 1


def test_a_statement_is_repeated_until_it_is_delivered() -> None:
    asked: list[bool] = []
    done: list[int] = []

    def statements(lost: Mapping[Loss, int], *, final: bool) -> Statement | None:
        asked.append(final)
        return None if done else Statement(b"%d lost\n" % sum(lost.values()), lambda: done.append(1))

    with Path("/dev/full").open("wb", buffering=0) as stream:
        writer = LineWriter(stream, interval=0.01, statements=statements)
        eventually(lambda: len(asked) >= 3)
        writer.close()
    assert not done
    assert asked[-1] is True
    with pipe() as (reader, good):
        writer = LineWriter(good, interval=0.01, statements=statements)
        eventually(lambda: bool(done))
        writer.close()
        assert reader.read(100) == b"0 lost\n"
