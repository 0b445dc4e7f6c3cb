# SPDX-License-Identifier: Apache-2.0
"""Answers the programs' questions: reads what a task is about to load, and verifies it.

The loader is hostile: its descriptor may change under our hands, lead to a device, or to a
file system that never answers. So everything is bounded: workers, queue, bytes. What is
read here need not be what the kernel reads. It does no harm: an answer names a digest, and
the kernel side looks up the digest of its own bytes.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import queue
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, Self, runtime_checkable

from .errors import HookError, KmodgateError, ModuleFormatError
from .fsutil import nobody_writes, read_regular_fd
from .model import Api, ModuleInfo, SignatureReport, SignatureStatus, Verification
from .modfile import decompress, modinfo
from .modfile.decompress import BytesLike
from .policy import verification_of
from .signature import LATEST, KernelProfile, TrustStore, report
from .telemetry.metrics import QuestionOutcome

log = logging.getLogger(__name__)

_WORKERS: Final = 4
_STUCK_SECONDS: Final = 5.0
_STUCK_MAX: Final = 64
_QUEUE: Final = 256
_REPORTS: Final = 4096
# A file that was changed a moment ago may be changed again without its ctime moving: the kernel's
# clock for it ticks every 10 ms at worst.
_SETTLED_NS: Final = 50_000_000
_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.EBADF)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of the programs, in Python's terms.

    Attributes:
        id: ends the wait when handed back.
        api: which call; decides where the bytes are.
        tgid: process, in the initial PID namespace.
        tid: thread; its own descriptor table is meant.
        fd: descriptor of the file, for ``finit_module``.
        address: user address of the image, for ``init_module``.
        length: its length in bytes.
        place: the file's path from process 1's root, for an asker that does not wait for the answer.
    """

    id: int
    api: Api
    tgid: int
    tid: int
    fd: int
    address: int
    length: int
    place: str = ""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What the programs see of a file before they read it.

    Attributes:
        device: major and minor number of its file system.
        inode: its number there.
        size: in bytes.
        changed: ctime in ns; 0 where the bytes might change without it.
    """

    device: tuple[int, int]
    inode: int
    size: int
    changed: int = field(default=0, compare=False)

    @classmethod
    def of(cls, status: os.stat_result, reader: int | None = None) -> Self:
        """From fstat(2), and then the descriptor that the file is read from, before it is read.

        Whoever opens the file for writing later than this cannot change it without its ctime.
        """
        settled = reader is not None and time.time_ns() - status.st_ctime_ns > _SETTLED_NS
        changed = status.st_ctime_ns if settled and reader is not None and nobody_writes(reader) else 0
        device = os.major(status.st_dev), os.minor(status.st_dev)
        return cls(device, status.st_ino, status.st_size, changed)

    @property
    def version(self) -> tuple[tuple[int, int], int, int, int]:
        """The file as it was."""
        return self.device, self.inode, self.size, self.changed


class AnswerSink(Protocol):
    """What takes the answers: a hook backend."""

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None:
        """Store what is known of a digest, and of what it unpacks to if it is compressed."""

    def done(self, question: int) -> None:
        """End the wait for a question."""

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None:
        """Tell that no question is needed for a file: its digest has been answered."""


@runtime_checkable
class FileSink(Protocol):
    """A backend that decides before the bytes are read, and so by the file."""

    def judged(
        self,
        version: tuple[tuple[int, int], int, int, int],
        verification: Verification,
        contents: Verification,
        trust_generation: int,
    ) -> None:
        """Store what is known of a file as it was: device, inode, size, ctime in ns."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Trust anchors and the generation that answers made with them carry."""

    store: TrustStore
    generation: int
    require_validity: bool = False
    profile: KernelProfile = LATEST


class Answerer:
    """Workers that answer questions.

    Args:
        sink: takes the answers.
        trust: the anchors to begin with.
        max_size: bytes of the largest module, compressed or not.
        proc: where procfs is mounted.
        observe: called with the seconds that each verification took.
        count: called with the outcome of each question.
    """

    def __init__(
        self,
        sink: AnswerSink,
        trust: Trust,
        max_size: int,
        *,
        proc: Path = Path("/proc"),
        observe: Callable[[float], None] = lambda _seconds: None,
        count: Callable[[QuestionOutcome], None] = lambda _outcome: None,
    ) -> None:
        self.max_size = max_size
        self._sink = sink
        self._files = sink if isinstance(sink, FileSink) else None
        self._trust = trust
        self._proc = proc
        self._observe = observe
        self._count = count
        self._queue: queue.Queue[Asked | None] = queue.Queue(_QUEUE)
        self._reports: OrderedDict[bytes, SignatureReport] = OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[threading.Thread, float] = {}
        self._stuck: set[threading.Thread] = set()
        self._threads: list[threading.Thread] = []
        for _ in range(_WORKERS):
            self._hire()

    def _hire(self) -> None:
        thread = threading.Thread(target=self._work, name=f"answer-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def relieve(self, now: float | None = None) -> None:
        """Put another worker beside each one that a file system holds up. Call now and then.

        A file on FUSE, or memory under userfaultfd, can make a read last for ever; four of
        them would else end verification. Held-up workers are counted against a limit, above
        which the node's owner has to act: the log says so.
        """
        now = time.monotonic() if now is None else now
        for thread, since in list(self._busy.items()):
            if now - since < _STUCK_SECONDS or thread in self._stuck:
                continue
            if len(self._stuck) >= _STUCK_MAX:
                log.critical("%d reads hang; unknown modules are refused until they end", len(self._stuck))
                return
            log.warning("a read has hung for %.0f s; another worker takes over", now - since)
            self._stuck.add(thread)
            self._hire()

    def set_trust(self, trust: Trust) -> None:
        """Verify against other anchors from now on; what was found before is forgotten."""
        with self._lock:
            self._trust = trust
            self._reports.clear()

    def submit(self, asked: Asked) -> None:
        """Put a question in the queue. Never blocks: a full queue answers "unknown" at once."""
        try:
            self._queue.put_nowait(asked)
        except queue.Full:
            self._finish(asked, QuestionOutcome.BUSY)

    def report_for(self, digest: bytes) -> SignatureReport | None:
        """What was found for a digest (32 bytes, SHA-256), if it is still remembered."""
        with self._lock:
            return self._reports.get(digest)

    @property
    def busy(self) -> bool:
        """Loads wait for answers at this moment; whatever is not urgent should let them pass."""
        return bool(self._busy) or not self._queue.empty()

    def learn(self, data: bytes, file: FileIdentity, *, start: float | None = None) -> QuestionOutcome:
        """Answer for a file that nobody has asked about yet. Any thread may call this.

        Args:
            data: what the file holds.
            file: which it is.
            start: when reading it began (``time.perf_counter``); None for now.

        Raises:
            HookError: the answer could not be stored.
        """
        with self._lock:
            trust = self._trust
        began = time.perf_counter() if start is None else start
        outcome = self._judge(data, trust, began, file)
        self._sink.answered_for(file.device, file.inode, file.size, trust.generation)
        return outcome

    def close(self, timeout: float = 2.0) -> None:
        """Let the workers go; one that a file system holds up is left behind."""
        for _ in self._threads:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                break
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        thread = threading.current_thread()
        while (asked := self._queue.get()) is not None:
            self._busy[thread] = time.monotonic()
            outcome = self._outcome(asked)
            del self._busy[thread]
            self._finish(asked, outcome)
            if thread in self._stuck:  # somebody else has taken this place
                self._stuck.discard(thread)
                return

    def _outcome(self, asked: Asked) -> QuestionOutcome:
        try:
            return self._answer(asked)
        except OSError as error:
            log.debug("question %d: %s", asked.id, error)
            return QuestionOutcome.GONE if error.errno in _GONE else QuestionOutcome.UNREADABLE
        except HookError as error:
            log.error("question %d: %s", asked.id, error)
            return QuestionOutcome.FAILED
        except KmodgateError as error:
            log.debug("question %d: %s", asked.id, error)
            return QuestionOutcome.UNREADABLE
        except Exception:  # one bad module must not take the worker along
            log.exception("question %d", asked.id)
            return QuestionOutcome.FAILED

    def _finish(self, asked: Asked, outcome: QuestionOutcome) -> None:
        self._count(outcome)
        try:
            self._sink.done(asked.id)
        except HookError as error:
            log.error("question %d: %s", asked.id, error)

    def _answer(self, asked: Asked) -> QuestionOutcome:
        start = time.perf_counter()
        if asked.api is not Api.FINIT_MODULE:
            image = self._read_memory(asked)
            if image is None:
                return QuestionOutcome.TOO_LARGE
            with self._lock:
                trust = self._trust
            return self._judge(image, trust, start)
        read = self._read_file(asked)
        return QuestionOutcome.TOO_LARGE if read is None else self.learn(*read, start=start)

    def _judge(
        self, data: bytes, trust: Trust, start: float, file: FileIdentity | None = None
    ) -> QuestionOutcome:
        found = self._verify(data, trust, start)
        # With MODULE_INIT_COMPRESSED_FILE the kernel unpacks a file, without it the bytes stand as
        # they are; those from memory always do. The flags are not known here: both are answered.
        # A packed file's answer says what it unpacks to, whoever asked, or a load that the kernel
        # will unpack would pass for the harmless thing that the bytes are by themselves.
        try:
            plain = decompress(data, max_size=self.max_size)
        except ModuleFormatError as error:
            log.debug("not unpacked: %s", error)
            too_large = error.errno_name == "EFBIG"
            contents = Verification.TOO_LARGE if too_large else Verification.UNREADABLE
            return self._tell(data, found, trust, contents=contents, file=file)
        if plain is data:
            return self._tell(data, found, trust, file=file)
        inner = self._verify(plain, trust, time.perf_counter())
        if found.status is SignatureStatus.REVOKED:
            detail = f"{found.detail}, as it lies there compressed"
            inner = replace(inner, status=found.status, errno=found.errno, trusted_by=None, detail=detail)
        inner = replace(inner, module=_names(plain))
        told = self._tell(plain, inner, trust) if file is not None else None
        outcome = self._tell(data, found, trust, contents=verification_of(inner), shown=inner, file=file)
        return told or outcome

    def _verify(self, data: BytesLike, trust: Trust, start: float) -> SignatureReport:
        """Verify, and note how long that took since ``start``, when reading began."""
        found = report(
            data,
            trust.store,
            now=datetime.now(UTC),
            require_validity=trust.require_validity,
            profile=trust.profile,
        )
        self._observe(time.perf_counter() - start)
        return found if found.sha256 else replace(found, sha256=hashlib.sha256(data).hexdigest())

    def _tell(
        self,
        data: BytesLike,
        found: SignatureReport,
        trust: Trust,
        *,
        contents: Verification = Verification.NOT_YET,
        shown: SignatureReport | None = None,
        file: FileIdentity | None = None,
    ) -> QuestionOutcome:
        """Answer for a digest, and for the file that has it; remember the report, or ``shown`` instead."""
        digest = bytes.fromhex(found.sha256 or "")
        self._sink.answer(digest, verification_of(found), trust.generation, contents)
        if self._files is not None and file is not None and file.changed:
            self._files.judged(file.version, verification_of(found), contents, trust.generation)
        shown = shown or replace(found, module=_names(data))
        with self._lock:
            if trust is self._trust:
                self._reports[digest] = shown
                self._reports.move_to_end(digest)
                while len(self._reports) > _REPORTS:
                    self._reports.popitem(last=False)
        trusted = found.status is SignatureStatus.TRUSTED_SIGNATURE
        return QuestionOutcome.TRUSTED if trusted else QuestionOutcome.REFUSED

    def _read_file(self, asked: Asked) -> tuple[bytes, FileIdentity] | None:
        """The bytes behind the loader's descriptor, and whose; None when there are too many.

        Looked at through O_PATH first: opening a device or a FIFO has effects, and a file
        with a write lease on it blocks an open without O_NONBLOCK.
        """
        path = self._proc / f"{asked.tgid}/task/{asked.tid}/fd/{asked.fd}"
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _GONE or not asked.place:
                raise
            # What lies there by now is verified as what it is: a wrong file does no harm.
            path = self._proc / "1/root" / asked.place.lstrip("/")
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            if found.st_size > self.max_size:
                return None
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            reader = os.open(f"/proc/self/fd/{handle}", flags)
        finally:
            os.close(handle)
        try:
            file = FileIdentity.of(found, reader)
            return read_regular_fd(reader, self.max_size, str(path)), file
        finally:
            os.close(reader)

    def _read_memory(self, asked: Asked) -> bytes | None:
        """The image in the loader's memory; None when it is too long."""
        if asked.length > self.max_size:
            return None
        handle = os.open(self._proc / f"{asked.tgid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        parts, at, left = [], asked.address, asked.length
        try:
            while left:
                part = os.pread(handle, min(left, 1 << 20), at)
                if not part:
                    raise OSError(errno.EFAULT, "memory ends early")
                parts.append(part)
                at, left = at + len(part), left - len(part)
        finally:
            os.close(handle)
        return b"".join(parts)


def _names(data: BytesLike) -> ModuleInfo | None:
    try:
        return modinfo(data)
    except ModuleFormatError:
        return None
