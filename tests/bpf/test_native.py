# SPDX-License-Identifier: Apache-2.0
"""BPF code run natively through ``bpf_prog_test_run``: milliseconds, and nothing attached."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vectors.decisions import cases

from kmodgate import policy
from kmodgate.hooks import abi, libbpf
from kmodgate.model import Decision, EffectivePolicy, LoadFacts, Mode, Policy, Reason, Verdict, Verification

pytestmark = pytest.mark.bpf

BYTES = 4 << 20


class Sha256Args(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64), ("digest", ctypes.c_uint8 * 32))


class DecideArgs(ctypes.Structure):
    _fields_ = (
        ("stage", ctypes.c_uint32),
        ("api", ctypes.c_uint32),
        ("origin", ctypes.c_uint32),
        ("verification", ctypes.c_uint32),
        ("now", abi.Decision),
        ("trusted", abi.Decision),
    )


class PathArgs(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_uint32), ("length", ctypes.c_uint32), ("path", ctypes.c_char * abi.PATH_LEN))


class ObserveArgs(ctypes.Structure):
    _fields_ = (("nanoseconds", ctypes.c_uint64),)


class WaitArgs(ctypes.Structure):
    _fields_ = (("turns", ctypes.c_uint32), ("got", ctypes.c_uint32), ("inside", ctypes.c_uint64))


class Programs:
    """The test object, loaded, with its maps in memory."""

    def __init__(self, path: Path) -> None:
        self.object = libbpf.Object(path.read_bytes())
        self.object.load()
        self.buffer = self.object.map("buffer").memory(BYTES)
        self.control = abi.Control.from_buffer(self.object.map("control").memory(ctypes.sizeof(abi.Control)))
        entries = abi.TABLE_COPIES * policy.TABLE_SIZE
        self.table = (abi.Decision * entries).from_buffer(
            self.object.map("decisions").memory(entries * ctypes.sizeof(abi.Decision))
        )

    def sha256(self, data: bytes, offset: int = 0) -> bytes:
        self.buffer.seek(offset)
        self.buffer.write(data)
        args = Sha256Args(offset=offset, length=len(data))
        assert self.object.programs["test_sha256"].test_run(args) == 0
        return bytes(args.digest)

    def put(self, decisions: tuple[Decision, ...], generation: int) -> None:
        base = generation % abi.TABLE_COPIES * policy.TABLE_SIZE
        for index, decision in enumerate(decisions):
            entry = self.table[base + index]
            entry.generation = generation
            entry.verdict, entry.reason, entry.error = decision.verdict, decision.reason, decision.errno
        self.control.generation = generation

    def decide(self, facts: LoadFacts) -> tuple[Decision, Decision]:
        args = DecideArgs(facts.stage, facts.api, facts.origin, facts.verification)
        assert self.object.programs["test_decide"].test_run(args) == 0
        return as_decision(args.now), as_decision(args.trusted)

    def path(self, fd: int) -> str:
        args = PathArgs(fd=fd)
        assert self.object.programs["test_path"].test_run(args) == 0
        return bytes(args.path[: max(args.length - 1, 0)]).decode()


def as_decision(entry: abi.Decision) -> Decision:
    return Decision(Verdict(entry.verdict), Reason(entry.reason), entry.error)


@pytest.fixture(scope="module")
def programs(test_object: Path) -> Iterator[Programs]:
    loaded = Programs(test_object)
    yield loaded
    loaded.object.close()


# Every length around a block, a chunk, and the places where padding spills over.
EDGES = sorted(
    {
        base + delta
        for base in (0, 64, 128, 1984, 2048, 2112, 4096, 65536)
        for delta in range(-10, 11)
        if base + delta >= 0
    }
)


@pytest.mark.parametrize("length", EDGES)
def test_sha256_at_every_edge(programs: Programs, length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert programs.sha256(data) == hashlib.sha256(data).digest()


def test_sha256_of_random_lengths_and_alignments(programs: Programs) -> None:
    source = random.Random(20)
    for _ in range(300):
        data = source.randbytes(source.randrange(20_000))
        assert programs.sha256(data, source.randrange(4096)) == hashlib.sha256(data).digest()


def test_sha256_of_megabytes(programs: Programs) -> None:
    data = random.Random(3).randbytes(BYTES)
    assert programs.sha256(data) == hashlib.sha256(data).digest()


def test_sha256_leaves_nothing_behind(programs: Programs) -> None:
    long, short = b"\xff" * 5000, b"abc"
    programs.sha256(long)
    assert programs.sha256(short) == hashlib.sha256(short).digest()


def test_sha256_refuses_memory_that_cannot_be_read(programs: Programs) -> None:
    args = Sha256Args(offset=1 << 62, length=100)
    assert programs.object.programs["test_sha256"].test_run(args) == -1


def test_table_look_up_gives_what_the_policy_says(programs: Programs) -> None:
    generation = int(programs.control.generation)
    by_policy: dict[EffectivePolicy, list[tuple[LoadFacts, Decision]]] = {}
    for case in cases():
        by_policy.setdefault(case.policy, []).append((case.facts, case.want))
    for candidate, wanted in by_policy.items():
        generation += 1
        programs.put(policy.compile_table(candidate), generation)
        for facts, want in wanted:
            now, trusted = programs.decide(facts)
            assert now == want
            in_case = LoadFacts(facts.api, facts.origin, Verification.KERNEL_TRUSTED)
            assert trusted == policy.evaluate(candidate, in_case)


def test_a_table_that_is_not_whole_refuses(programs: Programs) -> None:
    facts = cases()[0].facts
    generation = int(programs.control.generation) + 1
    open_policy = EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=False)
    programs.put(policy.compile_table(open_policy), generation)
    assert programs.decide(facts)[0].verdict is Verdict.ALLOW
    # In force already, but not written yet: what stands there belongs to another generation.
    programs.control.generation = generation + 2
    assert programs.decide(facts)[0] == Decision(Verdict.DENY, Reason.STATE_MISSING, 1)


@pytest.mark.parametrize(
    ("nanoseconds", "bucket"),
    [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (1_000_000, 10), (10**10, 23), (2**63, 23)],
)
def test_histogram_bucket(programs: Programs, nanoseconds: int, bucket: int) -> None:
    size = 8 * abi.HISTOGRAM_ROW * len(abi.Histogram)
    memory = programs.object.map("histograms").memory(max(size, mmap.PAGESIZE))
    cells = (ctypes.c_uint64 * (abi.HISTOGRAM_ROW * len(abi.Histogram))).from_buffer(memory)
    before = list(cells)
    programs.object.programs["test_observe"].test_run(ObserveArgs(nanoseconds))
    moved = {
        index: after - was
        for index, (was, after) in enumerate(zip(before, cells, strict=True))
        if after != was
    }
    expected = {bucket: 1} | ({abi.HISTOGRAM_BUCKETS: nanoseconds} if nanoseconds else {})
    assert moved == expected


def test_path_by_the_names_above_a_file(programs: Programs, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*(f"directory-{number}" for number in range(20)))
    deep.mkdir(parents=True)
    long = tmp_path / ("n" * 255)
    for path in (deep / "module.ko", long, Path("/proc/self/maps"), Path("/dev/shm/kmodgate-path-test")):
        if not path.exists():
            path.touch()
        fd = os.open(path, os.O_RDONLY)
        try:
            assert programs.path(fd) == str(path).replace("/self/", f"/{os.getpid()}/")
        finally:
            os.close(fd)
    Path("/dev/shm/kmodgate-path-test").unlink()


def test_path_of_what_lies_nowhere(programs: Programs) -> None:
    fd = os.memfd_create("module")
    try:
        assert programs.path(fd) == "/memfd:module"
    finally:
        os.close(fd)


def test_no_path_rather_than_a_wrong_one(programs: Programs, tmp_path: Path) -> None:
    too_deep = tmp_path.joinpath(*(["d"] * 40))
    too_long = tmp_path / ("n" * 250) / ("n" * 250)
    for directory in (too_deep, too_long):
        directory.mkdir(parents=True)
        fd = os.open(directory, os.O_RDONLY)
        try:
            assert programs.path(fd) == ""
        finally:
            os.close(fd)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_places_to_wait_in_are_never_more_than_allowed_and_all_given_back(
    programs: Programs, limit: int
) -> None:
    programs.control.wait_limit = limit
    results: list[tuple[int, int]] = []

    def hammer() -> None:
        for _ in range(40):
            args = WaitArgs(turns=2_000_000)
            assert programs.object.programs["test_wait"].test_run(args) == 0
            results.append((args.got, args.inside))

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(limit, 1) <= max(inside for _, inside in results) <= limit
    assert any(got for got, _ in results) == (limit > 0)
    # Nothing is left taken: as many places as before.
    args = WaitArgs(turns=1)
    programs.object.programs["test_wait"].test_run(args)
    assert args.got == (limit > 0)
    if limit == 1 and (os.cpu_count() or 1) > 1:
        assert not all(got for got, _ in results)


class TellArgs(ctypes.Structure):
    _fields_ = (
        ("question", ctypes.c_uint64),
        ("verdict", ctypes.c_uint32),
        ("has_digest", ctypes.c_uint32),
        ("wakeup", ctypes.c_uint64),
    )


BY_ITSELF, NO_WAKEUP, FORCE_WAKEUP = 0, 1, 2  # BPF_RB_*, include/uapi/linux/bpf.h
RING_BYTES = 1 << 20


@pytest.fixture
def fresh(test_object: Path) -> Iterator[Programs]:
    """Programs whose ring of events is empty."""
    loaded = Programs(test_object)
    yield loaded
    loaded.object.close()


def tell(programs: Programs, verdict: Verdict, question: int = 0, has_digest: int = 0) -> int:
    args = TellArgs(question, verdict, has_digest)
    assert programs.object.programs["test_tell"].test_run(args) == 0
    return int(args.wakeup)


def test_a_load_that_was_let_in_without_the_agent_does_not_wake_it(fresh: Programs) -> None:
    assert tell(fresh, Verdict.ALLOW) == BY_ITSELF
    fresh.control.quiet = 1
    assert tell(fresh, Verdict.ALLOW) == NO_WAKEUP
    assert tell(fresh, Verdict.DENY) == FORCE_WAKEUP
    assert tell(fresh, Verdict.WOULD_DENY) == FORCE_WAKEUP
    assert tell(fresh, Verdict.ALLOW, question=1) == FORCE_WAKEUP
    assert tell(fresh, Verdict.ALLOW, has_digest=1) == FORCE_WAKEUP


def test_a_ring_that_is_half_full_wakes_the_agent_in_any_case(fresh: Programs) -> None:
    fresh.control.quiet = 1
    told = 0
    while tell(fresh, Verdict.ALLOW) == NO_WAKEUP:
        told += 1
    record = ctypes.sizeof(abi.Event) + 8  # its header
    assert told - 1 < RING_BYTES // 2 / record <= told
    assert len(list(batch(fresh))) == told + 1  # none was read meanwhile


def batch(programs: Programs) -> Iterator[bytes]:
    """Everything in the ring of events."""
    ring = libbpf.RingBuffer(programs.object.map("events"))
    while records := ring.read():
        yield from records
    ring.close()
