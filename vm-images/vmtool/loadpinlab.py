# SPDX-License-Identifier: Apache-2.0
"""Ask the real LoadPin: boot the small kernel that has it, with a disk to pin.

The guest is one static program (``guest/loadpin-cases.c``), which tries one kind of load after the
other and writes down the errno of each. ``program`` and ``disk`` also serve the guest with Debian's
kernel, where the same program asks kmodgate.
"""

from __future__ import annotations

import errno
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import apt, cache, initramfs, kernel, siglab, smallkernel, testmodules, verity
from .errors import VmToolError
from .host import IMAGES, run
from .initramfs import Node
from .testmodules import DKMS_PACKAGES

SOURCE = IMAGES / "guest" / "loadpin-cases.c"
HEADER = "# LOADPIN_TRUSTED_VERITY_ROOT_DIGESTS"
# All phases of one boot, in this order. Which file system is pinned can be asked once for each boot.
PHASES = ("before", "first", "root", "others", "untrusted", "digests", "verity", "gone")
_IMAGE_KIB, _DISK_KIB = 4 << 10, 32 << 10
_SALT = bytes(range(32))
_LINE = re.compile(
    rb"^(case) (\S+) (\d+)\r?$|^(phase|fail) (.+?)\r?$|^(digests) (\d+)\r?$|^(done)\r?$", re.MULTILINE
)
_FOLDER, _PROGRAM = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of one kernel: their name when loaded, and the files of the cases."""

    name: str
    good: bytes
    unsigned: bytes

    @property
    def bad(self) -> bytes:
        """One byte changed after the module was signed."""
        place = self.good.index(b"license=") + len(b"license=")
        return self.good[:place] + bytes([self.good[place] ^ 0x01]) + self.good[place + 1 :]


def program() -> bytes:
    """The static program."""

    def build(target: Path) -> None:
        run(["clang", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", target, SOURCE])

    return cache.entry(f"cases-{cache.digest([SOURCE])}", build).read_bytes()


def modules_of_small() -> Modules:
    """Those of the kernel with LoadPin."""
    folder = smallkernel.get_loadpin()
    return Modules(
        "kmgtest", (folder / "kmgtest.ko").read_bytes(), (folder / "kmgtest.unsigned.ko").read_bytes()
    )


def without_signature(module: bytes) -> bytes:
    """A signed module's bytes as they were before it was signed.

    Raises:
        VmToolError: it carries no signature.
    """
    end = len(module) - len(testmodules.MARKER)
    if not module.endswith(testmodules.MARKER):
        raise VmToolError("Debian's module is not signed")
    # struct module_signature: 12 bytes, the last four the length of the signature.
    length = int.from_bytes(module[end - 4 : end], "big")
    return module[: end - 12 - length]


def modules_of_debian(suite: str) -> Modules:
    """An in-tree module of Debian's kernel: its keyrings trust it."""
    its_kernel = kernel.get(apt.resolve(suite, DKMS_PACKAGES))
    (path,) = its_kernel.modules.rglob("dummy.ko*")
    good = initramfs.plain(path)
    return Modules("dummy", good, without_signature(good))


def _ext4(
    target: Path, files: Mapping[str, bytes], kib: int, folder: Path, links: Mapping[str, str] | None = None
) -> None:
    """An ext4 image that is the same for the same files."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for name, to in (links or {}).items():
        (folder / name).symlink_to(to)
    options = "^has_journal,^resize_inode,^metadata_csum_seed"
    run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", options, "-d", folder, target, f"{kib}k"])


def disk(modules: Modules, digests: bytes | None = None) -> tuple[bytes, bytes]:
    """The disk image to pin, and the root digest that is to be trusted.

    Args:
        modules: its modules.
        digests: what to write into its list of digests; by default that one.
    """
    with tempfile.TemporaryDirectory(prefix="kmodgate-loadpin-") as name:
        scratch = Path(name)
        files = {
            "name": modules.name.encode(),
            "good.ko": modules.good,
            "unsigned.ko": modules.unsigned,
            "bad.ko": modules.bad,
            "garbage": bytes(8192),
            "empty": b"",
        }
        inner = {key: files[key] for key in ("good.ko", "unsigned.ko", "bad.ko", "garbage")}
        for image in ("plain.img", "verity.img"):
            _ext4(scratch / image, inner, _IMAGE_KIB, scratch / f"{image}.files")
            files[image] = (scratch / image).read_bytes()
        tree = verity.tree(files["verity.img"], _SALT)
        files["verity.hash"], files["verity.table"] = tree.hashes, tree.table.encode()
        files["digests"] = f"{HEADER}\n{tree.root.hex()}\n".encode() if digests is None else digests
        # For an agent that is told that this is the root of process 1, and finds mount points in it.
        links = {"room": "/room"}
        _ext4(scratch / "disk", files, _DISK_KIB, scratch / "files", links)
        return (scratch / "disk").read_bytes(), tree.root


def read_cases(text: bytes) -> dict[str, str]:
    """Errno names by case (``"ok"`` for success), from what the program wrote.

    Raises:
        VmToolError: a step failed that is no load.
    """
    cases: dict[str, str] = {}
    for match in _LINE.finditer(text):
        kind, name, number, word, rest, digests, said, _ = match.groups()
        if kind:
            cases[name.decode()] = _name(int(number))
        elif digests:
            cases["digests"] = _name(int(said))
        elif word == b"fail":
            what, _, code = rest.decode(errors="replace").rpartition(" ")
            raise VmToolError(f"the guest could not do its part: {what}: {_name(int(code))}")
    return cases


def phases_ended(text: bytes) -> list[str]:
    """Phases that came to their end."""
    return [match[5].decode() for match in _LINE.finditer(text) if match[4] == b"phase"]


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "ok"


def ask(
    phases: Sequence[str] = PHASES, *, image: bytes | None = None, timeout: float = 300
) -> dict[str, str]:
    """Boot the kernel with LoadPin and run some phases.

    Args:
        phases: in this order.
        image: the disk; the usual one by default.
        timeout: seconds.

    Raises:
        VmDied: the machine hung.
        VmToolError: it could not be started, or did not come to its end.
    """
    folder = smallkernel.get_loadpin()
    nodes = [Node(name, _FOLDER) for name in ("proc", "sys", "dev", "pin", "room")]
    nodes.append(Node("init", _PROGRAM, program()))
    with tempfile.TemporaryDirectory(prefix="kmodgate-loadpin-") as name:
        path = Path(name) / "disk"
        path.write_bytes(disk(modules_of_small())[0] if image is None else image)
        text = siglab.boot(
            folder / "vmlinux",
            initramfs.newc(nodes),
            disk=path,
            append=f"loglevel=0 loadpin.device=/dev/vda loadpin.phases={','.join(phases)}",
            timeout=timeout,
        )
    cases = read_cases(text)
    if phases_ended(text) != list(phases) or b"\ndone" not in text.replace(b"\r", b""):
        tail = text[-1500:].decode(errors="replace")
        raise VmToolError(f"the guest did not come to its end:\n{tail}")
    return cases
