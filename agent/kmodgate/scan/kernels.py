# SPDX-License-Identifier: Apache-2.0
"""The certificates that are built into the kernels of a root file system.

They are what stands at hand for a kernel's own keyrings: ``/proc/keys`` gives names and ids
but no keys. Machine owner keys and those of the firmware are not among them. This module
imports nothing that verifies, so that images can be read while the rest is being imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from kmodgate.errors import KmodgateError

from .root import Root

MAX_IMAGE = 256 << 20
"""Bytes of a kernel image file; Debian's have 8 to 15 million."""


@dataclass(frozen=True, slots=True)
class KernelImage:
    """One kernel image, as far as its certificates go.

    Attributes:
        release: the kernel.
        path: of the image, from the root; None when there is none.
        certificates: the DER of each; None when they could not be read.
        problem: why not.
    """

    release: str
    path: str | None
    certificates: tuple[bytes, ...] | None
    problem: str = ""


def read_image(root: Root, release: str) -> KernelImage:
    """Take the certificates out of the image of one kernel; never raises for what it finds."""
    places = (
        f"/boot/vmlinuz-{release}",
        f"/lib/modules/{release}/vmlinuz",
        f"/usr/lib/modules/{release}/vmlinuz",
        f"/boot/vmlinux-{release}",
    )
    path = next((place for place in places if root.kind(place) == "file"), None)
    if path is None:
        return KernelImage(release, None, None, f"there is no {places[0]} below {root.path}")
    from kmodgate.modfile import embedded, kernelimage  # noqa: PLC0415  # imports decompressors

    part: bytes | None = None

    def enough(newest: bytes) -> bool:
        nonlocal part
        if not embedded.has_list(newest):
            return False
        part = newest
        return True

    try:
        data, _ = root.read(path, MAX_IMAGE)
        # Nothing behind the list is wanted, a third of Debian's kernels; and nothing before it,
        # which was looked through on the way.
        kernel = kernelimage.extract(data, enough=enough)
        found = embedded.certificates(kernel if part is None else part)
    except KmodgateError as error:
        text = str(error)
        return KernelImage(release, path, None, text if text.startswith(path) else f"{path}: {text}")
    if not found:
        return KernelImage(release, path, None, f"{path} has no certificates built in")
    return KernelImage(release, path, found)
