# SPDX-License-Identifier: Apache-2.0
"""Ask a real kernel about signatures: boot Debian's with a certificate of ours built in.

Each of Debian's kernels carries one certificate, the one that its build made for its own
modules. Here that certificate's bytes are replaced by those of another of the same length; the
code stays as it is. The guest is one static program in an initramfs (``guest/load-cases.c``),
which loads every case under ``sig_enforce`` and writes down what the kernel answered: ten
thousand in half a minute, under emulation.
"""

from __future__ import annotations

import errno
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import apt, cache, initramfs, kernel, smallkernel, vmlinux
from .errors import VmDied, VmToolError
from .host import IMAGES, find, run
from .initramfs import Node
from .machine import Machine, arguments
from .testmodules import DKMS_PACKAGES

LOADER = IMAGES / "guest" / "load-cases.c"
# Digests that some of Debian's kernels build as modules, each after what it needs.
_CRYPTO = ("md4", "sha512_generic", "libsha3", "sha3_generic", "sha3", "streebog_generic")
_FOLDER, _PROGRAM, _TEXT = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
_LINE = re.compile(rb"^(mod|key|case) (\S+) (\d+)\r?$|^crypto (\S+)\r?$|^(enforcing|done)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Case:
    """One load.

    Attributes:
        data: the module file.
        api: ``f`` for ``finit_module``, ``i`` for ``init_module``.
        flags: of ``finit_module``.
    """

    data: bytes
    api: str = "f"
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """What one kernel said.

    Attributes:
        release: as ``uname -r`` prints it.
        cases: errno name of each case; None for success.
        keys: the same for each certificate that was added.
        algorithms: names in ``/proc/crypto`` at the end.
    """

    release: str
    cases: Mapping[str, str | None]
    keys: Mapping[str, str | None]
    algorithms: frozenset[str]


@dataclass(frozen=True, slots=True)
class Target:
    """A kernel to ask.

    Attributes:
        release: for people.
        image: the ELF file.
        certificate: DER of the one that its build made; ours must be as long.
        modules: that its crypto needs, in the order to load them.
    """

    release: str
    image: bytes
    certificate: bytes
    modules: Sequence[bytes] = ()

    @classmethod
    def of_image(cls, release: str, image: bytes, modules: Sequence[bytes] = ()) -> Target:
        """Find the certificate in the image.

        Raises:
            VmToolError: there is not exactly one, or not in one place.
        """
        own, _ = vmlinux.certificates(image)
        if len(own) != 1 or image.count(own[0]) != 1:
            raise VmToolError(f"kernel {release} does not carry exactly one build-time key in one place")
        return cls(release, image, own[0], modules)

    def with_certificate(self, der: bytes) -> bytes:
        """The image with another certificate built in."""
        if len(der) != len(self.certificate):
            raise VmToolError(
                f"the certificate has {len(der)} bytes and must take the place of {len(self.certificate)}"
            )
        return self.image.replace(self.certificate, der)


def debian(suite: str) -> Target:
    """The kernel of a Debian suite."""
    its_kernel = kernel.get(apt.resolve(suite, DKMS_PACKAGES))
    by_name = {initramfs.module_name(path.name): path for path in its_kernel.modules.rglob("*.ko*")}
    modules = [initramfs.plain(by_name[name]) for name in _CRYPTO if name in by_name]
    return Target.of_image(its_kernel.release, its_kernel.vmlinux.read_bytes(), modules)


def small() -> Target:
    """The small kernel, which has ML-DSA."""
    release = smallkernel.source_package().removeprefix("linux-source-")
    return Target.of_image(f"{release} small", smallkernel.get().read_bytes())


def _loader() -> bytes:
    def build(target: Path) -> None:
        run(["clang", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", target, LOADER])

    return cache.entry(f"loader-{cache.digest([LOADER])}", build).read_bytes()


def _archive(modules: Sequence[bytes], keys: Mapping[str, bytes], cases: Sequence[Case]) -> bytes:
    nodes = [Node(name, _FOLDER) for name in ("proc", "sys", "dev", "mods", "keys", "cases")]
    nodes.append(Node("init", _PROGRAM, _loader()))
    nodes += (Node(f"mods/{number}", _TEXT, data) for number, data in enumerate(modules))
    nodes += (Node(f"keys/{number:03}", _TEXT, data) for number, data in enumerate(keys.values()))
    nodes += (
        Node(f"cases/{number:06}.{case.api}{case.flags}", _TEXT, case.data)
        for number, case in enumerate(cases)
    )
    return initramfs.newc(nodes)


def boot(
    image: bytes | Path,
    archive: bytes,
    *,
    timeout: float = 900,
    disk: Path | None = None,
    append: str = "loglevel=0",
) -> bytes:
    """Boot a kernel with a lab's initramfs to its end; the console's text.

    Raises:
        VmDied: it did not come to its end in time.
    """
    with tempfile.TemporaryDirectory(prefix="kmodgate-siglab-") as name:
        folder = Path(name)
        if isinstance(image, bytes):
            (folder / "kernel").write_bytes(image)
            image = folder / "kernel"
        (folder / "initrd").write_bytes(archive)
        log = folder / "console"
        memory = 768 + 3 * len(archive) // (1 << 20)
        # No kernel message may come between the guest's words.
        machine = Machine(image, folder / "initrd", disk, log, accel="tcg", memory=memory, append=append)
        argv = arguments(machine, {})
        try:
            subprocess.run(
                [find("setpriv"), "--pdeathsig", "KILL", find(argv[0]), *argv[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            kept = cache.root() / "logs" / "siglab.log"
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(log, kept)
            raise VmDied(f"timeout after {timeout:.0f} s", kept, "") from error
        return log.read_bytes()


def read_console(
    text: bytes, names: Sequence[str], keys: Sequence[str]
) -> tuple[dict[str, str | None], dict[str, str | None], frozenset[str]]:
    """Errno names by case and by key, and the algorithms, from what the guest wrote.

    Raises:
        VmToolError: it did not come to its end, or enforcement was not on.
    """
    cases: dict[str, str | None] = {}
    added: dict[str, str | None] = {}
    algorithms: set[str] = set()
    words: set[bytes] = set()
    for kind, name, number, algorithm, word in _LINE.findall(text):
        answer = None if number == b"0" else errno.errorcode.get(int(number or b"0"))
        if kind == b"case":
            cases[names[int(name.partition(b".")[0])]] = answer
        elif kind == b"key":
            added[keys[int(name)]] = answer
        elif algorithm:
            algorithms.add(algorithm.decode())
        words.add(word)
    if not {b"enforcing", b"done"} <= words:
        tail = text[-1500:].decode(errors="replace")
        raise VmToolError(f"the guest did not load every case under sig_enforce:\n{tail}")
    return cases, added, frozenset(algorithms)


def ask(target: Target, certificate: bytes, keys: Mapping[str, bytes], cases: Mapping[str, Case]) -> Answers:
    """Load every case.

    Args:
        target: the kernel.
        certificate: DER to build in, as long as the target's own.
        keys: more certificates, signed by it, for the secondary keyring.
        cases: what to load.

    Raises:
        VmDied: the machine hung.
        VmToolError: it could not be started or did not answer.
    """
    archive = _archive(target.modules, keys, list(cases.values()))
    text = boot(target.with_certificate(certificate), archive)
    found, added, algorithms = read_console(text, list(cases), list(keys))
    return Answers(target.release, found, added, algorithms)
