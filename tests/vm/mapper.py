# SPDX-License-Identifier: Apache-2.0
"""dm-verity devices and other roots inside the guest, by the system calls themselves."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[platform.machine()]
_CREATE, _REMOVE, _SUSPEND, _LOAD = 3, 4, 6, 9  # include/uapi/linux/dm-ioctl.h
_READ_ONLY, _DO_SUSPEND = 1 << 0, 1 << 1
_PATIENCE = 30.0


def command(*words: str | Path) -> str:
    """Run a program; what it printed."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _mapper(number: int, name: str, flags: int = 0, target: bytes = b"") -> int:
    """One request to the device mapper; the device number it gave back."""
    size = 312 + len(target)
    head = (4, 0, 0, size, 312, 1 if target else 0, 0, flags, 0, 0, name.encode(), b"")
    request = bytearray(struct.pack("=3I2IIiII4xQ128s129s7x", *head) + target)
    with Path("/dev/mapper/control").open("rb+", buffering=0) as control:
        fcntl.ioctl(control, 0xC138FD00 + number, request)
    return int(struct.unpack_from("=Q", request, 40)[0])


def _again(action: str, number: int, name: str) -> None:
    """A request that others may keep from being done for a moment."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            _mapper(number, name)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise AssertionError(f"{action} {name}: {error}") from error
            time.sleep(0.05)
        else:
            return


def unmount(point: Path) -> None:
    """Unmount; who looks at it may hold it for a moment."""
    end = time.monotonic() + _PATIENCE
    while subprocess.run(["umount", point], check=False, capture_output=True).returncode:
        assert time.monotonic() < end, f"{point} is busy"
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Image:
    """The contents of the disk that vm-images/vmtool/loadpinlab.py makes."""

    folder: Path

    @property
    def digests(self) -> Path:
        return self.folder / "digests"

    def table(self, data: str, hashes: str, *, option: str = "") -> bytes:
        """The target of a dm-verity device over these two."""
        words = (self.folder / "verity.table").read_text().replace("%1", data).replace("%2", hashes)
        text = f"{words} 1 {option}" if option else words
        sectors = (self.folder / "verity.img").stat().st_size // 512
        return struct.pack("=QQiI16s", 0, sectors, 0, 0, b"verity") + text.encode() + b"\0"


@contextmanager
def image(disk: Path, folder: Path) -> Iterator[Image]:
    """The disk's files in a folder on tmpfs."""
    point = folder / "disk"
    point.mkdir(parents=True)
    command("mount", "-o", "ro,loop", disk, point)
    try:
        for path in point.iterdir():
            if path.is_file():
                shutil.copy(path, folder / path.name)
    finally:
        unmount(point)
    yield Image(folder)


@contextmanager
def loop(path: Path) -> Iterator[str]:
    """A loop device on a file."""
    device = command("losetup", "--read-only", "--find", "--show", path)
    try:
        yield device
    finally:
        command("losetup", "--detach", device)


@contextmanager
def verity(files: Image, name: str, *, option: str = "") -> Iterator[Path]:
    """The node of a dm-verity device on the image's data and hashes."""
    with loop(files.folder / "verity.img") as data, loop(files.folder / "verity.hash") as hashes:
        device = _mapper(_CREATE, name)
        node = files.folder / f"dm-{name}"
        try:
            _mapper(_LOAD, name, _READ_ONLY, files.table(data, hashes, option=option))
            _mapper(_SUSPEND, name)  # without the suspend flag: resume
            node.unlink(missing_ok=True)
            os.mknod(node, 0o60600, device)
            yield node
        finally:
            _again("remove", _REMOVE, name)
            node.unlink(missing_ok=True)


@contextmanager
def mounted(device: Path | str, point: Path) -> Iterator[Path]:
    """A read-only ext4 mount."""
    point.mkdir(exist_ok=True)
    command("mount", "-t", "ext4", "-o", "ro", device, point)
    try:
        yield point
    finally:
        unmount(point)


@contextmanager
def another_root(point: Path) -> Iterator[Path]:
    """A tmpfs as the root of every process, with all of the old one's folders mounted in it.

    Yields:
        Where the old root is.
    """
    command("mount", "--make-rprivate", "/")
    point.mkdir(exist_ok=True)
    command("mount", "-t", "tmpfs", "none", point)
    (point / "old").mkdir()
    skipped = {point.parts[1], "lost+found"}
    for entry in Path("/").iterdir():
        if entry.is_symlink():
            (point / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir() and entry.name not in skipped:
            (point / entry.name).mkdir()
            command("mount", "--rbind", entry, point / entry.name)
    _pivot(point, point / "old")
    try:
        yield Path("/old")
    finally:
        _pivot(Path("/old"), Path("/old") / point.relative_to("/"))
        command("umount", "-l", point)


def _pivot(new: Path, old: Path) -> None:
    with suppress(FileNotFoundError):
        os.chdir("/")
    if _LIBC.syscall(_PIVOT_ROOT, os.fsencode(new), os.fsencode(old)):
        number = ctypes.get_errno()
        raise OSError(number, f"pivot_root {new}: {os.strerror(number)}")
    os.chdir("/")
