# SPDX-License-Identifier: Apache-2.0
"""Verifies the module files of a plan and says of each what ENFORCE would do.

The composition: reading through ``Root``, verification by ``inspection.inspect``, judgement
by ``judge``, in the processes of ``pool``. One kernel's own certificates count for its own
modules only, as on the node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from kmodgate.errors import ConfigError, ModuleFormatError
from kmodgate.fsutil import FileReadError, file_error
from kmodgate.inspection import inspect
from kmodgate.model import EffectivePolicy, Origin, SignatureReport, SignatureStatus
from kmodgate.node.kconfig import parse_kconfig
from kmodgate.signature import (
    LATEST,
    KernelProfile,
    Revocations,
    TrustAnchor,
    TrustStore,
    load_certificates,
    profile_for,
)

from .judge import KernelKeysAtHand, judge
from .kernels import KernelImage
from .plan import Part, Plan
from .pool import spread
from .records import Outcome, ScannedFile
from .root import Root

_MAX_KCONFIG = 4 << 20
_UNREADABLE = SignatureStatus.UNREADABLE
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel that modules are for, ready to verify with.

    Attributes:
        trust: configured anchors and this kernel's own.
        profile: what its signature code knows.
        keys: what stands for its keyrings.
    """

    trust: TrustStore
    profile: KernelProfile
    keys: KernelKeysAtHand


@dataclass(frozen=True, slots=True)
class Terms:
    """What every file is judged by.

    Attributes:
        policy: ENFORCE in mode enforce, with the exemptions of the config.
        kernels: by release; None stands for files of which nothing tells the kernel.
        max_size: bytes of a module after decompression.
        require_validity: refuse signers outside their validity.
        now: the time, UTC.
        pinned_device: ``st_dev`` of the pinned root; None when no file is exempt.
    """

    policy: EffectivePolicy
    kernels: Mapping[str | None, Kernel]
    max_size: int
    require_validity: bool
    now: datetime
    pinned_device: int | None


def make_kernel(
    root: Root,
    release: str | None,
    image: KernelImage | None,
    anchors: Sequence[TrustAnchor],
    revocations: Revocations,
    *,
    profile: KernelProfile | None,
    keys: KernelKeysAtHand,
) -> tuple[Kernel, str]:
    """Put together what one kernel trusts and knows.

    Args:
        root: where its configuration is read from.
        release: which; None for files of which nothing tells the kernel.
        image: where its certificates are from; None when they do not count.
        anchors: the configured ones.
        revocations: these win over all.
        profile: None for the one that the kernel's own release and configuration give.
        keys: as for the kernel without image; ``verifiable`` is set here.

    Returns:
        The kernel, and what was left out of its certificates, in words.
    """
    own: list[TrustAnchor] = []
    left_out = 0
    for der in (image.certificates or ()) if image else ():
        try:
            own += load_certificates(der, f"kernel:{release}")
        except ConfigError:  # the kernel passes over what it cannot load, too
            left_out += 1
    kernel = Kernel(
        TrustStore((*anchors, *own), revocations),
        profile or (LATEST if release is None else _profile(root, release)),
        KernelKeysAtHand(keys.used, bool(own), keys.listed),
    )
    return kernel, f"{left_out} of its certificates cannot sign modules" if left_out else ""


def _profile(root: Root, release: str) -> KernelProfile:
    if not re.match(r"\d+\.\d+", release):
        return LATEST
    try:
        text = root.read(f"/boot/config-{release}", _MAX_KCONFIG)[0].decode("utf-8", "replace")
    except FileReadError:
        text = ""
    return profile_for(release, (), {f"CONFIG_{name}": value for name, value in parse_kconfig(text).items()})


def scan_files(
    root: Root, plan: Plan, terms: Terms, jobs: int, progress: Progress
) -> tuple[ScannedFile, ...]:
    """Verify and judge all files of a plan, in order of their paths.

    Args:
        root: where they are.
        plan: which they are.
        terms: what they are judged by.
        jobs: processes to use; 1 uses none but this.
        progress: given the number of files, shows how many are done.

    Raises:
        WorkerError: a process was killed.
    """

    def work(chunk: tuple[Part, ...]) -> list[ScannedFile]:
        return [found for part in chunk for found in _scan_part(root, part, terms)]

    results = spread(work, plan.chunks, jobs)
    files = [
        _unreadable(folder.path, part, folder.problem)
        for folder, part in plan.unreadable
        if folder.problem is not None
    ]
    with progress(plan.files) as advance:
        for found in results:
            files += found
            advance(len(found))
    files.sort(key=lambda file: file.path)
    return tuple(files)


def _scan_part(root: Root, part: Part, terms: Terms) -> Iterator[ScannedFile]:
    try:
        fd = root.open_folder(part.folder)
    except OSError as error:
        problem = file_error(part.folder, error)
        for name in part.names:
            yield _unreadable(_join(part.folder, name), part, problem)
        return
    try:
        for name in part.names:
            yield _scan_one(root, fd, part, name, terms)
    finally:
        os.close(fd)


def _scan_one(root: Root, folder: int, part: Part, name: str, terms: Terms) -> ScannedFile:
    path = _join(part.folder, name)
    kernel = terms.kernels[part.release]
    try:
        raw, device = root.read(path, terms.max_size, folder=folder)
        found = inspect(
            raw,
            kernel.trust,
            max_size=terms.max_size,
            now=terms.now,
            require_validity=terms.require_validity,
            profile=kernel.profile,
        )
    except (FileReadError, ModuleFormatError) as error:
        return _unreadable(path, part, error)
    origin = Origin.PINNED_ROOT if device == terms.pinned_device else Origin.OTHER_FILESYSTEM
    judgement = judge(found, terms.policy, origin, kernel.keys)
    return ScannedFile(
        path, part.release, part.place, judgement.outcome, judgement.reason, judgement.errno, found
    )


def _unreadable(path: str, part: Part, error: FileReadError | ModuleFormatError) -> ScannedFile:
    problem = error.problem if isinstance(error, FileReadError) else str(error)
    return ScannedFile(
        path,
        part.release,
        part.place,
        Outcome.UNREADABLE,
        _UNREADABLE.value,
        error.errno_name,
        SignatureReport(_UNREADABLE, error.errno_name, detail=problem),
    )


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
