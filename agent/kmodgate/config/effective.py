# SPDX-License-Identifier: Apache-2.0
"""From the config of a fleet to the policy of one node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from kmodgate.model import EffectivePolicy, Policy

from .checks import refuse
from .values import FLAG, NodeConfig, NodePool, PoolOverrides, TrustOverrides, load_pin


def to_effective_policy(config: NodeConfig, *, revocations: bool = False) -> EffectivePolicy:
    """What ``policy.evaluate`` needs of the config, and no more.

    Args:
        config: a config with its overrides applied.
        revocations: the files that it names revoke anything.
    """
    return EffectivePolicy(
        policy=config.policy,
        mode=config.mode,
        load_pin=load_pin(config),
        pinned_root_exempt=config.pinned_root_exempt,
        failure_policy=config.failure_policy,
        kernel_keyrings=config.trust.kernel_keyrings,
        revocations=revocations,
    )


def resolve(config: NodeConfig, labels: Mapping[str, str]) -> NodeConfig:
    """The config of a node with these labels: the first node pool that matches is applied.

    The result keeps ``node_pools``, and applying other labels to it later starts from
    the wrong base: always resolve the config that ``parse`` gave.
    """
    for pool in config.node_pools:
        if pool.matches(labels):
            return apply_pool(config, pool)
    return config


def apply_pool(config: NodeConfig, pool: NodePool) -> NodeConfig:
    """The config with one node pool's overrides, whatever the labels."""
    changes = _given(pool.overrides)
    del changes["trust"]
    return replace(
        config,
        **changes,
        trust=replace(config.trust, **_given(pool.overrides.trust)),
        pool=pool.name,
        origins=MappingProxyType({**config.origins, **pool.origins}),
    )


def _given(overrides: PoolOverrides | TrustOverrides) -> dict[str, Any]:
    """The fields that are set. The values' types are those of the same fields of the config."""
    values = {item.name: getattr(overrides, item.name) for item in fields(overrides)}
    return {name: value for name, value in values.items() if value is not None}


def refuse_any(config: NodeConfig) -> None:
    """Refuse what cannot work, on nodes outside every pool and in each pool.

    Raises:
        ConfigError: see ``checks.refuse``.
    """
    refuse(config)
    for pool in config.node_pools:
        refuse(apply_pool(config, pool), where=f"node pool {pool.name}: ", fallback_line=pool.line)


def with_policy(config: NodeConfig, policy: Policy) -> NodeConfig:
    """The config with the policy that a flag demands; it wins over every node pool.

    Raises:
        ConfigError: the new policy does not go with the rest of the config.
    """
    pools = tuple(
        replace(
            pool,
            overrides=replace(pool.overrides, policy=None),
            origins=MappingProxyType({key: at for key, at in pool.origins.items() if key != "policy"}),
        )
        for pool in config.node_pools
    )
    changed = replace(
        config,
        policy=policy,
        node_pools=pools,
        origins=MappingProxyType({**config.origins, "policy": FLAG}),
    )
    refuse_any(changed)
    return changed
