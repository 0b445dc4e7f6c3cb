# SPDX-License-Identifier: Apache-2.0
"""A root file system with two kernels, their images, and modules of every kind."""

from __future__ import annotations

import gzip
import lzma
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.vectors.generate import Identity, append, make_elf, make_identity, openssl_cms

OLD, NEW = "6.1.0-1-amd64", "6.12.0-2-amd64"


@dataclass(frozen=True, slots=True)
class Lab:
    """``root`` with its identities; each kernel has its own key, ``operator`` is configured."""

    root: Path
    operator: Identity
    keys: dict[str, Identity]
    stranger: Identity

    def modules(self, release: str) -> Path:
        return self.root / "usr/lib/modules" / release

    def add(self, release: str, name: str, signer: Identity | None, module: str = "") -> Path:
        path = self.modules(release) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = module_file(module or path.name.partition(".")[0], signer)
        pack = {".xz": lzma.compress, ".gz": gzip_like_kmod}.get(path.suffix, bytes)
        path.write_bytes(pack(data))
        return path


def gzip_like_kmod(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def module_file(name: str, signer: Identity | None) -> bytes:
    elf = make_elf(f"name={name}\0srcversion=0123ABCD\0vermagic=6.1 SMP \0".encode())
    return elf if signer is None else append(elf, openssl_cms(elf, signer))


def kernel_image(*identities: Identity) -> bytes:
    """What stands in an uncompressed kernel around its list of certificates."""
    ders = [identity.der for identity in identities]
    body = b"\x7fELF\2\1\1".ljust(64, b"\0") + b"".join(ders)
    body += bytes(-len(body) % 8)
    return body + struct.pack("<QQ", sum(map(len, ders)), len(ders[0])) + bytes(64)


@pytest.fixture(scope="session")
def identities() -> list[Identity]:
    return [make_identity(name) for name in ("operator", "old kernel", "new kernel", "stranger")]


@pytest.fixture
def lab(tmp_path: Path, identities: list[Identity]) -> Lab:
    operator, old, new, stranger = identities
    root = tmp_path / "root"
    (root / "boot").mkdir(parents=True)
    (root / "usr/lib/modules").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    lab = Lab(root, operator, {OLD: old, NEW: new}, stranger)
    for release, key in lab.keys.items():
        (root / f"boot/vmlinuz-{release}").write_bytes(kernel_image(key))
        lab.add(release, "kernel/fs/ext4.ko", key)
        lab.add(release, "kernel/net/tun-device.ko.xz", key)
    (tmp_path / "operator.pem").write_bytes(operator.pem)
    return lab
