# SPDX-License-Identifier: Apache-2.0
"""Answers about a file as it was, for rungs that decide before its bytes are read."""

from __future__ import annotations

import errno
import gzip
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vectors.generate import MODINFO, append, make_elf, make_identity, openssl_cms

from kmodgate.answers import Answerer, Asked, FileIdentity, Trust
from kmodgate.fsutil import nobody_writes
from kmodgate.hooks.bpf import ProbeResult
from kmodgate.model import Api, Backend, EffectivePolicy, Mode, Policy, Verification
from kmodgate.rungs import refusals
from kmodgate.selfprobe import probe_problem
from kmodgate.signature import TrustStore, load_certificates

Version = tuple[tuple[int, int], int, int, int]


class Sink:
    """A backend that judges files."""

    def __init__(self) -> None:
        self.files: dict[Version, tuple[Verification, Verification, int]] = {}
        self.finished = threading.Event()

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None: ...

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None: ...

    def done(self, question: int) -> None:
        del question
        self.finished.set()

    def judged(
        self,
        version: Version,
        verification: Verification,
        contents: Verification,
        trust_generation: int,
    ) -> None:
        self.files[version] = verification, contents, trust_generation


@pytest.fixture(scope="module")
def signed() -> tuple[bytes, TrustStore]:
    operator, elf = make_identity("operator"), make_elf(MODINFO)
    store = TrustStore(load_certificates(operator.pem, "operator.pem"))
    return append(elf, openssl_cms(elf, operator)), store


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def answerer(sink: Sink, signed: tuple[bytes, TrustStore], tmp_path: Path) -> Iterator[Answerer]:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/root").symlink_to("/")
    answerer = Answerer(sink, Trust(signed[1], 7), 1 << 20, proc=tmp_path / "proc")
    yield answerer
    answerer.close()


def settled(path: Path, data: bytes) -> tuple[Path, Version]:
    """A file that was written a while ago, and what it is known by."""
    path.write_bytes(data)
    time.sleep(0.1)
    status = path.stat()
    device = os.major(status.st_dev), os.minor(status.st_dev)
    return path, (device, status.st_ino, status.st_size, status.st_ctime_ns)


def ask(answerer: Answerer, sink: Sink, place: Path) -> None:
    """As a loader that is gone: its descriptor leads nowhere."""
    sink.finished.clear()
    answerer.submit(Asked(1, Api.FINIT_MODULE, 4_000_000, 4_000_000, 3, 0, 0, str(place)))
    assert sink.finished.wait(10)


def test_the_way_to_the_file_serves_when_its_loader_is_gone(
    answerer: Answerer, sink: Sink, signed: tuple[bytes, TrustStore], tmp_path: Path
) -> None:
    path, version = settled(tmp_path / "one.ko", signed[0])
    ask(answerer, sink, path)
    assert sink.files == {version: (Verification.TRUSTED, Verification.NOT_YET, 7)}
    packed, packed_version = settled(tmp_path / "one.ko.gz", gzip.compress(signed[0]))
    ask(answerer, sink, packed)
    assert sink.files[packed_version] == (Verification.UNSIGNED, Verification.TRUSTED, 7)


def test_without_a_way_nothing_is_said(answerer: Answerer, sink: Sink, tmp_path: Path) -> None:
    ask(answerer, sink, Path())
    ask(answerer, sink, tmp_path / "gone.ko")
    ask(answerer, sink, Path("/dev/null"))
    assert sink.files == {}


def test_a_file_that_was_written_just_now_may_be_written_again(
    signed: tuple[bytes, TrustStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.ko"
    path.write_bytes(signed[0])
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        now = status.st_ctime_ns + 40_000_000
        monkeypatch.setattr(time, "time_ns", lambda: now)
        assert FileIdentity.of(status, file.fileno()).changed == 0
        now += 20_000_000
        assert FileIdentity.of(status, file.fileno()).changed == status.st_ctime_ns
        assert FileIdentity.of(status).changed == 0


def test_a_file_that_somebody_may_write_to_is_not_answered_for(
    answerer: Answerer, sink: Sink, signed: tuple[bytes, TrustStore], tmp_path: Path
) -> None:
    path, _ = settled(tmp_path / "open.ko", signed[0])
    with path.open("r+b"):
        ask(answerer, sink, path)
    assert sink.files == {}
    # Mapped is as good as open.
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    ask(answerer, sink, path)
    assert sink.files == {}
    memory.close()
    ask(answerer, sink, path)
    assert len(sink.files) == 1


def test_whoever_opens_the_file_meanwhile_ends_nobody(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        assert nobody_writes(file.fileno())
        with path.open("ab"):
            assert not nobody_writes(file.fileno())
        assert nobody_writes(file.fileno())
    reader, writer = os.pipe()
    assert not nobody_writes(reader)
    os.close(reader)
    os.close(writer)
    # What the kernel sends a holder of the lease is ignored by default.
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGURG)


# --- what such a rung cannot do --------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "mode", "keyrings", "refused"),
    [
        (Policy.ENFORCE, Mode.ENFORCE, True, True),
        (Policy.ENFORCE, Mode.ENFORCE, False, False),
        (Policy.ENFORCE, Mode.AUDIT, True, False),
        (Policy.DO_NOT_ENFORCE, Mode.ENFORCE, True, False),
    ],
)
def test_the_kernels_keyrings_cannot_be_asked_beforehand(
    word: Policy, mode: Mode, keyrings: bool, refused: bool
) -> None:
    policy = EffectivePolicy(word, mode, load_pin=True, kernel_keyrings=keyrings)
    found = refusals(Backend.BCC, policy, configured_certificates=True)
    assert bool(found) is refused
    if refused:
        assert "kmodgate trust extract /boot/vmlinuz-RELEASE" in found[0]
        assert "mode: audit" in found[0]


def test_a_probe_that_nothing_may_refuse_proves_that_it_was_seen() -> None:
    audit = EffectivePolicy(Policy.ENFORCE, Mode.AUDIT, load_pin=True)
    seen = ProbeResult(errno.ENOEXEC, first_hook=True, signature=True, ended=True, only_watches=True)
    assert probe_problem(audit, seen, kernel_refuses=False) is None
    blind = ProbeResult(errno.ENOEXEC, first_hook=False, signature=False, ended=True, only_watches=True)
    assert "unseen" in (probe_problem(audit, blind, kernel_refuses=False) or "")
