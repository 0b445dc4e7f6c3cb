# SPDX-License-Identifier: Apache-2.0
"""Attacks with files: the bytes, or the file, change between open and load, or between two readers."""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.vm import attack, lab
from tests.vm.attack import REFUSED
from tests.vm.rawcalls import Ring

_RENAME_EXCHANGE = 2
_PUNCH_HOLE_KEEP_SIZE = 3
_CLONE_FILES = 0x400
_F_SETLEASE = 1024
_F_SEAL_FUTURE_WRITE = 0x10
BUSY = "ETXTBSY"


# Descriptors of odd origin. Each way takes bytes and loads them.


def load_and_close(fd: int) -> lab.Loaded:
    try:
        return lab.finit_fd(fd)
    finally:
        os.close(fd)


def reopened(fd: int) -> lab.Loaded:
    """A file that is open for writing cannot be loaded: open it again, close the writer."""
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    return load_and_close(reader)


def written(directory: Path, data: bytes) -> Path:
    path = directory / "odd.ko"
    path.write_bytes(data)
    return path


def memfd(_directory: Path, data: bytes) -> lab.Loaded:
    fd = os.memfd_create("module")
    os.write(fd, data)
    return reopened(fd)


def sealed_memfd(_directory: Path, data: bytes) -> lab.Loaded:
    fd = os.memfd_create("module", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return reopened(fd)


def tmpfile(directory: Path, data: bytes) -> lab.Loaded:
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, data)
    return reopened(fd)


def tmpfile_on_the_root(_directory: Path, data: bytes) -> lab.Loaded:
    return tmpfile(Path("/root"), data)


def unlinked(directory: Path, data: bytes) -> lab.Loaded:
    path = written(directory, data)
    fd = os.open(path, os.O_RDONLY)
    path.unlink()
    return load_and_close(fd)


def hard_linked(directory: Path, data: bytes) -> lab.Loaded:
    path = written(directory, data)
    other = directory / "other-name"
    other.hardlink_to(path)
    return load_and_close(os.open(other, os.O_RDONLY))


def behind_a_symlink(directory: Path, data: bytes) -> lab.Loaded:
    link = directory / "link.ko"
    link.symlink_to(written(directory, data))
    return load_and_close(os.open(link, os.O_RDONLY))


def high_number(directory: Path, data: bytes) -> lab.Loaded:
    fd = os.open(written(directory, data), os.O_RDONLY)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 900)
    os.close(fd)
    return load_and_close(high)


def passed_over_a_socket(directory: Path, data: bytes) -> lab.Loaded:
    """Opened and sent by a process that is gone when the load begins."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    path = written(directory, data)
    child = os.fork()
    if child == 0:
        fd = os.open(path, os.O_RDONLY)
        theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os._exit(0)
    os.waitpid(child, 0)
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    ours.close()
    theirs.close()
    return load_and_close(fds[0])


def through_another_process(directory: Path, data: bytes) -> lab.Loaded:
    """``/proc/PID/fd`` of a process that has the file open, which has no name any more."""
    path = written(directory, data)
    fd = os.open(path, os.O_RDONLY)
    child = os.fork()
    if child == 0:
        signal.pause()
    os.close(fd)
    path.unlink()
    try:
        return load_and_close(os.open(f"/proc/{child}/fd/{fd}", os.O_RDONLY))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def opened_by_io_uring(directory: Path, data: bytes) -> lab.Loaded:
    with Ring() as ring:
        return load_and_close(ring.open(os.fsencode(written(directory, data)), os.O_RDONLY))


def table_of_a_thread(directory: Path, data: bytes) -> lab.Loaded:
    """A thread with a descriptor table of its own; the process has another file at that number."""
    fd = os.open(written(directory, data), os.O_RDONLY)
    outcome: list[lab.Loaded] = []

    def load() -> None:
        if attack.libc.unshare(_CLONE_FILES) == 0:
            replaced.wait(10)
            outcome.append(lab.finit_fd(fd))
            os.close(fd)
        over.set()

    replaced, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=load)
    thread.start()
    time.sleep(0.05)  # the thread has its own table by now, or loads the harmless file below
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, fd)
    os.close(null)
    replaced.set()
    thread.join()
    os.close(fd)
    return outcome[0]


WAYS = [
    memfd,
    sealed_memfd,
    tmpfile,
    tmpfile_on_the_root,
    unlinked,
    hard_linked,
    behind_a_symlink,
    high_number,
    passed_over_a_socket,
    through_another_process,
    opened_by_io_uring,
    table_of_a_thread,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_where_a_descriptor_comes_from_changes_nothing(
    watch: attack.Watch, way: Callable[[Path, bytes], lab.Loaded]
) -> None:
    """A trusted file that nobody has seen loads at the first try; its twin with one byte changed does not."""
    good = watch.signer.fresh()
    assert way(watch.directory, attack.pest_of(good)).result == REFUSED
    for path in watch.directory.iterdir():
        path.unlink()
    assert way(watch.directory, good).ok


def test_the_pest_is_a_module_that_gets_in_where_nobody_refuses(watch: attack.Watch) -> None:
    """The control: that it is not seen in the other tests means something."""
    attack.configure(watch.agent, watch.signer.config(mode="audit"))
    assert lab.finit(watch.pest_file()).ok
    assert lab.is_loaded(attack.PEST)
    lab.unload(attack.PEST)
    assert lab.init(watch.pest_file().read_bytes()).ok
    lab.unload(attack.PEST)


def test_a_file_swapped_by_rename(watch: attack.Watch) -> None:
    """Between open and load, and all the time: what was opened is what is judged."""
    good, pest = watch.signer.fresh_file(watch.directory), watch.pest_file()

    def exchange() -> None:
        names = os.fsencode(good), os.fsencode(pest)
        assert attack.libc.renameat2(-100, names[0], -100, names[1], _RENAME_EXCHANGE) == 0

    fd = os.open(pest, os.O_RDONLY)
    exchange()  # the pest's descriptor has the good file's name by now
    assert load_and_close(fd).result == REFUSED
    with attack.meanwhile(exchange):
        attack.until_seen(lambda: lab.finit(good), {"ok", REFUSED})


def test_a_symlink_that_is_turned_round(watch: attack.Watch) -> None:
    good, pest = watch.signer.fresh_file(watch.directory), watch.pest_file()
    link, spare = watch.directory / "link", watch.directory / "spare"

    def turn() -> None:
        for target in (good, pest):
            spare.symlink_to(target)
            spare.replace(link)

    turn()
    with attack.meanwhile(turn):
        attack.until_seen(lambda: lab.finit(link), {"ok", REFUSED})


def test_bytes_written_between_open_and_load(watch: attack.Watch) -> None:
    path = watch.signer.fresh_file(watch.directory)
    place, good, pest = attack.pest_byte(path.read_bytes())
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_WRONLY)
    assert lab.finit_fd(reader).result == BUSY  # somebody can still write
    os.pwrite(writer, pest, place)
    os.close(writer)
    assert lab.finit_fd(reader).result == REFUSED
    writer = os.open(path, os.O_WRONLY)
    os.pwrite(writer, good, place)
    os.close(writer)
    assert load_and_close(reader).ok


def test_bytes_written_all_the_time(watch: attack.Watch) -> None:
    path = watch.signer.fresh_file(watch.directory)
    place, good, pest = attack.pest_byte(path.read_bytes())

    def write() -> None:
        for byte in (pest, good):
            try:
                fd = os.open(path, os.O_WRONLY)
            except OSError as error:
                assert os.strerror(error.errno or 0) == "Text file busy"  # noqa: PT017  # the kernel is reading it
                continue
            os.pwrite(fd, byte, place)
            os.close(fd)
            time.sleep(0.001)

    with attack.meanwhile(write):
        attack.until_seen(lambda: lab.finit(path), {"ok", REFUSED}, may={BUSY})


def test_bytes_written_through_a_shared_mapping(watch: attack.Watch) -> None:
    """The mapping outlives its descriptor, and the kernel knows it."""
    path = watch.signer.fresh_file(watch.directory)
    place, _, pest = attack.pest_byte(path.read_bytes())
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    assert lab.finit(path).result == BUSY
    mapping[place : place + 1] = pest
    assert lab.finit(path).result == BUSY
    mapping.close()
    assert lab.finit(path).result == REFUSED


def test_a_memfd_that_is_written_through_an_older_mapping(watch: attack.Watch) -> None:
    """Nothing denies these writes: no writer is counted, and ``F_SEAL_FUTURE_WRITE`` lets the mapping be."""
    data = watch.signer.fresh()
    fd = os.memfd_create("module", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    mapping = mmap.mmap(fd, len(data))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    place, good, pest = attack.pest_byte(data)

    def write() -> None:
        mapping[place : place + 1] = pest
        time.sleep(0.0005)
        mapping[place : place + 1] = good
        time.sleep(0.0005)

    with attack.meanwhile(write):
        attack.until_seen(lambda: lab.finit_fd(reader), {"ok", REFUSED})
    os.close(reader)
    mapping.close()


def test_bytes_written_by_io_uring(watch: attack.Watch) -> None:
    path = watch.signer.fresh_file(watch.directory)
    place, _, pest = attack.pest_byte(path.read_bytes())
    with Ring() as ring:
        writer = ring.open(os.fsencode(path), os.O_RDWR)
        assert lab.finit(path).result == BUSY
        assert ring.write(writer, pest, place) == 1
        os.close(writer)
    # The ring lets go of the file when its own cleaning comes to it.
    watch.agent.wait_for(lambda: lab.finit(path).result != BUSY, "last reference to go")
    assert lab.finit(path).result == REFUSED


def test_holes_are_punched_into_it(watch: attack.Watch) -> None:
    """The signature, then the code, turn into zeros, under the loader's feet and before."""
    path = watch.signer.fresh_file(watch.directory)
    whole = path.read_bytes()

    def punch(offset: int, length: int) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            place, size = ctypes.c_longlong(offset), ctypes.c_longlong(length)
            assert attack.libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, place, size) == 0
        finally:
            os.close(fd)

    def punch_and_mend() -> None:
        try:
            punch(4096, len(whole) - 4096)
            path.write_bytes(whole)
        except OSError as error:
            assert os.strerror(error.errno or 0) == "Text file busy"  # noqa: PT017  # the kernel is reading it
        time.sleep(0.002)

    punch(len(whole) - 40, 40)
    assert lab.finit(path).result == REFUSED
    path.write_bytes(whole)
    with attack.meanwhile(punch_and_mend):
        # Truncated on its way: an empty file is EINVAL, half of one has no marker.
        attack.until_seen(lambda: lab.finit(path), {"ok", REFUSED}, may={BUSY, "EINVAL"})


@pytest.mark.needs("digests")
@pytest.mark.parametrize("kind", [fcntl.F_WRLCK, fcntl.F_RDLCK], ids=["write", "read"])
def test_a_lease_on_the_file_holds_nobody_up(watch: attack.Watch, kind: int) -> None:
    """A write lease blocks an open for up to 45 s; the agent is not to be caught by it."""
    path, pest = watch.signer.fresh_file(watch.directory), watch.pest_file()
    previous = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        for file in (path, pest):
            fd = os.open(file, os.O_RDONLY)
            fcntl.fcntl(fd, _F_SETLEASE, kind)
            outcome = lab.finit_fd(fd)
            # With a write lease the agent cannot read: nobody knows the file, so it is refused.
            assert outcome.result == ("ok" if (file, kind) == (path, fcntl.F_RDLCK) else REFUSED)
            assert outcome.micros < 10_000_000
            os.close(fd)
        if kind == fcntl.F_RDLCK:
            lab.unload(attack.GOOD)
        # Others get their answers meanwhile and afterwards.
        assert lab.finit(watch.signer.fresh_file(watch.directory)).ok
    finally:
        signal.signal(signal.SIGIO, previous)
