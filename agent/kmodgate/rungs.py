# SPDX-License-Identifier: Apache-2.0
"""What a policy asks for that a rung of the ladder cannot enforce. Pure.

A policy that a rung cannot enforce is an error at start and at reload, never silence. What the
node itself prevents on every rung is said by ``node.limits``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .model import Backend, EffectivePolicy, Mode, Policy

ONLY_WATCHES = frozenset({Backend.TRACEFS})
"""Rungs that refuse nothing: what the kernel refuses by itself is all that is enforced on them."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms an agent stands on its rung.

    Attributes:
        by_kernel: the kernel's own switches are to be set: they refuse what the policy refuses.
        may_observe: the config puts up with loads that are told and not refused.
    """

    by_kernel: bool = False
    may_observe: bool = False


BEFORE_THE_KERNEL = frozenset({Backend.BCC})
"""Rungs that decide before the kernel has looked at the signature."""


NO_DIGEST = frozenset({Backend.BPF_LSM_BASIC})
"""Rungs whose programs cannot tell the digest of what is loaded, nor wait for the agent."""


def refusals(backend: Backend, policy: EffectivePolicy, *, configured_certificates: bool) -> tuple[str, ...]:
    """Why this policy cannot be enforced on this rung, each with its remedy; empty when it can.

    Args:
        backend: the rung.
        policy: what is to be enforced on it.
        configured_certificates: the config names certificates of its own.
    """
    if backend in BEFORE_THE_KERNEL:
        return tuple(_before_the_kernel(backend, policy))
    if backend in ONLY_WATCHES:
        return tuple(_by_the_kernel(backend, policy, configured_certificates=configured_certificates))
    if backend not in NO_DIGEST:
        return ()
    return tuple(_without_digest(backend, policy, configured_certificates=configured_certificates))


def _without_digest(
    backend: Backend, policy: EffectivePolicy, *, configured_certificates: bool
) -> Iterator[str]:
    why = f"backend {backend} takes no digest of what is loaded (the kernel has no bpf_loop)"
    remedy = "or use a node with Linux 5.18 or later"
    enforce = policy.policy is Policy.ENFORCE
    if enforce and configured_certificates:
        yield (
            f"{why}, so trust.certificates cannot admit anything; remove them and have the kernel trust the "
            f"keys (mokutil --import, or build them in), {remedy}"
        )
    if enforce and not policy.kernel_keyrings:
        yield f"{why}, so only the kernel's keyrings can judge; set trust.kernelKeyrings to true, {remedy}"
    if policy.revocations:
        yield (
            f"{why}, so nothing can be revoked; remove trust.revoked and trust.revokedCertificates, {remedy}"
        )


def _before_the_kernel(backend: Backend, policy: EffectivePolicy) -> Iterator[str]:
    if policy.mode is Mode.ENFORCE and policy.policy is Policy.ENFORCE and policy.kernel_keyrings:
        yield (
            f"backend {backend} decides before the kernel looks at the signature, so the kernel's keyrings "
            "cannot be asked; set trust.kernelKeyrings to false and add the certificates that are built into "
            "the kernel to trust.certificates (kmodgate trust extract /boot/vmlinuz-RELEASE prints them), "
            "set mode: audit, or use a node with a better backend"
        )


def _by_the_kernel(
    backend: Backend, policy: EffectivePolicy, *, configured_certificates: bool
) -> Iterator[str]:
    """What ``module.sig_enforce`` and the kernel's own LoadPin cannot do."""
    if policy.mode is not Mode.ENFORCE:
        return
    why = f"backend {backend} leaves it to the kernel to refuse"
    remedy = "write cannotEnforce: observe to be told of such loads only, or use a node with a better backend"
    if policy.policy is Policy.ENFORCE:
        if configured_certificates:
            yield f"{why}, which asks its own keyrings, so trust.certificates cannot admit anything; {remedy}"
        if not policy.kernel_keyrings:
            yield f"{why}, which trusts its own keyrings, whatever trust.kernelKeyrings says; {remedy}"
        if policy.pinned_root_exempt:
            yield f"{why}, which exempts no file system, so pinnedRootExempt admits nothing; {remedy}"
    if policy.revocations:
        yield f"{why}, which knows nothing of trust.revoked and trust.revokedCertificates; {remedy}"
