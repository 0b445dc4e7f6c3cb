# SPDX-License-Identifier: Apache-2.0
"""Certificates are found wherever their list lies, and what lies behind it is not unpacked."""

from __future__ import annotations

import lzma
import os
import struct
from pathlib import Path

import pytest
from tests.unit.scan.conftest import kernel_image
from tests.vectors.generate import Identity

from kmodgate.modfile import embedded, kernelimage
from kmodgate.scan.kernels import read_image
from kmodgate.scan.root import Root

MIB = 1 << 20


def bzimage(kernel: bytes) -> bytes:
    """A boot image as arch/x86/boot/header.S lays it out, its payload compressed with xz."""
    payload = lzma.compress(kernel, preset=0) + struct.pack("<I", len(kernel))
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x202:0x208] = b"HdrS" + struct.pack("<H", 0x20F)
    header[0x248:0x250] = struct.pack("<II", 0, len(payload))
    return bytes(header) + payload


def with_list_at(identities: list[Identity], at: int, size: int) -> bytes:
    kernel = kernel_image(*identities)
    padding = bytes(at - 64)
    return (kernel[:64] + padding + kernel[64:]).ljust(size, b"\0")


@pytest.mark.parametrize("at", [64, MIB - 8, MIB - 800, MIB - 2048, MIB, 2 * MIB - 1024, 3 * MIB + 8])
def test_the_rest_of_a_kernel_is_left_out(tmp_path: Path, identities: list[Identity], at: int) -> None:
    anchors = identities[:2]
    kernel = with_list_at(anchors, at, 12 * MIB)
    image = bzimage(kernel)
    found = kernelimage.extract(image, enough=embedded.has_list)
    assert kernel.startswith(found)
    assert len(found) <= at + 3 * MIB
    assert kernelimage.extract(image) == kernel
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1").write_bytes(image)
    with Root(tmp_path) as root:
        read = read_image(root, "6.1")
    assert read.certificates == tuple(identity.der for identity in anchors)
    assert read.problem == ""


def test_a_kernel_without_a_list_is_unpacked_whole() -> None:
    kernel = b"\x7fELF\2\1\1".ljust(64, b"\0") + os.urandom(3 * MIB)
    assert kernelimage.extract(bzimage(kernel), enough=embedded.has_list) == kernel


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "there is no /boot/vmlinuz-6.1"),
        (b"MZ", "/boot/vmlinuz-6.1: not a kernel image"),
        (bzimage(bytes(64))[:-3], "/boot/vmlinuz-6.1: bzImage: the payload"),
        (b"\x7fELF".ljust(200, b"\0"), "/boot/vmlinuz-6.1 has no certificates built in"),
    ],
)
def test_what_is_wrong_with_an_image_is_said(tmp_path: Path, image: bytes | None, words: str) -> None:
    (tmp_path / "boot").mkdir()
    if image is not None:
        (tmp_path / "boot/vmlinuz-6.1").write_bytes(image)
    with Root(tmp_path) as root:
        found = read_image(root, "6.1")
    assert found.certificates is None
    assert words in found.problem
