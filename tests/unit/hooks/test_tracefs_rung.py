# SPDX-License-Identifier: Apache-2.0
"""The tracefs rung over a folder in tracefs's shape: order, callers, answers, counts, what is left behind."""

from __future__ import annotations

import errno
import os
import select
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.hooks import tracing

from kmodgate.errors import HookError
from kmodgate.hooks import abi, traceinstance
from kmodgate.hooks.afterwards import TAINT_UNSIGNED
from kmodgate.hooks.tracecaller import Caller, MountTable, read_caller, read_file
from kmodgate.hooks.tracefs import TracefsBackend
from kmodgate.hooks.traceinstance import TraceInstance, lacks
from kmodgate.model import (
    Api,
    By,
    EffectivePolicy,
    Mode,
    Origin,
    Policy,
    Reason,
    SignatureReport,
    SignatureStatus,
    Verdict,
    Verification,
)
from kmodgate.node import NodePaths
from kmodgate.observe import Observer
from kmodgate.policy import compile_table

ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
PINNED = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=True)
TGID, TID = 500, 501
MOUNTS = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 21 0:25 / /tmp rw - tmpfs tmpfs rw\n"


def add_process(proc: Path, tid: int, *, tgid: int = TGID, caps: int = 1 << 16, started: int = 4000) -> Path:
    directory = proc / str(tid)
    (directory / "fd").mkdir(parents=True)
    (directory / "fdinfo").mkdir()
    (directory / "status").write_text(
        f"Name:\tinsmod\nTgid:\t{tgid}\nPid:\t{tid}\nPPid:\t7\nUid:\t1\t0\t0\t0\nCapEff:\t{caps:016x}\n"
    )
    (directory / "comm").write_bytes(b"ins\x1bmod\n")
    behind = " ".join(["S", "7", *["0"] * 17, str(started), *["0"] * 20])
    (directory / "stat").write_text(f"{tid} (ins) mod) {behind}\n")
    return directory


def add_file(directory: Path, fd: int, path: str, mount: int) -> None:
    (directory / f"fd/{fd}").symlink_to(path)
    (directory / f"fdinfo/{fd}").write_text(f"pos:\t0\nflags:\t0100000\nmnt_id:\t{mount}\n")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodePaths:
    node = NodePaths(proc=tmp_path / "proc", sys=tmp_path / "sys")
    tracing.tracefs(node.sys)
    (node.sys / "module/module/parameters").mkdir(parents=True)
    (node.sys / "module/module/parameters/sig_enforce").write_text("N\n")
    (node.proc / "1").mkdir(parents=True)
    (node.proc / "1/mountinfo").write_text(MOUNTS)
    add_process(node.proc, threading.get_native_id(), tgid=os.getpid())
    if os.getpid() != threading.get_native_id():  # pragma: no cover  # tests run in the main thread
        add_process(node.proc, os.getpid(), tgid=os.getpid())
    mkdir, rmdir = Path.mkdir, Path.rmdir

    def furnish(path: Path, *args: object, **kwargs: object) -> None:
        """As the kernel does with a new instance."""
        mkdir(path, *args, **kwargs)  # type: ignore[arg-type]
        if path.parent.name != "instances":
            return
        for name in ("trace_clock", "buffer_size_kb", "buffer_percent", "tracing_on"):
            (path / name).write_text("0\n")
        mkdir(path / "events")
        (path / "events/enable").write_text("0\n")
        for name in tracing.FORMATS:
            mkdir(path / "events" / name, parents=True)
            (path / "events" / name / "enable").write_text("0\n")
        for cpu in (0, 1):
            mkdir(path / f"per_cpu/cpu{cpu}", parents=True)
            os.mkfifo(path / f"per_cpu/cpu{cpu}/trace_pipe_raw")

    def remove(path: Path) -> None:
        shutil.rmtree(path) if path.parent.name == "instances" else rmdir(path)

    monkeypatch.setattr(Path, "mkdir", furnish)
    monkeypatch.setattr(Path, "rmdir", remove)
    return node


class Ring:
    """The kernel's side of an instance: writes pages into its pipes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writers = {
            cpu: os.open(directory / f"per_cpu/cpu{cpu}/trace_pipe_raw", os.O_WRONLY | os.O_NONBLOCK)
            for cpu in (0, 1)
        }

    def write(self, cpu: int, *records: bytes, at: int | None = None, lost: int | None = 0) -> None:
        stamp = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 10**9 if at is None else at
        data = tracing.page([tracing.event(record, 1) for record in records], stamp, lost=lost)
        os.write(self._writers[cpu], data)

    def close(self) -> None:
        for writer in self._writers.values():
            os.close(writer)


def only_instance(paths: NodePaths) -> Path:
    (found,) = (paths.sys / "kernel/tracing/instances").iterdir()
    return found


@pytest.fixture
def backend(paths: NodePaths) -> Iterator[TracefsBackend]:
    with TracefsBackend(paths) as backend:
        backend.load()
        backend.set_policy(compile_table(ENFORCE))
        configure(backend)
        backend.attach()
        backend._tid = -1  # this thread loads nothing here, and may stand for a caller
        yield backend


@pytest.fixture
def ring(backend: TracefsBackend, paths: NodePaths) -> Iterator[Ring]:
    assert backend.rings()
    ring = Ring(only_instance(paths))
    yield ring
    ring.close()


def configure(backend: TracefsBackend, *, sig_enforce: bool = False) -> None:
    backend.configure(
        hold_seconds=1, max_size=1, wait_asleep=False, wait_limit=1, sig_enforce=sig_enforce, lockdown=False
    )


def answer(
    backend: TracefsBackend, question: abi.Question, found: Verification, digest: bytes = b"\x11" * 32
) -> None:
    backend.answer(digest, found, backend.trust_generation)
    backend.answered_for((8, 1), 42, 7743, backend.trust_generation)
    backend.done(question.id)


def test_a_load_is_followed_verified_judged_and_told(
    backend: TracefsBackend, ring: Ring, paths: NodePaths
) -> None:
    directory = add_process(paths.proc, TID)
    add_file(directory, 9, "/tmp/drivers/kmg\x1btest.ko", 30)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 10**9
    ring.write(0, tracing.enter_finit(TID, 9), at=now)
    (question,) = backend.questions()
    assert (question.tgid, question.tid, question.fd, question.api) == (TGID, TID, 9, Api.FINIT_MODULE)
    # The rest is told by another CPU.
    ring.write(
        1, tracing.module_load(TID, b"kmgtest", TAINT_UNSIGNED), tracing.exit_finit(TID, 0), at=now + 10**6
    )
    assert list(backend.events()) == []  # the question is not over
    answer(backend, question, Verification.UNSIGNED)
    (event,) = backend.events()
    assert (event.verdict, event.reason, event.by) == (Verdict.WOULD_DENY, Reason.UNSIGNED, By.KMODGATE)
    assert (event.tgid, event.tid, event.parent, event.uid) == (TGID, TID, 7, 1)
    assert (event.error, event.result, event.loaded) == (errno.EKEYREJECTED, 0, 1)
    assert (event.origin, event.device, event.inode, event.size) == (
        Origin.OTHER_FILESYSTEM,
        25,
        42,
        7743,
    )
    assert abi.text(event.path) == b"/tmp/drivers/kmg\x1btest.ko"
    assert abi.text(event.fstype) == b"tmpfs"
    assert abi.text(event.comm) == b"ins\x1bmod"
    assert abi.text(event.module) == b"kmgtest"
    assert bytes(event.digest) == b"\x11" * 32
    assert event.duration == pytest.approx(10**6, abs=10)
    assert list(backend.loads()) == [(Verdict.WOULD_DENY, Reason.UNSIGNED, Api.FINIT_MODULE, By.KMODGATE, 1)]
    assert (backend.attempts(), backend.undecided()) == (1, 0)


def test_what_is_not_known_is_null_in_the_event(backend: TracefsBackend, ring: Ring) -> None:
    ring.write(
        0,
        tracing.enter_finit(TID, 9),
        tracing.module_load(TID, b"gone", TAINT_UNSIGNED),
        tracing.exit_finit(TID, 0),
    )
    assert list(backend.questions()) == []
    (record,) = backend.events()
    observer = Observer(lambda _digest: None, proc=Path("/nowhere"))
    observer.policy_changed(record.generation, ENFORCE)
    event = observer.event(record)
    assert (event.verdict, event.reason) == (Verdict.WOULD_DENY, Reason.UNREADABLE)
    assert (event.module, event.tid) == ("gone", TID)
    unknown = (event.origin, event.path, event.file_system, event.device, event.inode, event.size)
    assert unknown == (None,) * 6
    assert event.path_truncated is False
    assert (event.pid, event.ppid, event.comm, event.exe, event.uid) == (None,) * 5
    assert (event.sha256, event.signer, event.signature_status) == (None,) * 3


def test_a_report_names_signer_and_digest(backend: TracefsBackend, ring: Ring, paths: NodePaths) -> None:
    add_file(add_process(paths.proc, TID), 3, "/lib/modules/a.ko", 21)
    ring.write(0, tracing.enter_finit(TID, 3), tracing.exit_finit(TID, -errno.EEXIST))
    (question,) = backend.questions()
    answer(backend, question, Verification.TRUSTED)
    (record,) = backend.events()
    report = SignatureReport(SignatureStatus.TRUSTED_SIGNATURE, None, trusted_by="ours", sha256="11" * 32)
    observer = Observer({b"\x11" * 32: report}.get, proc=Path("/nowhere"))
    observer.policy_changed(record.generation, ENFORCE)
    event = observer.event(record)
    assert (event.verdict, event.by, event.trusted_by) == (Verdict.ALLOW, By.KMODGATE, "ours")
    assert (event.origin, event.file_system) == (Origin.OTHER_FILESYSTEM, "ext4")  # nothing is pinned


def test_the_pinned_root_is_known_by_its_device(
    backend: TracefsBackend, ring: Ring, paths: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodgate.hooks.tracecaller.mount_id_of_fd", lambda _fd: 21)
    assert backend.introduce(3) == (8, 1)
    backend.set_policy(compile_table(PINNED))
    directory = add_process(paths.proc, TID)
    add_file(directory, 3, "/lib/modules/a.ko", 21)
    add_file(directory, 4, "/tmp/a.ko", 30)
    add_file(directory, 5, "/elsewhere/a.ko", 999)  # in another mount namespace, on the same file system
    for fd in (3, 4, 5):
        ring.write(
            0, tracing.enter_finit(TID, fd), tracing.module_load(TID, b"a", 0), tracing.exit_finit(TID, 0)
        )
        (question,) = backend.questions()
        answer(backend, question, Verification.UNSIGNED)
    reasons = [Reason(event.reason) for event in backend.events()]
    assert reasons == [Reason.PINNED_ROOT, Reason.OUTSIDE_PINNED_ROOT, Reason.PINNED_ROOT]


def test_a_question_that_a_probe_came_upon_wakes_the_loop(
    backend: TracefsBackend, ring: Ring, paths: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wakes() -> bool:
        return bool(select.select([backend.question_ring], [], [], 0)[0])

    monkeypatch.setattr("kmodgate.hooks.tracefs.load_nothing", lambda: errno.ENOEXEC)
    add_process(paths.proc, TID)
    ring.write(0, tracing.enter_init(TID, 1, 128))
    backend.probe()
    assert wakes()
    assert len(list(backend.questions())) == 1
    assert not wakes()


def test_an_image_in_memory_is_asked_about_by_its_address(
    backend: TracefsBackend, ring: Ring, paths: NodePaths
) -> None:
    add_process(paths.proc, TID)
    ring.write(1, tracing.enter_init(TID, 0x7F0000001000, 7743))
    (question,) = backend.questions()
    assert (question.address, question.length, question.api) == (0x7F0000001000, 7743, Api.INIT_MODULE)
    ring.write(1, tracing.exit_init(TID, -errno.ENOEXEC))
    answer(backend, question, Verification.UNSIGNED)
    (event,) = backend.events()
    assert (event.origin, event.size, event.result) == (Origin.MEMORY, 7743, -errno.ENOEXEC)


def test_a_compressed_file_is_judged_by_what_it_unpacks_to(
    backend: TracefsBackend, ring: Ring, paths: NodePaths
) -> None:
    add_file(add_process(paths.proc, TID), 3, "/tmp/a.ko.xz", 30)
    ring.write(
        0,
        tracing.enter_finit(TID, 3, 4),
        tracing.module_load(TID, b"a", TAINT_UNSIGNED),
        tracing.exit_finit(TID, 0),
    )
    (question,) = backend.questions()
    trusted = backend.trust_generation
    backend.answer(b"\x22" * 32, Verification.TRUSTED, trusted)
    backend.answer(b"\x33" * 32, Verification.UNSIGNED, trusted, Verification.TRUSTED)
    backend.done(question.id)
    (event,) = backend.events()
    assert (event.verdict, event.verification) == (Verdict.ALLOW, Verification.TRUSTED)
    assert bytes(event.digest) == b"\x33" * 32


def test_an_answer_of_other_anchors_is_none(backend: TracefsBackend, ring: Ring, paths: NodePaths) -> None:
    add_file(add_process(paths.proc, TID), 3, "/tmp/a.ko", 30)
    ring.write(
        0,
        tracing.enter_finit(TID, 3),
        tracing.module_load(TID, b"a", TAINT_UNSIGNED),
        tracing.exit_finit(TID, 0),
    )
    (question,) = backend.questions()
    before = backend.trust_generation
    backend.forget_answers()
    backend.answer(b"\x22" * 32, Verification.TRUSTED, before)
    backend.done(question.id)
    (event,) = backend.events()
    assert (event.verdict, event.reason) == (Verdict.WOULD_DENY, Reason.UNREADABLE)


def test_workers_do_not_mix_their_findings(backend: TracefsBackend) -> None:
    """Preverification answers without a question, on a thread of its own."""
    backend.answer(b"\x22" * 32, Verification.TRUSTED, backend.trust_generation)
    worker = threading.Thread(target=backend.done, args=(1,))
    worker.start()
    worker.join()
    found = backend.take(1)
    assert found is not None
    assert found.verification is None
    assert backend.take(1) is None


def test_a_caller_without_the_capability_is_no_attempt(
    backend: TracefsBackend, ring: Ring, paths: NodePaths
) -> None:
    add_process(paths.proc, TID, caps=0)
    ring.write(0, tracing.enter_init(TID, 1, 9), tracing.exit_init(TID, -errno.EPERM))
    assert list(backend.questions()) == []
    assert list(backend.events()) == []
    assert (backend.attempts(), backend.errors()["refused_early"]) == (0, 1)


def test_a_module_without_a_call_is_told_as_unseen(backend: TracefsBackend, ring: Ring) -> None:
    ring.write(0, tracing.module_load(TID, b"by_int80", 0))
    assert list(backend.questions()) == []
    assert backend.loaded_unseen() == 1


def test_an_end_without_a_beginning_is_judged_all_the_same(backend: TracefsBackend, ring: Ring) -> None:
    ring.write(0, tracing.exit_finit(TID, -errno.EKEYREJECTED))
    (event,) = backend.events()
    assert (event.verdict, event.reason) == (Verdict.DENY, Reason.BAD_SIGNATURE)
    ring.write(0, tracing.enter_init(TID, 1, 2), tracing.enter_init(TID, 1, 2))
    list(backend.events())
    assert backend.errors()["abandoned"] == 1


def test_records_of_two_cpus_are_put_in_order(backend: TracefsBackend, ring: Ring) -> None:
    """A task changes the CPU in the middle of its call."""
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 10**9
    ring.write(0, tracing.exit_finit(TID, -errno.EKEYREJECTED), at=begin + 200)
    ring.write(1, tracing.enter_finit(TID, 3, 3), at=begin)
    (event,) = backend.events()
    assert (event.flags, event.duration) == (3, 200)


def test_what_is_too_new_waits_for_the_other_cpus(backend: TracefsBackend, ring: Ring) -> None:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    ring.write(0, tracing.exit_finit(TID, -errno.EKEYREJECTED), at=now)
    assert list(backend.events()) == []
    time.sleep(0.15)
    assert len(list(backend.events())) == 1


def test_overwritten_and_senseless_records_are_counted(backend: TracefsBackend, ring: Ring) -> None:
    ring.write(0, tracing.exit_finit(TID, 0)[:6], lost=41)
    ring.write(0, lost=None)
    os.write(ring._writers[0], b"x" * 8)
    list(backend.questions())
    assert backend.lost()["event_ring"] == 42
    assert backend.errors()["read_failed"] == 2


def test_a_storm_is_counted_to_the_last(backend: TracefsBackend, ring: Ring, paths: NodePaths) -> None:
    """More calls than are followed: all are counted, and only the latest callers are looked at."""
    add_process(paths.proc, TID)
    for cpu in (0, 1) * 8:
        records = [
            record
            for _ in range(40)
            for record in (tracing.enter_init(TID, 1, 128), tracing.exit_init(TID, -errno.EKEYREJECTED))
        ]
        ring.write(cpu, *records, at=time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 10**9)
        for question in list(backend.questions()):
            backend.done(question.id)
        list(backend.events())
    counted = sum(count for *_, count in backend.loads())
    assert (counted, backend.attempts(), backend.lost()["event_ring"]) == (640, 640, 0)


def test_the_instance_is_this_agents_alone_and_goes_with_it(paths: NodePaths) -> None:
    backend = TracefsBackend(paths)
    backend.load()
    backend.attach()
    own = only_instance(paths)
    assert own.name.startswith(f"kmodgate-{os.getpid()}-")
    assert (own / "trace_clock").read_text().strip() == "mono"
    assert (own / "buffer_percent").read_text().strip() == "0"
    assert (own / "tracing_on").read_text().strip() == "1"
    for name in tracing.FORMATS:
        assert (own / f"events/{name}/enable").read_text().strip() == "1"
    assert (paths.sys / "kernel/tracing/trace_clock").read_text() == "[local] global mono\n"
    backend.detach()
    assert list((paths.sys / "kernel/tracing/instances").iterdir()) == []
    backend.close()
    backend.close()


def test_what_a_killed_agent_left_is_removed(paths: NodePaths, caplog: pytest.LogCaptureFixture) -> None:
    instances = paths.sys / "kernel/tracing/instances"
    for name in ("kmodgate-99999-12", "kmodgate-notes", "other"):
        (instances / name).mkdir()
    add_process(paths.proc, 99999, started=13)  # its number was given out again
    caplog.set_level("INFO")
    with TracefsBackend(paths) as backend:
        backend.attach()
        assert "removed 1 trace instance" in caplog.text
        assert not (instances / "kmodgate-99999-12").exists()
        assert (instances / "kmodgate-notes").exists()
        assert (instances / "other").exists()


def test_another_agent_that_runs_is_an_error(paths: NodePaths) -> None:
    add_process(paths.proc, 99999, started=12)
    (paths.sys / "kernel/tracing/instances/kmodgate-99999-12").mkdir()
    with (
        TracefsBackend(paths) as backend,
        pytest.raises(HookError, match=r"another agent runs.*process 99999"),
    ):
        backend.attach()


def test_a_switched_off_instance_is_switched_on(
    backend: TracefsBackend, ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    backend.settle()
    assert caplog.text == ""
    (ring.directory / "events/module/module_load/enable").write_text("0\n")
    (ring.directory / "tracing_on").write_text("0\n")
    backend.settle()
    assert "switched off by somebody" in caplog.text
    assert (ring.directory / "tracing_on").read_text() == "1\n"


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("kernel/tracing/trace_clock", "mount -t tracefs"),
        ("kernel/tracing/instances", "no instances"),
        ("kernel/tracing/events/syscalls/sys_exit_init_module/format", "CONFIG_FTRACE_SYSCALLS"),
        ("kernel/tracing/events/module/module_load/format", "module:module_load"),
    ],
)
def test_what_a_kernel_lacks_is_said(paths: NodePaths, gone: str, words: str) -> None:
    place = paths.sys / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert any(words in text for text in lacks(paths))
    with pytest.raises(HookError, match=words):
        TracefsBackend(paths)


def test_a_strange_format_stops_the_start(paths: NodePaths) -> None:
    (paths.sys / "kernel/tracing/events/module/module_load/format").write_text("ID: 5\n" + tracing.COMMON)
    with pytest.raises(HookError, match="module_load has no field name, taints"):
        TraceInstance(paths)


def test_without_the_right_to_probe_there_is_no_start(paths: NodePaths) -> None:
    status = paths.proc / str(threading.get_native_id()) / "status"
    status.write_text(status.read_text().replace("CapEff:\t0000000000010000", "CapEff:\t0"))
    with TracefsBackend(paths) as backend, pytest.raises(HookError, match="CAP_SYS_MODULE"):
        backend.load()
    status.write_text(status.read_text().replace(f"Tgid:\t{os.getpid()}", "Tgid:\t1"))
    with TracefsBackend(paths) as backend, pytest.raises(HookError, match="hostPID"):
        backend.load()


def test_the_probe_is_seen_and_not_counted(
    backend: TracefsBackend, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend._tid = TID

    def load() -> int:
        ring.write(0, tracing.enter_init(TID, 1, 128), tracing.exit_init(TID, -errno.ENOEXEC))
        return errno.ENOEXEC

    monkeypatch.setattr("kmodgate.hooks.tracefs.load_nothing", load)
    found = backend.probe()
    assert (found.errno, found.first_hook, found.ended) == (errno.ENOEXEC, True, True)
    monkeypatch.setattr("kmodgate.hooks.tracefs.load_nothing", lambda: errno.ENOEXEC)
    found = backend.probe()
    assert (found.first_hook, found.ended) == (False, False)
    assert backend.attempts() == 0


def test_small_buffers_where_there_are_many_cpus() -> None:
    sizes = [
        max(traceinstance._LEAST_KIB, min(traceinstance._BUFFER_KIB, traceinstance._TOTAL_KIB // cpus))
        for cpus in (1, 2, 64, 128, 4096)
    ]
    assert sizes == [512, 512, 512, 256, 64]


def test_mounts_are_read_again_when_they_change(paths: NodePaths) -> None:
    table = MountTable(paths.proc)
    mount = table.find(30)
    assert mount is not None
    assert (mount.fs_type, table.find(77)) == ("tmpfs", None)
    assert not table.counts_as_root(mount, None)
    assert not table.counts_as_root(None, None)
    assert table.root is None
    table.close()
    table.close()


@settings(deadline=None)  # a busy machine takes its time
@given(st.text(max_size=400), st.text(max_size=200), st.binary(max_size=40))
def test_no_caller_does_harm(status: str, stat: str, comm: bytes) -> None:
    """Whatever procfs says of a caller is a caller or nothing."""
    import tempfile  # noqa: PLC0415  # hypothesis and fixtures of functions do not go together

    with tempfile.TemporaryDirectory() as directory:
        proc = Path(directory)
        (proc / "5").mkdir()
        (proc / "5/status").write_text(status, errors="surrogatepass")
        (proc / "5/stat").write_text(stat, errors="surrogatepass")
        (proc / "5/comm").write_bytes(comm)
        found = read_caller(proc, 5)
        assert found is None or isinstance(found, Caller)
        assert read_caller(proc, 6) is None


def test_a_descriptor_that_is_gone_is_nothing(paths: NodePaths) -> None:
    table = MountTable(paths.proc)
    directory = add_process(paths.proc, TID)
    assert read_file(paths.proc, TID, 3, table) is None
    (directory / "fd/3").symlink_to("/tmp/x")
    (directory / "fdinfo/3").write_text("mnt_id:\tmany\n")
    assert read_file(paths.proc, TID, 3, table) is None
    table.close()
