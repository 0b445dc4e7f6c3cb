# SPDX-License-Identifier: Apache-2.0
"""What the attack tests share: a module that must never get in, and a watch over the invariants.

The *pest* is a test module under another name, one byte away from the good one. The name is
what ``/proc/modules`` shows, so "did it get in?" has an answer that kmodgate has no part in.

Where the rung admits by the kernel's keyrings alone, the good one is a module of the kernel's own
package, and the pest the same with a byte of its end marker changed: unsigned. There the taint
``E`` gives the answer.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.vm import kernels, lab

DIGESTS: Final = "digests" in kernels.this().capabilities
GOOD: Final = "kmgtest" if DIGESTS else "dummy"
PEST: Final = "kmgpest" if DIGESTS else GOOD
# Modules that the configured certificates trust, and the kernel does not.
OPERATORS: Final = frozenset({GOOD, "kmgneeds", "v4l2loopback"} if DIGESTS else ())
REFUSED: Final = "EKEYREJECTED"
_NAME_LENGTH: Final = 56  # of struct module's name on a 64-bit kernel
_MARKER: Final = b"~Module signature appended~\n"

libc = ctypes.CDLL(None, use_errno=True)


def pest_of(module: bytes) -> bytes:
    """The same module with one byte changed: the pest's name, and a signature that no longer fits."""
    if not DIGESTS:
        return module.removesuffix(_MARKER[-1:]) + b"." if module.endswith(_MARKER) else module
    field = GOOD.encode().ljust(_NAME_LENGTH, b"\0")
    assert module.count(field) == 1
    return module.replace(field, PEST.encode().ljust(_NAME_LENGTH, b"\0"))


def pest_byte(module: bytes) -> tuple[int, bytes, bytes]:
    """Where the good module and its pest differ, and the byte of each."""
    pest = pest_of(module)
    (place,) = [at for at, (one, other) in enumerate(zip(module, pest, strict=True)) if one != other]
    return place, module[place : place + 1], pest[place : place + 1]


def signature_of(module: bytes) -> bytes:
    """What is appended to a signed module, struct module_signature and end mark included."""
    (length,) = struct.unpack(">I", module[-len(_MARKER) - 4 : -len(_MARKER)])
    return module[-len(_MARKER) - 12 - length :]


class Signer:
    """A key of this run, whose certificate the node trusts: makes modules that nobody has seen.

    Where no certificate can be trusted it hands out a module of the kernel's, always the same.
    """

    def __init__(self, directory: Path) -> None:
        self._key, self.certificate = directory / "attack.key", directory / "attack.pem"
        self._directory = directory
        self._count = 0
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", self._key, "-out", self.certificate, "-subj", "/CN=attacks", "-days", "9")  # fmt: skip

    def unsigned(self) -> bytes:
        """A module that anybody could have built."""
        if DIGESTS:
            return (lab.MODULES / "kmgtest.unsigned.ko").read_bytes()
        signed = lab.in_tree(GOOD).read_bytes()
        return signed.removesuffix(signature_of(signed))

    def fresh(self) -> bytes:
        """A trusted module with a digest of its own."""
        if not DIGESTS:
            return lab.in_tree(GOOD).read_bytes()
        payload = (lab.MODULES / "kmgtest.unsigned.ko").read_bytes() + os.urandom(16)
        source = self._directory / "attack.payload"
        source.write_bytes(payload)
        signature = subprocess.run(
            ["openssl", "cms", "-sign", "-binary", "-noattr", "-nocerts", "-md", "sha256", "-signer",
             self.certificate, "-inkey", self._key, "-in", source, "-outform", "DER"],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        # struct module_signature: id_type 2 is PKCS#7, all else zero, then the length.
        return payload + signature + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, len(signature)) + _MARKER

    def fresh_file(self, directory: Path) -> Path:
        """The same as a file."""
        self._count += 1
        path = directory / f"fresh-{self._count}.ko"
        path.write_bytes(self.fresh())
        return path

    def config(self, policy: str = lab.ENFORCE, **ours: object) -> str:
        """A node config that trusts this key beside the operator's."""
        if not DIGESTS:
            return lab.config(policy, **{"holdTimeout": "3s", **ours})
        certificates = [lab.CERTS / "operator.pem", lab.CERTS / "operator-ec.pem", self.certificate]
        return lab.config(policy, **{"trust": {"certificates": [*map(str, certificates)]}, **ours})


def loaded() -> dict[str, bool]:
    """Modules that are loaded, and whether the kernel verified each (no taint ``E``)."""
    found = {}
    for line in Path("/proc/modules").read_text().splitlines():
        name = line.split()[0]
        try:
            found[name] = "E" not in Path(f"/sys/module/{name}/taint").read_text()
        except FileNotFoundError:  # on its way in or out
            found[name] = "E" not in line.rpartition("(")[2]
    return found


class Watch:
    """The invariants, from a moment on, seen from outside.

    Args:
        agent: the running agent.
        signer: makes fresh modules.
        directory: on tmpfs, for this test alone.

    Attributes:
        preempted: the test let the kernel preempt, so a load's state may be busy (6.1).
    """

    def __init__(self, agent: lab.Agent, signer: Signer, directory: Path) -> None:
        self.agent = agent
        self.signer = signer
        self.directory = directory
        self.preempted = False
        self._before = lab.metrics()
        self._modules = loaded()

    def pest_file(self, name: str = "pest.ko") -> Path:
        """A pest that nobody has seen before: signed as a good module, then changed."""
        path = self.directory / name
        path.write_bytes(pest_of(self.signer.fresh()))
        return path

    def moved(self, **labels: str) -> float:
        """Loads with these labels that were counted since."""
        return lab.counted(lab.metrics(), **labels) - lab.counted(self._before, **labels)

    def check_modules(self) -> None:
        """Nothing is loaded that the policy did not allow."""
        fresh = {name: verified for name, verified in loaded().items() if name not in self._modules}
        assert PEST == GOOD or PEST not in fresh
        strange = {name for name, verified in fresh.items() if not verified} - OPERATORS
        assert not strange

    def check_counts(self) -> None:
        """Each attempt was counted once, and nothing got in unseen."""
        moved = self.moves()
        assert moved["loaded_unseen"] == 0
        if not self.preempted:
            assert moved["state_missing"] == 0, moved
        # Without the last two, as on every kernel that does not preempt, this is an equation. A
        # load whose state is busy at a later hook is taken for another attempt there.
        gap = moved["attempts"] + moved["redecided"] - moved["counted"] - moved["undecided"]
        assert 0 <= gap <= moved["misses"] + moved["state_missing"], moved

    def moves(self) -> Mapping[str, float]:
        """What the counting equation is made of, since the beginning."""
        now, before = lab.metrics(), self._before
        names = {
            "attempts": "kmodgate_module_load_attempts_total",
            "undecided": "kmodgate_module_loads_undecided_total",
            "misses": "kmodgate_program_misses_total",
            **{
                kind: f'kmodgate_kernel_errors_total{{kind="{kind}"}}'
                for kind in ("redecided", "loaded_unseen", "refused_early", "storage_failed")
            },
        }
        moved = {short: now[name] - before[name] for short, name in names.items()}
        missing = lab.counted(now, reason="state_missing") - lab.counted(before, reason="state_missing")
        return {**moved, "state_missing": missing, "counted": lab.counted(now) - lab.counted(before)}


def configure(agent: lab.Agent, text: str, *, seconds: float = 180.0) -> None:
    """Like ``Agent.configure``, with patience for an agent that loaders keep from its work."""
    count = agent.log().count("config reloaded")
    agent.rewrite(text)
    agent.wait_for(lambda: agent.log().count("config reloaded") > count, "reload", seconds)


def run(*words: str | Path) -> str:
    """Run a program that must succeed; its output."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def meanwhile(step: Callable[[], object]) -> Iterator[None]:
    """Another thread repeats ``step`` while the block runs; what it raises fails the test."""
    over = threading.Event()
    raised: list[BaseException] = []

    def repeat() -> None:
        try:
            while not over.is_set():
                step()
        except BaseException as error:  # noqa: BLE001  # handed over to the test's own thread
            raised.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if raised:
        raise raised[0]


def until_seen(
    load: Callable[[], lab.Loaded],
    must: Iterable[str],
    *,
    may: Iterable[str] = (),
    rounds: int = 40,
    seconds: float = 180.0,
) -> Counter[str]:
    """Repeat a load until each outcome of ``must`` was seen, so that the race is known to be one.

    Args:
        load: one attempt; what gets in under the good name is unloaded again.
        must: outcomes to see.
        may: outcomes that are no surprise either.
        rounds: attempts to make at least.
        seconds: after which it fails.
    """
    wanted, fine = set(must), {*must, *may}
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while sum(seen.values()) < rounds or not wanted <= seen.keys():
        assert time.monotonic() < deadline, f"within {seconds} s only {dict(seen)}, not all of {wanted}"
        outcome = load()
        if outcome.ok:
            lab.unload(GOOD)
        seen[outcome.result] += 1
        assert outcome.result in fine, outcome
    return seen


def in_child(act: Callable[[], lab.Loaded]) -> str:
    """The outcome of a load that a forked process makes; ``signal N`` if a signal ended it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, act().result.encode())
        except BaseException as error:  # noqa: BLE001  # nothing may unwind into pytest's copy
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said
