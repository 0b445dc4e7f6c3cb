# SPDX-License-Identifier: Apache-2.0
"""Small kernels from Debian's source packages, for what Debian's own builds leave out.

A fragment goes on top of ``make tinyconfig``: ``small-kernel.config`` has ML-DSA,
``loadpin-kernel.config`` has the real LoadPin. Opt-in: it needs a compiler and a few minutes.
Nothing of the source is changed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from . import apt, cache
from .errors import VmToolError
from .host import IMAGES, find, run, say
from .testmodules import DKMS_PACKAGES, SOURCES

FRAGMENT = IMAGES / "small-kernel.config"
LOADPIN_FRAGMENT = IMAGES / "loadpin-kernel.config"
SUITE = "sid"
# The release that the other guests run most; any since 6.1 has dm-verity in LoadPin.
LOADPIN_SUITE = apt.BASE_SUITE
_PROGRAMS = ("gcc", "make", "flex", "bison", "bc", "openssl", "tar", "xz")
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


def _configured(distribution: apt.Apt, package: apt.Package, fragment: Path, scratch: Path) -> Path:
    """The source tree below ``scratch``, with the fragment's configuration.

    Raises:
        VmToolError: a program or header is missing, or the kernel would not take a line of the fragment.
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
    config.write_text(config.read_text() + fragment.read_text())
    run(["make", "-s", "-C", tree, "olddefconfig"])
    have = set(config.read_text().split("\n"))
    lost = [
        line for line in fragment.read_text().split("\n") if line.startswith("CONFIG_") and line not in have
    ]
    if lost:
        raise VmToolError(
            f"{package.name} {package.version} does not take {', '.join(lost)} of {fragment.name}"
        )
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
            tree = _configured(distribution, package, FRAGMENT, Path(name))
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
            tree = _configured(distribution, package, LOADPIN_FRAGMENT, scratch)
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
