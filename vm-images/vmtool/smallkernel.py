# SPDX-License-Identifier: Apache-2.0
"""Small kernels from Debian's source packages, for what Debian's own builds leave out.

Fragments go on top of ``make tinyconfig``: ``small-kernel.config`` has ML-DSA,
``loadpin-kernel.config`` has the real LoadPin. Two boot the usual guest, from
``guest-kernel.config`` on: ``override-kernel.config`` has no BTF and lets BPF programs override what
system calls return, ``nobpf-kernel.config`` has no ``bpf(2)``, and LoadPin. Opt-in: it needs a
compiler and a few minutes. Nothing of the source is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import apt, cache, initramfs, keys, testmodules
from .errors import VmToolError
from .host import IMAGES, find, run, say
from .kernel import INIT, Kernel
from .testmodules import DKMS_PACKAGES, SOURCES

FRAGMENT = IMAGES / "small-kernel.config"
LOADPIN_FRAGMENT = IMAGES / "loadpin-kernel.config"
_FOR_GUESTS = IMAGES / "guest-kernel.config"
GUEST_FRAGMENTS = {
    "override": (_FOR_GUESTS, IMAGES / "override-kernel.config"),
    "nobpf": (_FOR_GUESTS, IMAGES / "nobpf-kernel.config"),
}
"""By the word that ``artifacts.parts`` takes in the place of a suite."""
SUITE = "sid"
# The release that the other guests run most; any since 6.1 has dm-verity in LoadPin.
LOADPIN_SUITE = apt.BASE_SUITE
_PROGRAMS = ("gcc", "make", "flex", "bison", "bc", "openssl", "tar", "xz")
_OFF = re.compile(r"# (CONFIG_\w+) is not set")
_HEADERS = {"/usr/include/openssl/opensslv.h": "libssl-dev", "/usr/include/gelf.h": "libelf-dev"}


def _need_headers() -> None:
    missing = [package for header, package in _HEADERS.items() if not Path(header).exists()]
    if missing:
        raise VmToolError(f"building a kernel needs headers. Type: apt-get install {' '.join(missing)}")


def source_package(suite: str = SUITE) -> str:
    """``linux-source-7.2`` and the like: of the release that the suite's kernel has."""
    release = apt.resolve(suite, DKMS_PACKAGES).release
    major, minor = release.split(".")[:2]
    return f"linux-source-{major}.{minor}"


def _configured(
    distribution: apt.Apt, package: apt.Package, fragments: Sequence[Path], scratch: Path
) -> Path:
    """The source tree below ``scratch``, with the fragments' configuration.

    Raises:
        VmToolError: a program or header is missing, or the kernel would not take a line of a fragment.
    """
    for program in _PROGRAMS:
        find(program)
    _need_headers()
    distribution.unpack(package, scratch / "package")
    (archive,) = (scratch / "package/usr/src").glob("linux-source-*.tar.xz")
    tree = scratch / "tree"
    tree.mkdir()
    run(["tar", "-C", tree, "--strip-components=1", "-xf", archive])
    run(["make", "-s", "-C", tree, "tinyconfig"])
    config = tree / ".config"
    wanted = "".join(fragment.read_text() for fragment in fragments)
    config.write_text(config.read_text() + wanted)
    run(["make", "-s", "-C", tree, "olddefconfig"])
    have = set(config.read_text().split("\n"))
    lost = [line for line in wanted.split("\n") if line.startswith("CONFIG_") and line not in have]
    lost += [line for line in wanted.split("\n") if (off := _OFF.fullmatch(line)) and f"{off[1]}=y" in have]
    if lost:
        names = " and ".join(fragment.name for fragment in fragments)
        raise VmToolError(f"{package.name} {package.version} does not take {', '.join(lost)} of {names}")
    return tree


def _make(tree: Path, *targets: str) -> None:
    run(["make", "-s", "-C", tree, f"-j{os.cpu_count() or 1}", *targets])


def get() -> Path:
    """The kernel with ML-DSA as an ELF file, from the cache or built now.

    Raises:
        VmToolError: a program or header is missing, or the build failed.
    """
    distribution = apt.Apt(SUITE)
    package = distribution.package(source_package())

    def build(target: Path) -> None:
        say(f"building a small kernel from {package.name} {package.version} (some minutes)")
        with tempfile.TemporaryDirectory(prefix="kmodgate-kernel-") as name:
            tree = _configured(distribution, package, [FRAGMENT], Path(name))
            _make(tree, "vmlinux")
            (tree / "vmlinux").rename(target)

    return cache.entry(f"smallkernel-{cache.digest([package.name, package.version, FRAGMENT])}", build)


def get_loadpin() -> Path:
    """A folder with the LoadPin kernel (``vmlinux``) and a module of ours for it.

    ``kmgtest.ko`` is signed by the key that the kernel's build made, ``kmgtest.unsigned.ko`` by none.

    Raises:
        VmToolError: a program or header is missing, or the build failed.
    """
    distribution = apt.Apt(LOADPIN_SUITE)
    package = distribution.package(source_package(LOADPIN_SUITE))

    def build(target: Path) -> None:
        say(f"building a kernel with LoadPin from {package.name} {package.version} (some minutes)")
        with tempfile.TemporaryDirectory(prefix="kmodgate-kernel-") as name:
            scratch = Path(name)
            tree = _configured(distribution, package, [LOADPIN_FRAGMENT], scratch)
            _make(tree, "vmlinux", "modules")
            shutil.copytree(SOURCES, scratch / "modules")
            _make(tree, f"M={scratch / 'modules'}", "modules")
            target.mkdir()
            (tree / "vmlinux").rename(target / "vmlinux")
            unsigned, signed = target / "kmgtest.unsigned.ko", target / "kmgtest.ko"
            run(["strip", "--strip-debug", "-o", unsigned, scratch / "modules/kmgtest.ko"])
            key, certificate = tree / "certs/signing_key.pem", tree / "certs/signing_key.x509"
            run([tree / "scripts/sign-file", "sha256", key, certificate, unsigned, signed])

    key = cache.digest([package.name, package.version, LOADPIN_FRAGMENT, SOURCES])
    return cache.entry(f"loadpin-{key}", build)


# What BCC compiles against: the headers of a build, for /lib/modules/RELEASE/build.
_FOR_BCC = ("include", "arch/x86/include")


def get_for_guest(name: str) -> tuple[Kernel, Path, Path]:
    """A kernel without BTF that boots the usual guest, test modules for it, certificates.

    Its modules' folder holds the headers that BCC needs.

    Args:
        name: of ``GUEST_FRAGMENTS``.

    Raises:
        VmToolError: a program or header is missing, or the build failed.
    """
    distribution = apt.Apt(LOADPIN_SUITE)
    package = distribution.package(source_package(LOADPIN_SUITE))
    certs = keys.get()
    fragments = GUEST_FRAGMENTS[name]

    def build(target: Path) -> None:
        say(f"building the kernel {name} from {package.name} {package.version} (some minutes)")
        with tempfile.TemporaryDirectory(prefix="kmodgate-kernel-") as folder_name:
            scratch = Path(folder_name)
            tree = _configured(distribution, package, fragments, scratch)
            _make(tree, "vmlinux", "modules")
            release = (tree / "include/config/kernel.release").read_text().strip()
            target.mkdir()
            kernel = Kernel(target, release)
            _make(tree, f"INSTALL_MOD_PATH={target / 'tree'}", "modules_install")
            for link in ("build", "source"):
                (kernel.modules / link).unlink(missing_ok=True)
            for folder in _FOR_BCC:
                shutil.copytree(tree / folder, kernel.modules / "build" / folder, symlinks=True)
            (target / "release").write_text(release)
            shutil.copy(tree / "vmlinux", kernel.vmlinux)
            kernel.initrd.write_bytes(initramfs.build(kernel.modules, INIT))
            shutil.copytree(SOURCES, scratch / "modules")
            _make(tree, f"M={scratch / 'modules'}", "modules")
            _sign(tree, scratch / "modules/kmgtest.ko", certs, target / "testmodules")
            shutil.copytree(certs, target / "certs")
            der, pem = tree / "certs/signing_key.x509", target / "certs/kernel.pem"
            run(["openssl", "x509", "-inform", "DER", "-in", der, "-out", pem])

    key = cache.digest([package.name, package.version, *fragments, SOURCES, certs.name, INIT])
    folder = cache.entry(f"{name}-{key}", build)
    kernel = Kernel(folder, (folder / "release").read_text())
    return kernel, folder / "testmodules", folder / "certs"


def _sign(tree: Path, module: Path, certs: Path, target: Path) -> None:
    """The variants of one module that the tests use; see ``testmodules.variants``."""
    target.mkdir()
    unsigned = target / f"{module.stem}.unsigned.ko"
    run(["strip", "--strip-debug", "-o", unsigned, module])
    for who in ("operator", "stranger"):
        signed = target / f"{module.stem}.{who}.ko"
        run(
            [
                tree / "scripts/sign-file",
                "sha256",
                certs / f"{who}.key",
                certs / f"{who}.pem",
                unsigned,
                signed,
            ]
        )
    operators = (target / f"{module.stem}.operator.ko").read_bytes()
    (target / f"{module.stem}.tampered.ko").write_bytes(testmodules.tampered(operators))
