# SPDX-License-Identifier: Apache-2.0
"""The programs' decisions, by running them: the table decides, and each attempt is counted once.

Only ``init_module`` is played here: a file's facts are read from the kernel whose headers these are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodgate.hooks import abi, bcc, bccheaders
from kmodgate.hooks.bcc import BccBackend
from kmodgate.hooks.generations import Generations
from kmodgate.hooks.known import KnownDigests
from kmodgate.hooks.library import TestRunOpts as Options
from kmodgate.hooks.library import library
from kmodgate.model import By, EffectivePolicy, FailurePolicy, Mode, Policy, Reason, Verdict
from kmodgate.policy import compile_table

pytestmark = [pytest.mark.bpf, pytest.mark.timeout(600)]

PROGRAMS = (
    "kmg_init_module",
    "kmg_load_data",
    "kmg_signature_return",
    "kmg_module_load",
    "kmg_return",
    "kmg_introduce",
)


class Played(BccBackend):
    """The backend over programs that are run and not attached; the compiler's process is the real one."""

    def __init__(self, text: str, flags: list[str]) -> None:
        KnownDigests.__init__(self)
        Generations.__init__(self, None)
        self.timings = {}
        self.overrides = True
        self._text = text
        self._here = flags
        self._loaded = bcc._Loaded({}, {})
        self._compiler = None
        self._attachments = []
        self._maps = []
        self._task = 0

    def _programs(self) -> list[tuple[str, str]]:
        return [(name, "tracepoint") for name in PROGRAMS]

    def _places(self) -> Iterator[tuple[str, str, str]]:
        return iter(())

    def _start_compiler(self, flags: list[str], environment: dict[str, str]) -> None:
        super()._start_compiler([*self._here, *flags], environment)

    def play(self, program: str, argument: int = 0) -> None:
        """Run a program in this thread, its first argument given; 0 for the registers of a system call."""
        arguments = (ctypes.c_uint64 * 2)(argument & 0xFFFFFFFFFFFFFFFF, 0)
        opts = Options(sz=ctypes.sizeof(Options))
        opts.ctx_in, opts.ctx_size_in = ctypes.addressof(arguments), ctypes.sizeof(arguments)
        fd = self._loaded.fds[program]
        library.integer(program, library.lib.bpf_prog_test_run_opts(fd, ctypes.byref(opts)))

    def call(self, *middle: tuple[str, int], result: int = 0) -> int:
        """One ``init_module``: the errno that the entry gives, or 0 and the rest of the call."""
        self._introduction.task = 0
        self.play("kmg_init_module")
        refused = int(self._introduction.task)
        if not refused:
            self.play("kmg_load_data")
            for program, argument in middle:
                self.play(program, argument)
        self.play("kmg_return", -refused if refused else result)
        return refused

    def told(self) -> list[tuple[Verdict, Reason, int]]:
        """Verdict, reason and result of each event."""
        records = list(self.events())
        return [(Verdict(one.verdict), Reason(one.reason), one.result) for one in records]


TRUSTED = ("kmg_signature_return", 0)
NO_KEY = ("kmg_signature_return", -errno.ENOKEY)
LOADED = ("kmg_module_load", 0)


@pytest.fixture
def backend(flags: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    tree = Path(os.environ["BCC_KERNEL_SOURCE"])
    monkeypatch.setattr(bccheaders, "find", lambda _release: bccheaders.Headers((tree,)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Played(text, [flag for flag in flags if not flag.startswith("-DKMG")]) as backend:
        backend.load()
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert more < 40 << 10  # KiB: LLVM is somewhere else
        yield backend


def policy(word: Policy, mode: Mode, **more: bool | FailurePolicy) -> EffectivePolicy:
    load_pin = word is not Policy.ENFORCE
    return EffectivePolicy(word, mode, **{"load_pin": load_pin, **more})  # type: ignore[arg-type]  # by name


def put(backend: Played, wanted: EffectivePolicy) -> None:
    backend.set_policy(compile_table(wanted))
    backend.heartbeat()


def counted(backend: Played) -> dict[tuple[Verdict, Reason, By], int]:
    return {(verdict, reason, by): n for verdict, reason, _, by, n in backend.loads()}


def test_each_policy_at_the_entry(backend: Played) -> None:
    """One compilation for all of them: it costs seconds."""
    put(backend, policy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE))
    assert backend.call() == errno.EPERM
    assert backend.told() == [(Verdict.DENY, Reason.NO_FILE, -errno.EPERM)]

    put(backend, policy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=False))
    assert backend.call(LOADED) == 0
    assert backend.told() == [(Verdict.ALLOW, Reason.NOT_RESTRICTED, 0)]

    put(backend, policy(Policy.DO_NOT_ENFORCE, Mode.AUDIT))
    assert backend.call(LOADED) == 0
    assert backend.told() == [(Verdict.WOULD_DENY, Reason.NO_FILE, 0)]

    # Nobody knows what memory holds when the kernel copies it, whatever failurePolicy says.
    ignore = FailurePolicy.IGNORE
    put(backend, policy(Policy.ENFORCE, Mode.ENFORCE, kernel_keyrings=False, failure_policy=ignore))
    assert backend.call() == errno.EKEYREJECTED
    assert backend.told() == [(Verdict.DENY, Reason.UNREADABLE, -errno.EKEYREJECTED)]

    # Revocations count where nothing else is asked for.
    put(backend, policy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=False, revocations=True))
    assert backend.call() == errno.EKEYREJECTED
    assert backend.told() == [(Verdict.DENY, Reason.UNREADABLE, -errno.EKEYREJECTED)]

    # Audit waits for the kernel's keyrings.
    put(backend, policy(Policy.ENFORCE, Mode.AUDIT))
    assert backend.call(TRUSTED, LOADED) == 0
    assert backend.call(NO_KEY, LOADED) == 0
    assert backend.call(LOADED) == 0
    assert backend.call(result=-errno.ENOEXEC) == 0  # of no verdict
    assert backend.call(("kmg_signature_return", -errno.EKEYREJECTED), result=-errno.EKEYREJECTED) == 0
    assert backend.told() == [
        (Verdict.ALLOW, Reason.TRUSTED_SIGNATURE, 0),
        (Verdict.WOULD_DENY, Reason.UNTRUSTED_SIGNER, 0),
        (Verdict.WOULD_DENY, Reason.UNSIGNED, 0),
        (Verdict.DENY, Reason.BAD_SIGNATURE, -errno.EKEYREJECTED),
    ]
    assert counted(backend) == {
        (Verdict.DENY, Reason.NO_FILE, By.KMODGATE): 1,
        (Verdict.ALLOW, Reason.NOT_RESTRICTED, By.KMODGATE): 1,
        (Verdict.WOULD_DENY, Reason.NO_FILE, By.KMODGATE): 1,
        (Verdict.DENY, Reason.UNREADABLE, By.KMODGATE): 2,
        (Verdict.ALLOW, Reason.TRUSTED_SIGNATURE, By.KERNEL): 1,
        (Verdict.WOULD_DENY, Reason.UNTRUSTED_SIGNER, By.KMODGATE): 1,
        (Verdict.WOULD_DENY, Reason.UNSIGNED, By.KMODGATE): 1,
        (Verdict.DENY, Reason.BAD_SIGNATURE, By.KERNEL): 1,
    }
    assert (backend.attempts(), backend.undecided(), backend.loaded_unseen()) == (10, 1, 0)
    assert sum(counted(backend).values()) + backend.undecided() == backend.attempts()

    # A module that appears without a load that was seen to begin.
    backend.play("kmg_module_load")
    assert backend.loaded_unseen() == 1
    # The end of a call that never began.
    backend.play("kmg_return", -errno.EPERM)
    assert backend.stat(abi.Stat.REFUSED_EARLY) == 1


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        (policy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE), errno.EPERM),
        (policy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=False), errno.EKEYREJECTED),
        (policy(Policy.ENFORCE, Mode.ENFORCE, kernel_keyrings=False), errno.EKEYREJECTED),
        (policy(Policy.ENFORCE, Mode.AUDIT), errno.EKEYREJECTED),
        (policy(Policy.DO_NOT_ENFORCE, Mode.AUDIT), errno.EKEYREJECTED),
    ],
)
def test_the_self_probe(backend: Played, wanted: EffectivePolicy, number: int) -> None:
    put(backend, policy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE))
    backend.call()
    (record,) = backend.events()
    put(backend, wanted)
    before = backend.attempts(), counted(backend)
    backend._control.probe = record.tgid << 32 | record.tid
    assert backend.call() == number
    seen = (abi.Stat.PROBE_FIRST_HOOK, abi.Stat.PROBE_SIGNATURE, abi.Stat.PROBE_BYTES, abi.Stat.PROBE_EXIT)
    assert [backend.stat(stat) for stat in seen] == [1, 1, 1, 1]
    # Neither counted nor told.
    assert (backend.attempts(), counted(backend)) == before
    assert backend.told() == []


def test_a_table_that_is_being_written_refuses(backend: Played) -> None:
    put(backend, policy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=False))
    backend._control.generation += 1  # nothing was written for it
    assert backend.call() == errno.EPERM
    assert backend.told() == [(Verdict.DENY, Reason.STATE_MISSING, -errno.EPERM)]
    assert backend.stat(abi.Stat.TABLE_RACED) >= 1
