# SPDX-License-Identifier: Apache-2.0
"""The workers that answer questions, with this very process as the loader."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import lzma
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.vectors.generate import MODINFO, Identity, append, make_elf, make_identity, openssl_cms

from kmodgate.answers import Answerer, Asked, FileIdentity, Trust
from kmodgate.errors import HookError
from kmodgate.model import Api, SignatureStatus, Verification
from kmodgate.signature import Revocations, TrustStore, load_certificates
from kmodgate.telemetry.metrics import QuestionOutcome


class Sink:
    """Remembers answers, in order."""

    def __init__(self) -> None:
        self.answers: dict[bytes, tuple[Verification, int]] = {}
        self.contents: dict[bytes, Verification] = {}
        self.files: dict[tuple[tuple[int, int], int, int], int] = {}
        self.order: list[str] = []
        self.finished = threading.Event()
        self.broken = False

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None:
        if self.broken:
            raise HookError("the map is gone")
        self.contents[digest] = contents
        self.answers[digest] = (verification, trust_generation)
        self.order.append("answer")

    def done(self, question: int) -> None:
        del question
        self.order.append("done")
        self.finished.set()

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None:
        self.files[device, inode, size] = trust_generation


@pytest.fixture(scope="module")
def operator() -> Identity:
    return make_identity("operator")


@pytest.fixture(scope="module")
def module(operator: Identity) -> bytes:
    elf = make_elf(MODINFO)
    return append(elf, openssl_cms(elf, operator))


class Bench:
    """An answerer, its sink, and the outcomes that it counted."""

    def __init__(self, operator: Identity, max_size: int = 1 << 20) -> None:
        self.sink = Sink()
        self.outcomes: list[QuestionOutcome] = []
        store = TrustStore(load_certificates(operator.pem, "operator.pem"))
        self.answerer = Answerer(self.sink, Trust(store, 7), max_size, count=self.outcomes.append)

    def ask(self, asked: Asked) -> QuestionOutcome:
        self.sink.finished.clear()
        self.answerer.submit(asked)
        assert self.sink.finished.wait(10)
        return self.outcomes[-1]


@pytest.fixture
def bench(operator: Identity) -> Iterator[Bench]:
    bench = Bench(operator)
    yield bench
    bench.answerer.close()


def by_file(fd: int) -> Asked:
    return Asked(1, Api.FINIT_MODULE, os.getpid(), threading.get_native_id(), fd, 0, 0)


@pytest.fixture
def opened() -> Iterator[list[int]]:
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def put(tmp_path: Path, opened: list[int], data: bytes) -> int:
    path = tmp_path / "module.ko"
    path.write_bytes(data)
    opened.append(os.open(path, os.O_RDONLY))
    return opened[-1]


def test_a_signed_file_is_answered_by_its_digest(
    bench: Bench, tmp_path: Path, opened: list[int], module: bytes
) -> None:
    assert bench.ask(by_file(put(tmp_path, opened, module))) is QuestionOutcome.TRUSTED
    digest = hashlib.sha256(module).digest()
    assert bench.sink.answers == {digest: (Verification.TRUSTED, 7)}
    assert bench.sink.order == ["answer", "done"]  # never the other way round
    found = bench.answerer.report_for(digest)
    assert found is not None
    assert found.trusted_by == "operator.pem"


def test_a_compressed_file_is_answered_as_it_lies_and_as_it_unpacks(
    bench: Bench, tmp_path: Path, opened: list[int], module: bytes
) -> None:
    packed = gzip.compress(module, mtime=0)
    assert bench.ask(by_file(put(tmp_path, opened, packed))) is QuestionOutcome.TRUSTED
    assert bench.sink.answers[hashlib.sha256(module).digest()][0] is Verification.TRUSTED
    assert bench.sink.answers[hashlib.sha256(packed).digest()][0] is Verification.UNSIGNED
    assert bench.sink.contents[hashlib.sha256(packed).digest()] is Verification.TRUSTED
    # The one that names the other is told last: it is never there without what it unpacks to.
    assert list(bench.sink.answers) == [hashlib.sha256(data).digest() for data in (module, packed)]


def test_a_file_that_was_answered_for_needs_no_second_question(
    bench: Bench, tmp_path: Path, opened: list[int], module: bytes
) -> None:
    fd = put(tmp_path, opened, module)
    bench.ask(by_file(fd))
    status = os.fstat(fd)
    device = os.major(status.st_dev), os.minor(status.st_dev)
    assert bench.sink.files == {(device, status.st_ino, len(module)): 7}


def test_what_is_learnt_is_answered_as_if_somebody_had_asked(
    bench: Bench, tmp_path: Path, opened: list[int], module: bytes
) -> None:
    identity = FileIdentity((8, 1), 42, 3)
    packed = gzip.compress(module, mtime=0)
    assert bench.answerer.learn(packed, identity) is QuestionOutcome.TRUSTED
    learnt = dict(bench.sink.answers), dict(bench.sink.contents)
    assert bench.sink.files == {((8, 1), 42, 3): 7}
    assert bench.sink.order == ["answer", "answer"]  # nobody waits, so nothing is done with
    assert not bench.outcomes
    bench.ask(by_file(put(tmp_path, opened, packed)))
    assert (bench.sink.answers, bench.sink.contents) == learnt
    assert bench.answerer.learn(b"\x7fELF, and no signature", identity) is QuestionOutcome.REFUSED


def test_what_is_unreadable_is_not_answered_for(bench: Bench, tmp_path: Path, opened: list[int]) -> None:
    bench.ask(by_file(put(tmp_path, opened, bytes((1 << 20) + 1))))
    assert not bench.sink.files


def test_memory_is_read_as_it_stands(bench: Bench, module: bytes) -> None:
    buffer = ctypes.create_string_buffer(module, len(module))
    asked = Asked(
        2, Api.INIT_MODULE, os.getpid(), threading.get_native_id(), 0, ctypes.addressof(buffer), len(module)
    )
    assert bench.ask(asked) is QuestionOutcome.TRUSTED
    assert hashlib.sha256(module).digest() in bench.sink.answers


def test_packed_memory_is_never_unpacked(bench: Bench, module: bytes) -> None:
    packed = gzip.compress(module)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    asked = Asked(
        3, Api.INIT_MODULE, os.getpid(), threading.get_native_id(), 0, ctypes.addressof(buffer), len(packed)
    )
    assert bench.ask(asked) is QuestionOutcome.REFUSED
    assert hashlib.sha256(module).digest() not in bench.sink.answers
    # A load of the same bytes from a file would be unpacked: what it would be then stands there.
    assert bench.sink.contents == {hashlib.sha256(packed).digest(): Verification.TRUSTED}


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: gzip.compress(data) + gzip.compress(b"more"),
        lambda data: lzma.compress(data) + lzma.compress(b"more"),
        lambda data: gzip.compress(data)[:-9],
        lambda data: gzip.compress(data)[:3] + b"\x04" + gzip.compress(data)[4:],
    ],
    ids=["two gzip members", "two xz streams", "truncated", "FEXTRA"],
)
def test_what_two_decoders_may_read_differently_is_unreadable(
    bench: Bench, tmp_path: Path, opened: list[int], module: bytes, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(module)
    bench.ask(by_file(put(tmp_path, opened, packed)))
    assert bench.sink.contents == {hashlib.sha256(packed).digest(): Verification.UNREADABLE}


def test_what_unpacks_to_too_much_is_too_large(operator: Identity, tmp_path: Path, opened: list[int]) -> None:
    bench = Bench(operator, max_size=1 << 16)
    packed = gzip.compress(bytes(1 << 20))
    bench.ask(by_file(put(tmp_path, opened, packed)))
    bench.answerer.close()
    assert bench.sink.contents == {hashlib.sha256(packed).digest(): Verification.TOO_LARGE}


def test_a_revoked_digest_of_the_compressed_file_revokes_what_is_in_it(
    bench: Bench, operator: Identity, tmp_path: Path, opened: list[int], module: bytes
) -> None:
    packed = gzip.compress(module, mtime=0)
    digests = [hashlib.sha256(data).digest() for data in (module, packed)]
    revoked = Revocations(files=frozenset({digests[1]}))
    store = TrustStore(load_certificates(operator.pem, "operator.pem"), revoked)
    bench.answerer.set_trust(Trust(store, 8))
    bench.ask(by_file(put(tmp_path, opened, packed)))
    assert [bench.sink.answers[digest][0] for digest in digests] == [Verification.REVOKED] * 2
    assert bench.sink.contents[digests[1]] is Verification.REVOKED
    found = bench.answerer.report_for(digests[1])
    assert found is not None
    assert (found.status, found.sha256) == (SignatureStatus.REVOKED, digests[0].hex())


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        (Asked(4, Api.FINIT_MODULE, 2**22 + 5, 2**22 + 5, 3, 0, 0), QuestionOutcome.GONE),
        (Asked(5, Api.FINIT_MODULE, os.getpid(), os.getpid(), 9999, 0, 0), QuestionOutcome.GONE),
        (Asked(6, Api.INIT_MODULE, os.getpid(), os.getpid(), 0, 16, 4096), QuestionOutcome.UNREADABLE),
        (Asked(7, Api.INIT_MODULE, os.getpid(), os.getpid(), 0, 0, 1 << 40), QuestionOutcome.TOO_LARGE),
    ],
)
def test_what_cannot_be_read_ends_the_wait_all_the_same(
    bench: Bench, asked: Asked, outcome: QuestionOutcome
) -> None:
    assert bench.ask(asked) is outcome
    assert bench.sink.order == ["done"]


def test_devices_and_fifos_are_not_opened(bench: Bench, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero")):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert bench.ask(by_file(fd)) is QuestionOutcome.UNREADABLE
        finally:
            os.close(fd)
    assert not bench.sink.answers


def test_a_file_above_the_cap_is_not_read(operator: Identity, tmp_path: Path, opened: list[int]) -> None:
    bench = Bench(operator, max_size=1000)
    assert bench.ask(by_file(put(tmp_path, opened, bytes(1001)))) is QuestionOutcome.TOO_LARGE
    bench.answerer.close()


def test_a_bomb_is_answered_as_it_lies(operator: Identity, tmp_path: Path, opened: list[int]) -> None:
    bench = Bench(operator, max_size=100_000)
    bomb = gzip.compress(bytes(50 << 20))
    assert bench.ask(by_file(put(tmp_path, opened, bomb))) is QuestionOutcome.REFUSED
    assert bench.sink.answers[hashlib.sha256(bomb).digest()][0] is Verification.UNSIGNED
    bench.answerer.close()


def test_a_broken_sink_does_not_end_the_worker(
    bench: Bench, tmp_path: Path, opened: list[int], module: bytes
) -> None:
    fd = put(tmp_path, opened, module)
    bench.sink.broken = True
    assert bench.ask(by_file(fd)) is QuestionOutcome.FAILED
    bench.sink.broken = False
    assert bench.ask(by_file(fd)) is QuestionOutcome.TRUSTED


def test_other_anchors_forget_what_was_found(
    bench: Bench, tmp_path: Path, opened: list[int], module: bytes
) -> None:
    fd = put(tmp_path, opened, module)
    bench.ask(by_file(fd))
    bench.answerer.set_trust(Trust(TrustStore(), 8))
    digest = hashlib.sha256(module).digest()
    assert bench.answerer.report_for(digest) is None
    assert bench.ask(by_file(fd)) is QuestionOutcome.REFUSED
    assert bench.sink.answers[digest] == (Verification.UNTRUSTED_SIGNER, 8)
    found = bench.answerer.report_for(digest)
    assert found is not None
    assert found.status is SignatureStatus.UNTRUSTED_SIGNER


def test_a_flood_is_turned_away_and_nothing_blocks(bench: Bench) -> None:
    blocked = threading.Event()
    release = threading.Event()
    original = bench.sink.done

    def slow(question: int) -> None:
        blocked.set()
        release.wait(10)
        original(question)

    gone = Asked(9, Api.FINIT_MODULE, 2**22 + 5, 2**22 + 5, 3, 0, 0)
    bench.sink.done = slow  # type: ignore[method-assign]
    bench.answerer.submit(gone)
    assert blocked.wait(5)
    # Four workers are held up; the queue takes 256 more, and what comes then is turned away.
    # It is turned away in this thread, so the sink must not hold this one up as well.
    workers = {thread.ident for thread in bench.answerer._threads}

    def slow_for_workers(question: int) -> None:
        if threading.get_ident() in workers:
            release.wait(10)
        original(question)

    bench.sink.done = slow_for_workers  # type: ignore[method-assign]
    start = time.monotonic()
    for _ in range(4 + 256 + 10):
        bench.answerer.submit(gone)
    assert time.monotonic() - start < 5
    assert QuestionOutcome.BUSY in bench.outcomes
    release.set()


def test_reads_that_hang_do_not_end_verification(
    bench: Bench, tmp_path: Path, opened: list[int], module: bytes
) -> None:
    fd = put(tmp_path, opened, module)
    release = threading.Event()
    read = bench.answerer._read_file

    def hang(asked: Asked) -> tuple[bytes, FileIdentity] | None:
        if asked.id < 100:
            release.wait(30)
        return read(asked)

    bench.answerer._read_file = hang  # type: ignore[method-assign]
    for number in range(4):
        asked = by_file(fd)
        bench.answerer.submit(Asked(number, asked.api, asked.tgid, asked.tid, fd, 0, 0))
    deadline = time.monotonic() + 5
    while len(bench.answerer._busy) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.answerer.relieve(time.monotonic() + 1)  # not yet
    assert len(bench.answerer._threads) == 4
    bench.answerer.relieve(time.monotonic() + 60)
    assert len(bench.answerer._threads) == 8
    asked = by_file(fd)
    assert bench.ask(Asked(100, asked.api, asked.tgid, asked.tid, fd, 0, 0)) is QuestionOutcome.TRUSTED
    release.set()
