# SPDX-License-Identifier: Apache-2.0
"""What a policy asks for that a rung of the ladder cannot enforce. Pure.

A policy that a rung cannot enforce is an error at start and at reload, never silence. What the
node itself prevents on every rung is said by ``node.limits``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .model import Backend, EffectivePolicy, Mode, Policy
from .policy import compile_table, refuses

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


@dataclass(frozen=True, slots=True)
class NodeCan:
    """What a node offers the rungs below compiled programs; each text is empty where it offers that.

    Attributes:
        no_refusal: why a kprobe may watch a system call and not refuse it.
        no_sig_enforce: why the kernel cannot be told to refuse by signature.
        no_load_pin: why the kernel's own LoadPin cannot be switched on.
    """

    no_refusal: str = ""
    no_sig_enforce: str = ""
    no_load_pin: str = ""


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


def obstacles(
    backend: Backend, policy: EffectivePolicy, node: NodeCan, *, configured_certificates: bool
) -> tuple[str, ...]:
    """Why this rung of this node cannot carry this policy out, each with its remedy; empty when it can.

    Args:
        backend: the rung.
        policy: what is to be enforced on it.
        node: what was seen of the node; where it was not looked at, nothing speaks against it.
        configured_certificates: the config names certificates of its own.
    """
    found = refusals(backend, policy, configured_certificates=configured_certificates)
    if backend in BEFORE_THE_KERNEL and node.no_refusal and refuses(compile_table(policy)):
        return (*found, only_watches(backend, node.no_refusal))
    if backend in ONLY_WATCHES:
        signatures, load_pin = switches(policy)
        lacks = (node.no_sig_enforce if signatures else "", node.no_load_pin if load_pin else "")
        return (*found, *(f"{_leaves(backend)}, and {why}; {_OBSERVE}" for why in lacks if why))
    return found


def switches(policy: EffectivePolicy) -> tuple[bool, bool]:
    """Whether a policy asks for ``module.sig_enforce``, and for the kernel's own LoadPin."""
    enforce = policy.mode is Mode.ENFORCE
    signatures = policy.policy is Policy.ENFORCE
    return enforce and signatures, enforce and not signatures and policy.load_pin


def only_watches(backend: Backend, why: str) -> str:
    """What is said of a rung that may refuse nothing on this kernel."""
    return (
        f"backend {backend} can refuse nothing on this kernel: {why}; set mode: audit to be told of such "
        "loads, or use a node with a better backend"
    )


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


NO_SIG_ENFORCE = "this kernel has no module.sig_enforce (CONFIG_MODULE_SIG)"
NO_LOAD_PIN = "this kernel has no LoadPin of its own (CONFIG_SECURITY_LOADPIN, loadpin in lsm=)"
_OBSERVE = "write cannotEnforce: observe to be told of such loads only, or use a node with a better backend"


def _leaves(backend: Backend) -> str:
    return f"backend {backend} leaves it to the kernel to refuse"


def _by_the_kernel(
    backend: Backend, policy: EffectivePolicy, *, configured_certificates: bool
) -> Iterator[str]:
    """What ``module.sig_enforce`` and the kernel's own LoadPin cannot do."""
    if policy.mode is not Mode.ENFORCE:
        return
    why, remedy = _leaves(backend), _OBSERVE
    if policy.policy is Policy.ENFORCE:
        if configured_certificates:
            yield f"{why}, which asks its own keyrings, so trust.certificates cannot admit anything; {remedy}"
        if not policy.kernel_keyrings:
            yield f"{why}, which trusts its own keyrings, whatever trust.kernelKeyrings says; {remedy}"
        if policy.pinned_root_exempt:
            yield f"{why}, which exempts no file system, so pinnedRootExempt admits nothing; {remedy}"
    if policy.revocations:
        yield f"{why}, which knows nothing of trust.revoked and trust.revokedCertificates; {remedy}"
