# SPDX-License-Identifier: Apache-2.0
"""The host: programs it must have, running them, telling the user what goes on."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import MissingTool, VmToolError

IMAGES = Path(__file__).resolve().parent.parent
PROJECT = IMAGES.parent
PACKAGES = IMAGES / "packages.txt"

# program -> Debian package; the packages are listed once, with reasons, in packages.txt.
PROGRAMS: Mapping[str, str] = {
    "apt-cache": "apt",
    "apt-config": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "clang": "clang",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "openssl": "openssl",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "tar": "tar",
    "unshare": "util-linux",
    "xz": "xz-utils",
    "zstd": "zstd",
}
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


def packages() -> list[str]:
    """Names of the Debian packages that the host needs, from ``packages.txt``."""
    lines = (line.partition("#")[0].strip() for line in PACKAGES.read_text().splitlines())
    return [line for line in lines if line]


def find(program: str) -> str:
    """Absolute path of a program of the host.

    Raises:
        MissingTool: it is not installed; the message says what to type.
    """
    path = shutil.which(program) or shutil.which(program, path=_SBIN)
    if path is None:
        package = PROGRAMS.get(program, program)
        raise MissingTool(
            f"`{program}` is not installed. Type: apt-get install {package}"
            f" (everything at once: apt-get install $(vm-images/vm deps))"
        )
    return path


def need_root(what: str) -> None:
    """Stop with the reason when we are not root.

    Raises:
        VmToolError: not root.
    """
    if os.geteuid() != 0:
        raise VmToolError(
            f"{what} keeps file owners and needs root. Type: sudo vm-images/vm build"
            " (a cache that is already built can be used by any user: set KMODGATE_VM_CACHE to it)"
        )


def say(message: str) -> None:
    """One line of progress on standard error."""
    print(f"vm: {message}", file=sys.stderr, flush=True)


def run(
    argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> bytes:
    """Run a program to its end and return its standard output.

    Args:
        argv: the program's name, looked up with ``find``, and its arguments.
        cwd: working directory.
        env: variables added to ours.

    Raises:
        VmToolError: it failed; carries the command and the end of what it printed.
    """
    command = [find(str(argv[0])), *map(str, argv[1:])]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0:
        tail = b"\n".join((done.stdout + b"\n" + done.stderr).splitlines()[-15:]).decode(errors="replace")
        raise VmToolError(f"`{shlex.join(command)}` failed with status {done.returncode}:\n{tail}")
    return done.stdout
