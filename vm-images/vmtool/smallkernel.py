# SPDX-License-Identifier: Apache-2.0
"""A small kernel from Debian's source package, for what Debian's own builds leave out.

``small-kernel.config`` goes on top of ``make tinyconfig``. Opt-in: it needs a compiler and a few
minutes. Nothing of the source is changed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from . import apt, cache
from .errors import VmToolError
from .host import IMAGES, find, run, say
from .testmodules import DKMS_PACKAGES

FRAGMENT = IMAGES / "small-kernel.config"
SUITE = "sid"
_PROGRAMS = ("gcc", "make", "flex", "bison", "bc", "openssl", "tar", "xz")
_HEADERS = {"/usr/include/openssl/opensslv.h": "libssl-dev", "/usr/include/gelf.h": "libelf-dev"}


def _need_headers() -> None:
    missing = [package for header, package in _HEADERS.items() if not Path(header).exists()]
    if missing:
        raise VmToolError(f"building a kernel needs headers. Type: apt-get install {' '.join(missing)}")


def source_package() -> str:
    """``linux-source-7.2`` and the like: of the release that the suite's kernel has."""
    release = apt.resolve(SUITE, DKMS_PACKAGES).release
    major, minor = release.split(".")[:2]
    return f"linux-source-{major}.{minor}"


def get() -> Path:
    """The kernel as an ELF file, from the cache or built now.

    Raises:
        VmToolError: a program or header is missing, or the build failed.
    """
    distribution = apt.Apt(SUITE)
    package = distribution.package(source_package())

    def build(target: Path) -> None:
        for program in _PROGRAMS:
            find(program)
        _need_headers()
        say(f"building a small kernel from {package.name} {package.version} (some minutes)")
        with tempfile.TemporaryDirectory(prefix="kmodgate-kernel-") as name:
            scratch = Path(name)
            distribution.unpack(package, scratch / "package")
            (archive,) = (scratch / "package/usr/src").glob("linux-source-*.tar.xz")
            tree = scratch / "tree"
            tree.mkdir()
            run(["tar", "-C", tree, "--strip-components=1", "-xf", archive])
            run(["make", "-s", "-C", tree, "tinyconfig"])
            config = tree / ".config"
            config.write_text(config.read_text() + FRAGMENT.read_text())
            run(["make", "-s", "-C", tree, "olddefconfig"])
            run(["make", "-s", "-C", tree, f"-j{os.cpu_count() or 1}", "vmlinux"])
            (tree / "vmlinux").rename(target)

    return cache.entry(f"smallkernel-{cache.digest([package.name, package.version, FRAGMENT])}", build)
