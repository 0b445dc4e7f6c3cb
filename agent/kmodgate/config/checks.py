# SPDX-License-Identifier: Apache-2.0
"""What a config must not combine, and what it is warned of. Pure.

It looks at the config alone: what the node at hand cannot do is the business of
``kmodgate.node.capability``.
"""

from __future__ import annotations

from kmodgate.errors import ConfigError
from kmodgate.model import CgroupMode, FailurePolicy, Mode, Policy

from .values import CannotEnforce, NodeConfig, OnExit, load_pin


def refuse(config: NodeConfig, *, where: str = "", fallback_line: int | None = None) -> None:
    """Refuse what cannot work.

    Args:
        config: a config with its overrides applied.
        where: prefix for the message, for example the name of a node pool.
        fallback_line: line to name when the offending key itself stands nowhere.

    Raises:
        ConfigError: signature enforcement on cgroup v1, or with nothing to trust.
    """
    if config.policy is not Policy.ENFORCE:
        return
    if config.cgroup_mode is CgroupMode.V1:
        raise ConfigError(
            f"{where}{Policy.ENFORCE} does not go with {CgroupMode.V1}: kernel module signature "
            f"enforcement requires cgroup v2; set cgroupMode to {CgroupMode.V2} or leave it out",
            source=config.source,
            line=_line(config, "cgroupMode", "policy") or fallback_line,
        )
    if config.trust.is_empty:
        raise ConfigError(
            f"{where}{Policy.ENFORCE} with kernelKeyrings false and no certificates trusts nothing: every "
            "module would be denied and the node would stop; list trust.certificates or allow kernelKeyrings",
            source=config.source,
            line=_line(config, "trust.kernelKeyrings", "trust.certificates", "policy") or fallback_line,
        )


def _line(config: NodeConfig, *keys: str) -> int | None:
    """Line of the first of these keys that stands in the file."""
    for key in keys:
        line = config.origin(key).rpartition(":")[2]
        if line.isdecimal():
            return int(line)
    return None


def warnings(config: NodeConfig) -> tuple[str, ...]:
    """One sentence for every setting that weakens the node."""
    found = []
    enforce = config.policy is Policy.ENFORCE
    if config.mode is Mode.AUDIT:
        found.append("mode audit: nothing is denied, refusals are only reported as would_deny")
    if config.pinned_root_exempt:
        found.append(
            "pinnedRootExempt true: under ENFORCE_SIGNED_MODULES files on the root file system load "
            "unsigned; whoever can write to the root can load any module"
            if enforce
            else "pinnedRootExempt true has no effect unless the policy is ENFORCE_SIGNED_MODULES"
        )
    if config.load_pin_digests is not None and not (
        config.pinned_root_exempt if enforce else load_pin(config)
    ):
        found.append(
            "loadPinTrustedVerityDigests has no effect unless LoadPin is on, or pinnedRootExempt under "
            "ENFORCE_SIGNED_MODULES"
        )
    if config.failure_policy is FailurePolicy.IGNORE:
        found.append("failurePolicy Ignore: while the agent is away, loads that need its answer are allowed")
    if config.cannot_enforce is CannotEnforce.OBSERVE:
        found.append(
            "cannotEnforce observe: on a backend that only watches, loads that the policy refuses go through "
            "unless the kernel itself refuses them"
        )
    if config.on_exit is OnExit.DETACH:
        found.append("onExit detach: this node enforces nothing while the agent is away")
    if config.trust.require_validity:
        found.append(
            "trust.requireValidity true: the kernel does not check expiry; a wrong clock or an expired "
            "certificate denies modules that the node may need to boot"
        )
    if config.hardened and config.hardened_token is None:
        found.append(
            "hardened true without hardenedToken: only ending the agent opens the off switches, to whoever "
            "registers next"
        )
    if config.hardened_token is not None and not config.hardened:
        found.append("hardenedToken has no effect unless hardened is true")
    if enforce and not config.trust.kernel_keyrings:
        found.append(
            "trust.kernelKeyrings false: the distribution's own modules need a signature by a configured "
            "certificate, and every load is digested and looked up"
        )
    return tuple(found)
