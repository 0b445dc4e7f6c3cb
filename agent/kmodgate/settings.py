# SPDX-License-Identifier: Apache-2.0
"""A config with all that it names, read whole and checked against the node.

What is returned can be put in force; whatever cannot is an error here, at start and at
reload alike.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import config as node_config
from .config import BackendChoice, NodeConfig, to_effective_policy
from .errors import KmodgateError, NodeError
from .model import EffectivePolicy, Policy
from .node import NodeFacts, Severity, limits
from .signature import Revocations, TrustStore
from .truststore import load_trust

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """A config that was read whole, checked against the node, with its certificates."""

    config: NodeConfig
    policy: EffectivePolicy
    trust: TrustStore
    trust_digest: bytes

    @property
    def trust_key(self) -> tuple[bytes, bool]:
        """Differs when an earlier answer may be wrong."""
        return self.trust_digest, self.config.trust.require_validity


def files_named(path: Path) -> list[Path]:
    """Certificate and revocation files that a config names, usable or not; none if it does not parse."""
    try:
        trust = node_config.load(path).trust
    except KmodgateError:
        return []
    return [*trust.certificates, *trust.revoked]


def refuse_unlabelled(config: NodeConfig, labels: Mapping[str, str] | None) -> None:
    """Node pools without labels to pick one by. Raises NodeError."""
    if config.node_pools and labels is None:
        raise NodeError(
            f"{config.source}: nodePools need the node's labels, which this version does not look up; "
            "name them with --node-label KEY=VALUE"
        )


def refuse_unimplemented(config: NodeConfig) -> None:
    """What the config of one node may ask for and this version does not do. Raises NodeError."""
    if config.backend not in {BackendChoice.AUTO, BackendChoice.BPF_LSM}:
        raise NodeError(
            f"{config.origin('backend')}: backend {config.backend} is not in this version; "
            f"write {BackendChoice.BPF_LSM}, or leave it out"
        )
    if config.policy is Policy.ENFORCE and not config.trust.kernel_keyrings:
        raise NodeError(
            f"{config.origin('trust.kernelKeyrings')}: kernelKeyrings: false needs a digest of every load, "
            "which this version does not take; leave it true"
        )


def read_settings(
    path: Path, flag: Policy | None, facts: NodeFacts, labels: Mapping[str, str] | None = None
) -> Settings:
    """Read everything that the config names and check that this node can do it.

    Args:
        path: the node config.
        flag: the policy that a command line flag demands, or None.
        facts: what the node can do.
        labels: the node's labels, which pick its node pool; None when nobody told them.

    Raises:
        KmodgateError: the first thing that is wrong, with place and remedy.
    """
    config = node_config.load(path)
    if flag is not None:
        config = config.with_policy(flag)
    refuse_unlabelled(config, labels)
    config = node_config.resolve(config, labels or {})
    refuse_unimplemented(config)
    policy = to_effective_policy(config)
    trust, digest = load_trust(config.trust.certificates, config.trust.revoked)
    findings = limits(
        facts, policy, configured_certificates=bool(trust), kernel_keyrings=config.trust.kernel_keyrings
    )
    errors = [finding.message for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        raise NodeError(f"this node cannot enforce {policy.policy}: " + "; ".join(errors))
    for finding in findings:
        log.warning("%s", finding.message)
    for warning in config.warnings:
        log.warning("%s", warning)
    if trust.revocations != Revocations():
        log.warning(
            "revocations are looked up under %s, for modules that the kernel's own keyrings do not trust; "
            "other loads are not checked against them",
            Policy.ENFORCE,
        )
    return Settings(config, policy, trust, digest)
