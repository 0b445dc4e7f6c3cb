# SPDX-License-Identifier: Apache-2.0
"""A kernel's headers with the compiler they were made for, in a small root of their own.

Headers, kbuild and compiler of a suite fit one another and that suite's C library; in their own
root, with their own absolute paths, they work on any host. Nothing is installed on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import apt, bootstrap, cache
from .errors import VmToolError
from .host import run, say

_TOOLS = ("make", "xz-utils", "zstd")


def get(resolved: apt.Resolved) -> Path:
    """The root folder that holds headers and compiler for one kernel."""

    def build(target: Path) -> None:
        say(f"installing headers and compiler for {resolved.release} into a root of their own (about 60 s)")
        bootstrap.make(resolved.suite, [*_TOOLS, f"linux-headers-{resolved.release}"], target)

    recipe = (
        resolved.suite,
        *(f"{p.name}={p.version}" for p in resolved.headers),
        *_TOOLS,
        *bootstrap.RECIPE,
    )
    return cache.entry(f"toolchain-{resolved.suite}-{cache.digest(recipe)}", build)


def headers(resolved: apt.Resolved) -> Path:
    """``/usr/src/linux-headers-RELEASE`` on the host's side."""
    return get(resolved) / "usr/src" / f"linux-headers-{resolved.release}"


def all_headers(resolved: apt.Resolved) -> tuple[Path, ...]:
    """The folders that hold them: the build's own, and the one that all builds of a version share."""
    own = headers(resolved)
    source = (get(resolved) / "lib/modules" / resolved.release / "source").readlink()
    return own, own.with_name(source.name)


def inside(root: Path, argv: Sequence[str]) -> bytes:
    """Run a program of the toolchain's root; paths are that root's.

    The root is shared by builds: they write below a folder of their own in its /tmp.
    """
    clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/tmp"]
    # objtool of 7.x reads /proc. The bind mount is seen by, and ends with, this one process.
    script = 'mount --bind /proc "$1/proc" && exec chroot "$@"'
    return run(["unshare", "--mount", "sh", "-c", script, "sh", root, *clean, *argv])


def sign_file(root: Path, resolved: apt.Resolved) -> str:
    """Path, in the toolchain's root, of the kernel's own signing program.

    Raises:
        VmToolError: the headers' packages hold none.
    """
    places = [
        root / "usr/src" / f"linux-headers-{resolved.release}",
        *sorted((root / "usr/lib").glob("linux-kbuild-*")),
    ]
    for place in places:
        program = place / "scripts" / "sign-file"
        if (root / "usr/lib" in place.parents or not place.is_symlink()) and program.is_file():
            return f"/{program.relative_to(root)}"
    raise VmToolError(f"no scripts/sign-file below {', '.join(map(str, places))}")
