# SPDX-License-Identifier: Apache-2.0
"""The headers of the running kernel, which BCC compiles against.

Either they are installed (``/lib/modules/RELEASE/build``), or the kernel carries them
(``/sys/kernel/kheaders.tar.xz``, CONFIG_IKHEADERS). BCC itself would unpack the latter into a folder
of a known name in /tmp and use what lies there; here they go into a folder of our own.
"""

from __future__ import annotations

import contextlib
import lzma
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError

_MODULES: Final = Path("/lib/modules")
_SYS: Final = Path("/sys")
_NEEDED: Final = ("include/", "arch/x86/include/", "arch/arm64/include/")
_UNPACKED_MAX: Final = 512 << 20  # bytes; 6.1's are 40 MB
# The member of struct inode that holds the time of the last change, by release: the younger names first.
_TIMES: Final = (
    (re.compile(rb"\bi_ctime_sec\b"), "-DKMG_I_CTIME_SEC"),
    (re.compile(rb"\b__i_ctime;"), "-DKMG_I_CTIME_HIDDEN"),
    (re.compile(rb"\bi_ctime;"), ""),
)


@dataclass(frozen=True, slots=True)
class Headers:
    """Where a kernel's headers are.

    Attributes:
        trees: folders with ``include/linux``, best first (Debian's come in two).
        archive: the compressed archive to unpack, or None.
    """

    trees: tuple[Path, ...]
    archive: Path | None = None


def find(release: str, *, modules: Path = _MODULES, sys: Path = _SYS) -> Headers:
    """The headers of a kernel release.

    Raises:
        HookError: there are none; it says how to get them.
    """
    home = modules / release
    trees = tuple(
        home / name for name in ("source", "build") if (home / name / "include/linux/fs.h").is_file()
    )
    if trees and (home / "build").exists():
        return Headers(trees)
    archive = sys / "kernel/kheaders.tar.xz"
    if archive.is_file():
        return Headers((), archive)
    raise HookError(
        f"BCC compiles against the kernel's headers, and there are none: neither {home}/build nor {archive}; "
        f"install them (Debian: apt-get install linux-headers-{release}; Fedora, RHEL: dnf install "
        f"kernel-devel-{release}), or, on a kernel with CONFIG_IKHEADERS=m, run modprobe kheaders"
    )


@contextmanager
def at_hand(headers: Headers) -> Iterator[tuple[tuple[Path, ...], dict[str, str]]]:
    """The trees, and what BCC must find in its environment, for the time of the block.

    Raises:
        HookError: the archive cannot be unpacked.
    """
    if headers.archive is None:
        yield headers.trees, {}
        return
    with tempfile.TemporaryDirectory(prefix="kmodgate-headers-") as name:
        _unpack(headers.archive, Path(name))
        yield (Path(name),), {"BCC_KERNEL_SOURCE": name}


def _unpack(archive: Path, folder: Path) -> None:
    left = _UNPACKED_MAX
    try:
        with lzma.open(archive) as plain, tarfile.open(fileobj=plain, mode="r|") as members:
            for member in members:
                path = member.name.removeprefix("./")
                if not member.isfile() or not path.startswith(_NEEDED) or ".." in Path(path).parts:
                    continue
                left -= member.size
                source = members.extractfile(member)
                if left < 0 or source is None:
                    raise HookError(f"{archive}: more than {_UNPACKED_MAX >> 20} MiB of headers")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read())
    except (OSError, tarfile.TarError, lzma.LZMAError) as error:
        raise HookError(f"{archive}: the kernel's headers cannot be unpacked: {error}") from error


def inode_time(trees: tuple[Path, ...]) -> str:
    """The compiler's flag for the name of an inode's ctime in these headers; empty for the oldest name.

    Raises:
        HookError: ``include/linux/fs.h`` cannot be read or has none of the names.
    """
    for tree in trees:
        header = tree / "include/linux/fs.h"
        with contextlib.suppress(FileNotFoundError):
            try:
                text = header.read_bytes()
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise
                raise HookError(f"{header}: {error.strerror}") from error
            for name, flag in _TIMES:
                if name.search(text):
                    return flag
            raise HookError(f"{header}: struct inode has no ctime that this version knows")
    raise HookError(f"no include/linux/fs.h below {', '.join(map(str, trees)) or 'any folder'}")
