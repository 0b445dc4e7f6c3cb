# SPDX-License-Identifier: Apache-2.0
"""One module file's bytes to one report: decompress, name, verify.

The composition that ``verify``, ``explain``, ``scan`` and the agent share. It reads no
files; the signature is judged before and without the ELF file around it, as the kernel
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .errors import ModuleFormatError
from .model import ModuleInfo, SignatureReport
from .modfile import decompress, modinfo
from .modfile.decompress import BytesLike
from .signature import LATEST, KernelProfile, SignedFile, TrustStore, report

DEFAULT_MAX_SIZE = 64 << 20


@dataclass(frozen=True, slots=True)
class OpenModule:
    """One module file, as far as it goes without anybody's keys.

    Attributes:
        file: the decompressed bytes.
        module: the module's own strings; None when they are not wanted or not there.
        note: what is wrong with the ELF file around them.
    """

    file: SignedFile
    module: ModuleInfo | None = None
    note: str = ""


def open_module(raw: BytesLike, *, max_size: int, with_module: bool = True) -> OpenModule:
    """The first half of ``inspect``; raises the same."""
    data = decompress(raw, max_size=max_size)
    if not data:
        raise ModuleFormatError("the file is empty; build or copy it again", "EINVAL")
    module: ModuleInfo | None = None
    note = ""
    if with_module:
        try:
            module = modinfo(data)
        except ModuleFormatError as error:
            note = str(error)
    return OpenModule(SignedFile(data), module, note)


def verify_module(
    opened: OpenModule,
    trust: TrustStore,
    *,
    now: datetime | None = None,
    require_validity: bool = False,
    profile: KernelProfile = LATEST,
) -> SignatureReport:
    """The second half of ``inspect``."""
    return report(
        opened.file,
        trust,
        module=opened.module,
        note=opened.note,
        now=now,
        require_validity=require_validity,
        profile=profile,
    )


def inspect(
    raw: BytesLike,
    trust: TrustStore,
    *,
    max_size: int = DEFAULT_MAX_SIZE,
    now: datetime | None = None,
    require_validity: bool = False,
    with_module: bool = True,
    profile: KernelProfile = LATEST,
) -> SignatureReport:
    """Report on one module file.

    Args:
        raw: the file's bytes, compressed or not.
        trust: anchors and revocations.
        max_size: most bytes after decompression.
        now: the time (aware, UTC), for validity.
        require_validity: refuse anchors outside their validity.
        profile: the kernel whose answer is asked for.
        with_module: read the module's own strings; False leaves ``module`` None.

    Raises:
        ModuleFormatError: an empty file (EINVAL), or a container that cannot be read.
    """
    return verify_module(
        open_module(raw, max_size=max_size, with_module=with_module),
        trust,
        now=now,
        require_validity=require_validity,
        profile=profile,
    )
