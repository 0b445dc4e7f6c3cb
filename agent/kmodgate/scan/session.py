# SPDX-License-Identifier: Apache-2.0
"""One scan from its inputs to its report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.signature import KernelProfile
from kmodgate.truststore import load_trust

from .judge import KernelKeysAtHand
from .kernels import KernelImage
from .live import RunningKernel, node_notes, pair_loaded
from .opening import open_ahead
from .plan import Plan
from .records import KernelTrust, Report
from .root import Root
from .scanner import Kernel, Progress, Terms, make_kernel, profile_of, scan_files


@dataclass(frozen=True, slots=True)
class Inputs:
    """What to judge by, as an operator gives it.

    Attributes:
        policy: of the config, or ENFORCE without exemptions.
        certificates: files with trusted certificates.
        revoked: files with revocations.
        revoked_certificates: files with certificates that are revoked themselves.
        kernel_keyrings: each kernel's own certificates count for its modules.
        require_validity: refuse signers outside their validity.
        max_size: bytes of a module after decompression.
        profile: the kernel whose answers are asked for; None for each kernel's own.
        loaded: look at what is loaded, too.
        jobs: processes to use.
        now: the time, UTC.
    """

    policy: EffectivePolicy
    certificates: tuple[Path, ...]
    revoked: tuple[Path, ...]
    revoked_certificates: tuple[Path, ...]
    kernel_keyrings: bool
    require_validity: bool
    max_size: int
    profile: KernelProfile | None
    loaded: bool
    jobs: int
    now: datetime


class Images(Protocol):
    """Kernel images that are being read elsewhere (``pool.Results``)."""

    @property
    def ready(self) -> bool:
        """Nothing is gained by waiting."""

    def __iter__(self) -> Iterator[KernelImage]:
        """Wait for each."""


def run(  # noqa: PLR0917  # a composition has many parts
    root: Root,
    plan: Plan,
    images: Images,
    running: RunningKernel | None,
    inputs: Inputs,
    progress: Progress,
) -> Report:
    """Scan.

    Args:
        root: where the plan's files are.
        plan: what to read.
        images: the image of each of the plan's releases, in any order; none when the
            kernels' own certificates do not count. Files are opened while they are awaited.
        running: the kernel that runs on this root, or None.
        inputs: what to judge by.
        progress: shows how far it is.

    Raises:
        KmodgateError: certificates or revocations that cannot be used, a node that makes no
            sense, a worker that was killed.
    """
    policy = replace(inputs.policy, policy=Policy.ENFORCE, mode=Mode.ENFORCE)
    trust, _ = load_trust(inputs.certificates, inputs.revoked, inputs.revoked_certificates)
    releases = (*plan.releases, None)
    profiles = {release: inputs.profile or profile_of(root, release) for release in releases}
    work = open_ahead(root, plan.chunks, profiles, inputs.max_size, until=lambda: images.ready)
    kernels: dict[str | None, Kernel] = {}
    known: list[KernelTrust] = []
    found = {image.release: image for image in images}
    for release in releases:
        image = found.get(release) if release is not None else None
        is_running = running is not None and release is not None and running.release == release
        keys = KernelKeysAtHand(
            inputs.kernel_keyrings, False, running.listed if running and is_running else None
        )
        kernels[release], left_out = make_kernel(
            release,
            image,
            trust.anchors,
            trust.revocations,
            profile=profiles[release],
            keys=keys,
        )
        if release is not None:
            known.append(_known(release, image, kernels[release], left_out, is_running))
    terms = Terms(
        policy=policy,
        kernels=kernels,
        max_size=inputs.max_size,
        require_validity=inputs.require_validity,
        now=inputs.now,
        pinned_device=root.device if policy.pinned_root_exempt else None,
    )
    files = scan_files(root, plan, work, terms, jobs=inputs.jobs, progress=progress)
    loaded = None
    if inputs.loaded and running is not None:
        loaded, files = pair_loaded(root, running, files)
    return Report(root.path, tuple(known), files, loaded, _notes(running, inputs, policy))


def _known(
    release: str, image: KernelImage | None, kernel: Kernel, left_out: str, is_running: bool
) -> KernelTrust:
    own = sum(anchor.label == f"kernel:{release}" for anchor in kernel.trust.anchors)
    problem = image.problem if image else "kernelKeyrings is false: its own certificates do not count"
    return KernelTrust(
        release=release,
        running=is_running,
        image=image.path if image else None,
        certificates=own if image and image.certificates is not None else None,
        problem=problem or left_out,
    )


def _notes(running: RunningKernel | None, inputs: Inputs, policy: EffectivePolicy) -> tuple[str, ...]:
    notes = []
    if inputs.policy.policy is not Policy.ENFORCE:
        notes.append(
            f"the policy of the config is {inputs.policy.policy.value}; "
            f"this says what {Policy.ENFORCE.value} would do"
        )
    if policy.pinned_root_exempt:
        notes.append(
            "pinnedRootExempt is set: files on the root file system are accepted without a signature"
        )
    if running is not None:
        notes += node_notes(
            running,
            policy,
            certificates=bool(inputs.certificates),
            kernel_keyrings=inputs.kernel_keyrings,
        )
    return tuple(notes)
