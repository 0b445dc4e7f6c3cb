# SPDX-License-Identifier: Apache-2.0
"""A config with all that it names, read whole and checked against the node.

What is returned can be put in force; whatever cannot is an error here, at start and at
reload alike.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from . import config as node_config
from .config import NodeConfig, to_effective_policy
from .errors import NodeError
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


def read_settings(path: Path, flag: Policy | None, facts: NodeFacts) -> Settings:
    """Read everything that the config names and check that this node can do it.

    Raises:
        KmodgateError: the first thing that is wrong, with place and remedy.
    """
    config = node_config.load(path)
    if flag is not None:
        config = config.with_policy(flag)
    policy = to_effective_policy(config)
    trust, digest = load_trust(config.trust.certificates, config.trust.revoked)
    if policy.policy is Policy.ENFORCE and not config.trust.kernel_keyrings:
        raise NodeError(
            f"{config.origin('trust.kernelKeyrings')}: kernelKeyrings: false needs a digest of every load, "
            "which this version does not take; leave it true"
        )
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
            "revocations apply to modules that configured certificates sign; what the kernel's own "
            "keyrings trust is not looked up"
        )
    return Settings(config, policy, trust, digest)
