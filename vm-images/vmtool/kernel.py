# SPDX-License-Identifier: Apache-2.0
"""One Debian kernel, unpacked: image, ELF image, modules with their indexes, initramfs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from . import apt, cache, initramfs, vmlinux
from .errors import VmToolError
from .host import IMAGES, find, run, say

INIT = IMAGES / "guest" / "initramfs-init"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A cached kernel.

    Attributes:
        folder: the cache entry.
        release: as ``uname -r`` prints it.
    """

    folder: Path
    release: str

    @property
    def vmlinuz(self) -> Path:
        """The image as Debian ships it."""
        return self.folder / "vmlinuz"

    @property
    def vmlinux(self) -> Path:
        """The ELF image inside it (no section headers for symbols; with BTF and certificates)."""
        return self.folder / "vmlinux"

    @property
    def initrd(self) -> Path:
        """Our initramfs."""
        return self.folder / "initramfs"

    @property
    def modules(self) -> Path:
        """``/lib/modules/RELEASE``, after depmod."""
        return self.folder / "tree" / "lib" / "modules" / self.release


def find_image(unpacked: Path, release: str) -> Path:
    """The kernel image, wherever the suite's packages put it."""
    places = (
        f"boot/vmlinuz-{release}",
        f"usr/lib/modules/{release}/vmlinuz",
        f"lib/modules/{release}/vmlinuz",
    )
    for place in places:
        if (unpacked / place).is_file():
            return unpacked / place
    raise VmToolError(f"no kernel image among {', '.join(places)} in {unpacked}")


def get(resolved: apt.Resolved) -> Kernel:
    """The kernel from the cache, unpacked now if it is not there."""

    def build(target: Path) -> None:
        say(f"unpacking kernel {resolved.release}")
        source = apt.Apt(resolved.suite)
        unpacked = target.with_name("unpacked")
        for package in resolved.image:
            source.unpack(package, unpacked)
        target.mkdir()
        kernel = Kernel(target, resolved.release)
        shutil.copyfile(find_image(unpacked, resolved.release), kernel.vmlinuz)
        kernel.vmlinux.write_bytes(vmlinux.extract(kernel.vmlinuz.read_bytes()))
        kernel.modules.parent.mkdir(parents=True)
        for library in (unpacked / "lib/modules", unpacked / "usr/lib/modules"):
            if (library / resolved.release / "kernel").is_dir():
                (library / resolved.release).rename(kernel.modules)
                break
        else:
            raise VmToolError(f"no modules for {resolved.release} in the packages of {resolved.suite}")
        run(["depmod", "-b", target / "tree", resolved.release])
        kernel.initrd.write_bytes(initramfs.build(kernel.modules, INIT))

    recipe = (resolved.suite, resolved.release, *(f"{p.name}={p.version}" for p in resolved.image))
    busybox = Path(find("busybox"))
    own = [Path(str(initramfs.__file__)), *vmlinux.SOURCES, Path(__file__)]
    key = cache.digest([*recipe, INIT, busybox, *own])
    return Kernel(cache.entry(f"kernel-{resolved.suite}-{key}", build), resolved.release)
