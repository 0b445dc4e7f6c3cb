# SPDX-License-Identifier: Apache-2.0
"""Directories verified beforehand: what is found, what is watched, and what hostile contents cost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from kmodgate.answers import FileIdentity
from kmodgate.config import NodeConfig
from kmodgate.errors import HookError
from kmodgate.node import NodePaths
from kmodgate.preverify import Limits, Preverifier, directories
from kmodgate.telemetry.metrics import PreverifyOutcome, QuestionOutcome

TRUSTED, NOT_TRUSTED = PreverifyOutcome.TRUSTED, PreverifyOutcome.NOT_TRUSTED


class Bench:
    """A root directory, a pre-verifier that runs on it, and what it learned and reported."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.learned: list[bytes] = []
        self.identities: list[FileIdentity] = []
        self.counts: dict[PreverifyOutcome, int] = {}
        self.reports = 0
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.preverifier: Preverifier | None = None

    def learn(self, data: bytes, file: FileIdentity) -> QuestionOutcome:
        self.gate.wait(10)
        self.learned.append(data)
        self.identities.append(file)
        if data == b"broken":
            raise HookError("the map is full")
        if data == b"bug":
            raise ZeroDivisionError
        return QuestionOutcome.TRUSTED if data.startswith(b"good") else QuestionOutcome.REFUSED

    def report(self, counts: Mapping[PreverifyOutcome, int]) -> None:
        with self.lock:
            self.counts = {key: count for key, count in counts.items() if count}
            self.reports += 1

    def start(self, *patterns: str, limits: Limits | None = None, max_size: int = 1 << 20) -> Preverifier:
        self.preverifier = Preverifier(
            self.learn, root=self.root, report=self.report, limits=limits, settle=0.01
        )
        self.preverifier.watch(patterns, max_size)
        return self.preverifier

    def put(self, path: str, data: bytes = b"good") -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, (self.counts, self.learned[:10])
            time.sleep(0.01)

    def found(self, **counts: int) -> None:
        """Wait for exactly these numbers."""
        want = {PreverifyOutcome(name): count for name, count in counts.items()}
        self.until(lambda: self.counts == want)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    root = tmp_path / "root"
    root.mkdir()
    bench = Bench(root)
    yield bench
    bench.gate.set()
    if bench.preverifier is not None:
        bench.preverifier.close()
        assert not bench.preverifier._thread.is_alive()


def test_what_lies_there_is_verified(bench: Bench) -> None:
    file = bench.put("lib/modules/r/updates/dkms/a.ko")
    bench.put("lib/modules/r/updates/b.ko.xz", b"stranger")
    bench.put("lib/modules/r/updates/README", b"good, and no module")
    bench.put("lib/modules/r/kernel/c.ko")
    bench.start("/lib/modules/*/updates")
    bench.found(trusted=1, not_trusted=1)
    status = file.stat()
    assert FileIdentity.of(status) in bench.identities
    assert FileIdentity.of(status).inode == status.st_ino


@pytest.mark.parametrize(
    "make",
    [
        lambda b: b.put("drivers/new.ko"),
        lambda b: b.put("drivers/sub/dir/new.ko"),
        lambda b: b.put("elsewhere.ko").rename(b.root / "drivers/new.ko"),
        lambda b: os.link(b.put("elsewhere.ko"), b.root / "drivers/new.ko"),
        lambda b: (b.root / "drivers/new.ko").symlink_to("../elsewhere.ko") or b.put("elsewhere.ko"),
    ],
    ids=["written", "in a new directory", "moved in", "linked", "by a symbolic link"],
)
def test_what_comes_later_is_noticed(bench: Bench, make: Callable[[Bench], object]) -> None:
    (bench.root / "drivers").mkdir()
    bench.put("elsewhere.ko")
    bench.start("/drivers")
    bench.until(lambda: bench.reports >= 2)
    make(bench)
    bench.found(trusted=1)


def test_a_directory_that_comes_later_is_noticed(bench: Bench) -> None:
    bench.start("/opt/*/drivers", "/lib/modules/r/updates")
    bench.until(lambda: bench.reports >= 2)
    bench.put("opt/vendor/drivers/a.ko")
    bench.found(trusted=1)
    bench.put("staging/updates/b.ko")
    (bench.root / "lib/modules").mkdir(parents=True)
    (bench.root / "staging").rename(bench.root / "lib/modules/r")
    bench.found(trusted=2)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(bench: Bench) -> None:
    bench.put("d/a.ko", b"good a")
    bench.put("d/b.ko", b"good b")
    bench.start("/d")
    bench.found(trusted=2)
    bench.put("d/b.ko", b"bad b")
    bench.found(trusted=1, not_trusted=1)
    assert sorted(bench.learned) == [b"bad b", b"good a", b"good b"]
    (bench.root / "d/a.ko").unlink()
    bench.found(not_trusted=1)


def test_other_certificates_void_everything_and_have_it_done_again(bench: Bench) -> None:
    bench.put("d/a.ko")
    preverifier = bench.start("/d")
    bench.found(trusted=1)
    bench.gate.clear()
    preverifier.redo()
    bench.found()
    bench.gate.set()
    bench.found(trusted=1)
    assert len(bench.learned) == 2


def test_trust_that_changes_during_a_scan_leaves_nothing_of_it(bench: Bench) -> None:
    bench.put("d/a.ko")
    bench.gate.clear()
    preverifier = bench.start("/d")
    bench.until(lambda: bench.reports >= 1)
    time.sleep(0.1)
    preverifier.redo()
    bench.gate.set()
    bench.found(trusted=1)
    assert len(bench.learned) == 2


def test_no_directory_means_none(bench: Bench) -> None:
    bench.put("d/a.ko")
    preverifier = bench.start("/d")
    bench.found(trusted=1)
    preverifier.watch((), 1 << 20)
    bench.found()


def test_links_stay_inside_the_root(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.ko").write_bytes(b"good outside")
    (bench.root / "d").mkdir()
    (bench.root / "d/x.ko").symlink_to(tmp_path / "outside/x.ko")
    (bench.root / "d/y.ko").symlink_to("../../outside/x.ko")
    bench.put("d/z.ko")
    bench.start("/d")
    bench.found(trusted=1)
    assert bench.learned == [b"good"]


def test_loops_end(bench: Bench) -> None:
    bench.put("d/a.ko")
    (bench.root / "d/self").symlink_to(".")
    (bench.root / "d/loop.ko").symlink_to("loop.ko")
    (bench.root / "ring").symlink_to("ring")
    bench.start("/d", "/d", "/d/self", "/ring/x", "/ring")
    bench.found(trusted=1)
    assert len(bench.learned) == 1


def test_what_is_no_file_is_never_opened(bench: Bench) -> None:
    (bench.root / "d/dir.ko").mkdir(parents=True)
    os.mkfifo(bench.root / "d/fifo.ko")
    (bench.root / "d/device.ko").symlink_to("/dev/zero")
    if os.geteuid() == 0:
        (bench.root / "dev").mkdir()
        os.mknod(bench.root / "dev/zero", 0o20600, os.makedev(1, 5))
    bench.put("d/a.ko")
    bench.start("/d")
    bench.found(trusted=1)


def test_a_file_above_the_limit_is_not_read(bench: Bench) -> None:
    bench.put("d/large.ko", b"good" * 1000)
    with (bench.root / "d/sparse.ko").open("wb") as stream:
        stream.truncate(1 << 40)
    bench.start("/d", max_size=1000)
    bench.found(too_large=2)
    assert not bench.learned


def test_one_bad_file_ends_nothing(bench: Bench) -> None:
    for name, data in {"a": b"broken", "b": b"bug", "c": b"good"}.items():
        bench.put(f"d/{name}.ko", data)
    bench.start("/d")
    bench.found(trusted=1, unreadable=2)


@pytest.mark.parametrize(
    ("limits", "read"),
    [
        (Limits(files=5), 5),
        (Limits(names=7), 7),
        (Limits(total=4 * len(b"good 00")), 4),
        (Limits(seconds=0.0), 0),
    ],
    ids=["files", "names", "bytes", "time"],
)
def test_a_scan_is_bounded_and_says_what_it_left_out(
    bench: Bench, caplog: pytest.LogCaptureFixture, limits: Limits, read: int
) -> None:
    for number in range(20):
        bench.put(f"d/{number:02}.ko", b"good %02d" % number)
    bench.start("/d", limits=limits)
    bench.until(lambda: bench.counts.get(PreverifyOutcome.LEFT_OUT, 0) > 0)
    assert bench.counts.get(TRUSTED, 0) == read == len(bench.learned)
    bench.until(lambda: any(r.levelname == "WARNING" for r in caplog.records))


def test_depth_and_number_of_directories_are_bounded(bench: Bench) -> None:
    bench.put("d/" + "deeper/" * 12 + "a.ko")
    for number in range(40):
        bench.put(f"e/{number}/a.ko")
    bench.start("/d", limits=Limits(depth=8))
    bench.found(left_out=1)
    assert bench.preverifier is not None
    bench.preverifier.close()
    bench.start("/e", limits=Limits(directories=12))
    # One is the root, on the way; one is /e itself.
    bench.found(trusted=10, left_out=30)


def test_a_directory_full_of_names_costs_a_bounded_scan(bench: Bench) -> None:
    directory = bench.root / "d"
    directory.mkdir()
    for number in range(20_000):
        (directory / f"{number}.ko").touch()
    start = time.monotonic()
    bench.start("/d", limits=Limits(names=1000, files=100))
    bench.until(lambda: PreverifyOutcome.LEFT_OUT in bench.counts)
    assert time.monotonic() - start < 10
    assert len(bench.learned) <= 100


def test_endless_changes_do_not_keep_it_busy(bench: Bench) -> None:
    for number in range(200):
        bench.put(f"d/{number}.ko")
    bench.start("/d")
    bench.found(trusted=200)
    start, used = time.monotonic(), time.thread_time()
    before = bench.reports
    cpu = time.process_time()
    while time.monotonic() - start < 2:
        bench.put("d/0.ko", b"good %d" % time.monotonic_ns())
        time.sleep(0.001)
    own = time.thread_time() - used
    assert time.process_time() - cpu - own < 1.2  # of two seconds
    assert bench.reports - before < 40


def test_loads_that_wait_go_first(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number in range(3):
        (tmp_path / f"d/{number}.ko").write_bytes(b"good %d" % number)
    busy, learned = threading.Event(), []
    busy.set()

    def learn(data: bytes, _file: FileIdentity) -> QuestionOutcome:
        learned.append(data)
        return QuestionOutcome.TRUSTED

    preverifier = Preverifier(learn, root=tmp_path, report=lambda _: None, busy=busy.is_set)
    preverifier.watch(("/d",), 100)
    time.sleep(0.5)
    assert not learned
    busy.clear()
    deadline = time.monotonic() + 10
    while len(learned) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    preverifier.close()
    assert len(learned) == 3


def test_the_running_kernels_updates_are_the_default(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1.0-9-test\n")
    paths = NodePaths(tmp_path / "proc", tmp_path / "sys", tmp_path / "boot")
    assert directories(NodeConfig(), paths) == ("/lib/modules/6.1.0-9-test/updates",)
    assert directories(NodeConfig(preverify=()), paths) == ()
    assert directories(NodeConfig(preverify=("/x/*",)), paths) == ("/x/*",)
