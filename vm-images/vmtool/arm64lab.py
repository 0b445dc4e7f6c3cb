# SPDX-License-Identifier: Apache-2.0
"""Boot Debian's arm64 kernel and run one Python program on it, the agent beside it.

A lab and no second home for the guest's tests: the root is an initramfs in which nothing was set
up, the modules are Debian's own, signed anew. It shows that the programs built for arm64 load,
attach and decide there.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import apt, bootstrap, cache, initramfs, kernel, loadpinlab, rootfs
from .errors import VmDied, VmToolError
from .host import IMAGES, PROJECT, find, run, say
from .initramfs import Node

SUITE = "trixie"
MACHINE = "arm64"
EMULATOR = "qemu-system-aarch64"
INIT = IMAGES / "guest" / "arm64-init"
# Everything is unpacked only: no arm64 program can run on the host that makes this.
PACKAGES = ("busybox-static", "libbpf1", "libgcc-s1", "python3")
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64")
_LEFT_OUT = ("usr/share", "var", "usr/lib/python3/dist-packages")
_MEMORY = 2048  # MiB


@dataclass(frozen=True, slots=True)
class Arm64Kernel:
    """Debian's kernel for arm64: its image, and a module of its own as Debian signed it."""

    release: str
    image: Path
    modules: loadpinlab.Modules


def debian_kernel() -> Arm64Kernel:
    """The kernel from the cache; asked for and unpacked once."""
    source = apt.Apt(SUITE, MACHINE)
    versions = cache.root() / f"resolved-{SUITE}-{MACHINE}.txt"
    with cache.locked(f"resolve-{SUITE}-{MACHINE}"):
        if not versions.exists():
            source.update()
            name = next(n for n in source.depends("linux-image-arm64") if n.startswith("linux-image-"))
            package = source.package(name)
            cache.write_atomically(versions, f"{package.name}\n{package.version}\n".encode())
    package = apt.Package(*versions.read_text().split())
    release = package.name.removeprefix("linux-image-")

    def build(target: Path) -> None:
        say(f"unpacking kernel {release}")
        unpacked = target.with_name("unpacked")
        source.unpack(package, unpacked)
        target.mkdir()
        shutil.copyfile(kernel.find_image(unpacked, release), target / "vmlinuz")
        (module,) = unpacked.rglob("dummy.ko*")
        (target / "dummy.ko").write_bytes(initramfs.plain(module))

    folder = cache.entry(f"arm-kernel-{cache.digest([package.name, package.version])}", build)
    good = (folder / "dummy.ko").read_bytes()
    return Arm64Kernel(
        release, folder / "vmlinuz", loadpinlab.Modules("dummy", good, loadpinlab.without_signature(good))
    )


def _root() -> Path:
    """A folder with Python, libbpf and kmodgate's dependencies for arm64."""
    versions = rootfs.dependencies()

    def build(target: Path) -> None:
        say("unpacking a small arm64 system (about 30 s)")
        tarball = target.with_name("root.tar")
        bootstrap.make(apt.BASE_SUITE, PACKAGES, tarball, variant="extract", machine=MACHINE)
        target.mkdir()
        run(["tar", "-C", target, "--exclude=./dev/*", "-xf", tarball])
        for name in _LEFT_OUT:
            shutil.rmtree(target / name, ignore_errors=True)
        site = target / "opt/python"
        run(
            [rootfs.python_for_guest(), "-m", "pip", "install", "--quiet", "--only-binary=:all:",
             "--no-compile", "--no-deps", *(word for name in _PLATFORMS for word in ("--platform", name)),
             "--python-version", "3.11", "--implementation", "cp", "--target", site, *versions],
            env=rootfs.PIP_ENV,
        )  # fmt: skip

    return cache.entry(f"arm-root-{cache.digest([*versions, *PACKAGES, *bootstrap.RECIPE])}", build)


def _nodes(folder: Path, prefix: str = "") -> Iterator[Node]:
    """A folder's files, folders and links as members of an archive."""
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        name = prefix + str(path.relative_to(folder))
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield Node(name, mode, str(path.readlink()).encode())
        elif stat.S_ISDIR(mode):
            yield Node(name, mode)
        elif stat.S_ISREG(mode):
            yield Node(name, mode, path.read_bytes())


def archive(program: Sequence[str], files: Mapping[str, bytes], objects: Path) -> bytes:
    """The initramfs.

    Args:
        program: words for the guest's Python.
        files: what else lies there, by path without a leading slash.
        objects: folder of the BPF objects for arm64.
    """
    folder = stat.S_IFDIR | 0o755
    nodes = [
        Node(name, folder)
        for name in ("dev", "proc", "run", "sys", "tmp", "root", "files", "src", "src/tests")
    ]
    nodes += _nodes(_root())
    nodes.append(Node("init", stat.S_IFREG | 0o755, INIT.read_bytes()))
    nodes.append(Node("program", stat.S_IFREG | 0o644, " ".join(program).encode()))
    nodes += [Node("src/agent", folder), *_nodes(PROJECT / "agent", "src/agent/")]
    nodes += [Node("src/tests/vm", folder), *_nodes(PROJECT / "tests/vm", "src/tests/vm/")]
    nodes += [
        Node(f"src/agent/kmodgate/hooks/{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
        for path in sorted(objects.glob("*.bpf.o"))
    ]
    nodes += [Node(f"files/{name}", stat.S_IFREG | 0o644, data) for name, data in files.items()]
    # The last of a name wins in an initramfs, and here too: the objects replace the host's.
    return initramfs.newc({node.path: node for node in nodes}.values())


def boot(image: Path, initrd: bytes, *, timeout: float = 900) -> str:
    """Boot it to its end; the console's text.

    Raises:
        VmDied: it did not come to its end in time.
        VmToolError: QEMU did not run.
    """
    if shutil.which(EMULATOR) is None:
        raise VmToolError(f"`{EMULATOR}` is not installed. Type: apt-get install qemu-system-arm")
    with tempfile.TemporaryDirectory(prefix="kmodgate-arm64-") as name:
        folder = Path(name)
        (folder / "initrd").write_bytes(initrd)
        log = folder / "console"
        argv = [
            *(EMULATOR, "-machine", "virt", "-cpu", "max,pauth-impdef=on"),
            *(
                "-accel",
                "tcg,thread=multi",
                "-smp",
                "2",
                "-m",
                str(_MEMORY),
                "-display",
                "none",
                "-no-reboot",
            ),
            *("-serial", f"file:{log}", "-kernel", str(image), "-initrd", str(folder / "initrd")),
            *("-append", "console=ttyAMA0 loglevel=0 panic=-1", "-nic", "none"),
        ]
        try:
            done = subprocess.run(
                [find("setpriv"), "--pdeathsig", "KILL", find(argv[0]), *argv[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            kept = cache.root() / "logs" / "arm64lab.log"
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(log, kept)
            raise VmDied(
                f"timeout after {timeout:.0f} s", kept, kept.read_text(errors="replace")[-2000:]
            ) from error
        if done.returncode:
            raise VmToolError(f"QEMU failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return log.read_text(errors="replace")
