# SPDX-License-Identifier: Apache-2.0
"""The event file: rotated by itself or by others, never through a link, each line whole."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from kmodgate.telemetry.filesink import FileTarget
from kmodgate.telemetry.lines import no_statement
from kmodgate.telemetry.sink import Patience, Sink

PATIENCE = Patience()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def target(path: Path, *, max_size: int = 100, max_files: int = 3) -> FileTarget:
    return FileTarget(path, max_size=max_size, max_files=max_files)


def line(number: int) -> bytes:
    return b"line %04d\n" % number  # ten bytes


def everything(path: Path) -> list[bytes]:
    """All lines, the oldest file's first."""
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: -int(p.suffix[1:]))
    return [found for file in (*older, path) for found in file.read_bytes().splitlines(keepends=True)]


def test_lines_are_appended_for_its_owner_alone(path: Path) -> None:
    path.write_bytes(b"before\n")
    file = target(path)
    assert file.deliver([line(1), line(2)], PATIENCE).count == 2
    assert path.read_bytes() == b"before\n" + line(1) + line(2)
    file.close()
    path.unlink()
    file.deliver([line(3)], PATIENCE)
    assert path.stat().st_mode & 0o777 == 0o600
    file.close()


def test_files_are_rotated_by_size_and_the_oldest_goes(path: Path) -> None:
    file = target(path)
    lines = [line(number) for number in range(95)]
    for start in range(0, 95, 7):
        assert file.deliver(lines[start : start + 7], PATIENCE).problem is None
    file.close()
    names = sorted(item.name for item in path.parent.iterdir())
    assert names == [path.name, *(f"{path.name}.{number}" for number in (1, 2, 3))]
    assert all(item.stat().st_size <= 100 for item in path.parent.iterdir())
    assert everything(path) == lines[60:]


def test_a_line_larger_than_a_file_has_one_of_its_own(path: Path) -> None:
    file = target(path, max_files=1)
    file.deliver([line(1), b"x" * 300 + b"\n", line(2)], PATIENCE)
    file.close()
    assert everything(path) == [b"x" * 300 + b"\n", line(2)]


def test_logrotate_needs_no_signal(path: Path) -> None:
    file = target(path)
    file.deliver([line(1)], PATIENCE)
    path.rename(path.with_name("moved"))
    file.deliver([line(2)], PATIENCE)
    assert path.with_name("moved").read_bytes() == line(1)
    assert path.read_bytes() == line(2)
    path.unlink()
    file.deliver([line(3)], PATIENCE)
    assert path.read_bytes() == line(3)
    file.close()


def test_copytruncate(path: Path) -> None:
    file = target(path)
    for number in range(9):
        file.deliver([line(number)], PATIENCE)
    os.truncate(path, 0)
    file.deliver([line(9), line(10)], PATIENCE)
    assert path.read_bytes() == line(9) + line(10)
    assert not path.with_name(f"{path.name}.1").exists()
    file.close()


def test_a_reader_of_the_old_file_goes_on_reading_it(path: Path) -> None:
    file = target(path)
    file.deliver([line(0)], PATIENCE)
    with path.open("rb") as reader:
        for number in range(1, 15):
            file.deliver([line(number)], PATIENCE)
        assert reader.read() == b"".join(map(line, range(10)))
    file.close()


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "directory", "fifo", "device"])
def test_what_is_no_file_of_ours_is_not_written_to(path: Path, kind: str) -> None:
    secret = path.with_name("secret")
    secret.write_bytes(b"untouched")
    match kind:
        case "link":
            path.symlink_to(secret)
        case "dangling link":
            path.symlink_to(path.with_name("new"))
        case "hard link":
            path.hardlink_to(secret)
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/full")
    file = target(path)
    done = file.deliver([line(1)], PATIENCE)
    assert done.count == 0
    assert done.problem is not None
    assert done.problem.startswith(f"{path}: ")
    assert secret.read_bytes() == b"untouched"
    assert not secret.with_name("new").exists()
    file.close()


def test_a_fifo_with_a_reader_is_none_either(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert (
        target(path).deliver([line(1)], PATIENCE).problem == f"{path}: is no regular file; name another one"
    )
    os.close(reader)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away, which needs root")
def test_a_file_of_somebody_else_is_not_written_to(path: Path) -> None:
    path.write_bytes(b"")
    os.chown(path, 65534, 65534)
    assert "belongs to another user" in str(target(path).deliver([line(1)], PATIENCE).problem)


def test_a_directory_that_is_missing_may_come(path: Path) -> None:
    file = target(path.parent / "later/events.jsonl")
    assert "no such file or directory" in str(file.deliver([line(1)], PATIENCE).problem)
    (path.parent / "later").mkdir()
    assert file.deliver([line(2)], PATIENCE).count == 1
    file.close()


def test_a_line_that_broke_off_is_ended_before_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = target(path)
    file.deliver([line(1)], PATIENCE)
    real, calls = os.write, list[int]()

    def full(fd: int, data: memoryview) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(fd, data[:4])

    monkeypatch.setattr(os, "write", full)
    done = file.deliver([line(2), line(3)], PATIENCE)
    assert (done.count, done.problem) == (0, f"{path}: no space left on device")
    monkeypatch.undo()
    assert file.deliver([line(4)], PATIENCE).count == 1
    file.close()
    assert path.read_bytes().splitlines() == [b"line 0001", b"line", b"line 0004"]


def test_a_rotation_that_fails_does_not_fill_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = target(path)
    file.deliver([line(number) for number in range(10)], PATIENCE)

    def refused(*_: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    for number in range(10, 40):
        assert file.deliver([line(number)], PATIENCE).count == 0
    assert path.stat().st_size == 100
    file.close()


def test_rotation_by_two_at_once_loses_no_line_and_tears_none(path: Path) -> None:
    """The agent rotates by size while somebody else renames the file away as fast as he can."""
    sink = Sink(
        "file", FileTarget(path, max_size=5000, max_files=90), statements=no_statement, capacity=100_000
    )
    moved = path.parent / "moved"
    moved.mkdir()
    stop = threading.Event()

    def rotate() -> None:
        number = 0
        while not stop.is_set():
            try:
                path.rename(moved / f"{number:06d}")
                number += 1
            except FileNotFoundError:
                time.sleep(0.0005)

    thread = threading.Thread(target=rotate)
    thread.start()
    for number in range(4000):
        sink.put({}, line(number))
        if number % 500 == 0:
            sink.reopen()
            time.sleep(0.002)
    sink.stop(20)
    sink.join()
    stop.set()
    thread.join()
    assert sink.counts().sent == 4000
    found = sorted(
        text
        for file in (*moved.iterdir(), *path.parent.glob("events.jsonl*"))
        for text in file.read_bytes().splitlines(keepends=True)
    )
    assert found == [line(number) for number in range(4000)]


def test_the_end_is_kept_to(path: Path) -> None:
    patience = Patience()
    patience.close(0)
    done = target(path).deliver([line(1)], patience)
    assert (done.count, done.problem) == (0, "the agent ended before they were written")
