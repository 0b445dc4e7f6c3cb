# SPDX-License-Identifier: Apache-2.0
"""Verifies the module files of a plan and says of each what ENFORCE would do.

The composition: reading by ``opening``, verification by ``inspection``, judgement by ``judge``,
in the processes of ``pool``. One kernel's own certificates count for its own modules only, as
on the node.
"""

from __future__ import annotations

import copyreg
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from operator import attrgetter

from kmodgate.errors import ConfigError
from kmodgate.fsutil import FileReadError
from kmodgate.inspection import verify_module
from kmodgate.model import EffectivePolicy, ModuleInfo, Origin, SignatureReport, Signer
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
from .opening import Opened, Work, open_files, unreadable
from .plan import Plan
from .pool import spread
from .records import ScannedFile
from .root import Root

_MAX_KCONFIG = 4 << 20
# Bytes of modules after which what was opened is judged: a few dozen of Debian's.
_BATCH = 8 << 20
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
    release: str | None,
    image: KernelImage | None,
    anchors: Sequence[TrustAnchor],
    revocations: Revocations,
    *,
    profile: KernelProfile,
    keys: KernelKeysAtHand,
) -> tuple[Kernel, str]:
    """Put together what one kernel trusts and knows.

    Args:
        release: which; None for files of which nothing tells the kernel.
        image: where its certificates are from; None when they do not count.
        anchors: the configured ones.
        revocations: these win over all.
        profile: what its signature code knows.
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
        profile,
        KernelKeysAtHand(keys.used, bool(own), keys.listed),
    )
    return kernel, f"{left_out} of its certificates cannot sign modules" if left_out else ""


def profile_of(root: Root, release: str | None) -> KernelProfile:
    """What a kernel's signature code knows, by its release and configuration."""
    if release is None or not re.match(r"\d+\.\d+", release):
        return LATEST
    try:
        text = root.read(f"/boot/config-{release}", _MAX_KCONFIG)[0].decode("utf-8", "replace")
    except FileReadError:
        text = ""
    return profile_for(release, (), {f"CONFIG_{name}": value for name, value in parse_kconfig(text).items()})


def _pickle_by_fields(kind: type) -> None:
    """Let workers hand over a frozen dataclass at a third of the time that its own way takes."""
    fields = attrgetter(*kind.__slots__)  # type: ignore[attr-defined]  # all four have slots
    copyreg.pickle(kind, lambda value: (kind, fields(value)))


for _kind in (ScannedFile, SignatureReport, ModuleInfo, Signer):
    _pickle_by_fields(_kind)


def scan_files(
    root: Root, plan: Plan, work: Sequence[Work], terms: Terms, *, jobs: int, progress: Progress
) -> tuple[ScannedFile, ...]:
    """Verify and judge all files of a plan, in order of their paths.

    Args:
        root: where they are.
        plan: which they are.
        work: its chunks, from ``open_ahead``.
        terms: what they are judged by.
        jobs: processes to use; 1 uses none but this.
        progress: given the number of files, shows how many are done.

    Raises:
        WorkerError: a process was killed.
    """
    results = spread(lambda one: _scan(root, one, terms), work, jobs)
    files = [
        unreadable(folder.path, part, folder.problem)
        for folder, part in plan.unreadable
        if folder.problem is not None
    ]
    with progress(plan.files) as advance:
        for found in results:
            files += found
            advance(len(found))
    files.sort(key=lambda file: file.path)
    return tuple(files)


def _scan(root: Root, work: Work, terms: Terms) -> list[ScannedFile]:
    """Open and judge in batches, each of a bounded size and one file more."""
    done: list[ScannedFile] = []
    batch: list[Opened] = []
    held = 0
    for one in chain(work.opened, open_files(root, work.parts, terms.max_size)):
        if isinstance(one, ScannedFile):
            done.append(one)
            continue
        batch.append(one)
        held += one.module.file.size
        if held >= _BATCH:
            done += [_judge(opened, terms) for opened in batch]
            batch, held = [], 0
    return done + [_judge(opened, terms) for opened in batch]


def _judge(opened: Opened, terms: Terms) -> ScannedFile:
    part = opened.part
    kernel = terms.kernels[part.release]
    found = verify_module(
        opened.module,
        kernel.trust,
        now=terms.now,
        require_validity=terms.require_validity,
        profile=kernel.profile,
    )
    origin = Origin.PINNED_ROOT if opened.device == terms.pinned_device else Origin.OTHER_FILESYSTEM
    judgement = judge(found, terms.policy, origin, kernel.keys)
    return ScannedFile(
        opened.path, part.release, part.place, judgement.outcome, judgement.reason, judgement.errno, found
    )
