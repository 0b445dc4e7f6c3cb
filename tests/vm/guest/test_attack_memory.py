# SPDX-License-Identifier: Apache-2.0
"""Attacks on ``init_module``: memory that changes, differs between readers, or goes away."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.vm import attack, lab
from tests.vm.attack import REFUSED
from tests.vm.rawcalls import PAGE, address_of, faulting

_INIT_MODULE = 175


def init_at(address: int, length: int) -> lab.Loaded:
    """``init_module(2)`` of what lies at an address by the time that somebody looks."""
    start = time.perf_counter()
    arguments = (ctypes.c_void_p(address), ctypes.c_ulong(length), b"")
    result = attack.libc.syscall(_INIT_MODULE, *arguments)
    name = "ok" if result == 0 else errno.errorcode[ctypes.get_errno()]
    return lab.Loaded(name, (time.perf_counter() - start) * 1e6)


@contextmanager
def another_process(step: Callable[[], None]) -> Iterator[None]:
    """A forked process repeats ``step`` on shared memory for the time of the block."""
    child = os.fork()
    if child == 0:
        while True:
            step()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_memory_that_another_process_changes(watch: attack.Watch) -> None:
    """Each byte of the good module and of the pest was there at some time; never was a mixture judged."""
    data = watch.signer.fresh()
    place, good, pest = attack.pest_byte(data)
    memory = mmap.mmap(-1, len(data))
    memory.write(data)

    def change() -> None:
        memory[place : place + 1] = pest
        memory[place : place + 1] = good

    with another_process(change):
        attack.until_seen(lambda: init_at(address_of(memory), len(data)), {"ok", REFUSED})


def test_memory_that_changes_slowly(watch: attack.Watch) -> None:
    """The agent reads one module from memory and the kernel copies another."""
    good = watch.signer.fresh()
    memory = mmap.mmap(-1, len(good))
    faces = [attack.pest_of(good), good]

    def change() -> None:
        for face in faces:
            memory[:] = face
            time.sleep(0.003)

    with another_process(change):
        attack.until_seen(lambda: init_at(address_of(memory), len(good)), {"ok", REFUSED})


def test_memory_that_is_a_file(watch: attack.Watch) -> None:
    """A shared mapping of a file, which is written through its descriptor."""
    path = watch.signer.fresh_file(watch.directory)
    data = path.read_bytes()
    place, good, pest = attack.pest_byte(data)
    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, len(data))

    def change() -> None:
        os.pwrite(fd, pest, place)
        os.pwrite(fd, good, place)

    with another_process(change):
        attack.until_seen(lambda: init_at(address_of(memory), len(data)), {"ok", REFUSED})
    os.close(fd)


def test_pages_that_are_made_for_each_reader(watch: attack.Watch) -> None:
    """userfaultfd: nobody can tell which page the next reader gets."""
    good = watch.signer.fresh()
    faces = [good, attack.pest_of(good)]
    # The agent cannot read a page that is missing (EFAULT), so it has to know the good one before.
    assert lab.init(good).ok
    lab.unload(attack.GOOD)

    def page(number: int, _made: int) -> bytes:
        return random.choice(faces)[number * PAGE : (number + 1) * PAGE]

    with faulting(len(good), page) as memory:

        def throw_away() -> None:
            memory.madvise(mmap.MADV_DONTNEED)
            time.sleep(0.002)

        with attack.meanwhile(throw_away):
            attack.until_seen(lambda: init_at(address_of(memory), len(good)), {"ok", REFUSED})


def test_pages_that_come_late(watch: attack.Watch) -> None:
    """The kernel waits for its own copy, the agent for its one: neither may take the other's place."""
    good = watch.signer.fresh()
    pest = attack.pest_of(good)

    def slowly(number: int, _made: int) -> bytes:
        time.sleep(0.5)
        return pest[number * PAGE : (number + 1) * PAGE]

    with faulting(len(good), slowly) as memory:
        assert init_at(address_of(memory), len(good)).result == REFUSED


def test_memory_that_goes_away(watch: attack.Watch) -> None:
    """Before the kernel copies it the call fails; afterwards it does not matter any more."""
    data = watch.signer.fresh()
    size = -(-len(data) // PAGE) * PAGE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(data)
    gone, there = 0, mmap.PROT_READ | mmap.PROT_WRITE

    def come_and_go() -> None:
        for protection in (gone, there):
            attack.libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection)
            time.sleep(0.001)

    address = address_of(memory)
    with attack.meanwhile(come_and_go):
        # Where the agent comes while the memory is away, it cannot answer: refused.
        attack.until_seen(lambda: init_at(address, len(data)), {"ok", "EFAULT"}, may={REFUSED})


def test_lengths_that_are_not_those_of_the_module(watch: attack.Watch) -> None:
    """A trusted module with more behind it is unsigned; with less it is not the same."""
    good = watch.signer.fresh()
    before = watch.moves()
    pest = attack.pest_of(good)
    for data in (good + b"\0", good + pest, pest + attack.signature_of(good), good[:-1]):
        assert lab.init(data).result == REFUSED
    assert lab.init(good[:63]).result == "ENOEXEC"
    assert init_at(0, len(good)).result == "EFAULT"
    assert init_at(address_of(mmap.mmap(-1, PAGE)), 1 << 46).result in {"ENOMEM", "EFAULT"}
    after = watch.moves()
    assert after["counted"] - before["counted"] == 4


def test_a_loader_that_is_gone_when_the_agent_looks(watch: attack.Watch) -> None:
    """Threads of a process that ends in the middle of their loads."""
    for _ in range(6):
        child = os.fork()
        if child == 0:
            for _ in range(3):
                unknown = os.urandom(4096)
                threading.Thread(target=lab.init, args=(unknown,), daemon=True).start()
            time.sleep(0.01)
            os._exit(0)
        os.waitpid(child, 0)
    assert lab.init(watch.signer.fresh()).ok
