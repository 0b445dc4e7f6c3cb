# SPDX-License-Identifier: Apache-2.0
"""YAML bytes to a ``NodeConfig``. Pure: reading files is the business of ``files``.

Steps:

1. YAML to plain data with lines (``tree``): size, depth, duplicate keys.
2. Keys and types (``schema``): every problem is reported, each with its line.
3. GKE's spellings of one setting are brought together; two that differ are an error.
4. Defaults are filled in, paths joined to the directory of the file.
5. Combinations that cannot work are refused (``checks``), in every node pool too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from kmodgate.errors import ConfigError
from kmodgate.model import CgroupMode, Policy

from . import schema, sinks
from .effective import refuse_any
from .problems import ConfigProblems, report
from .tree import KeyPath, Tree, read
from .values import (
    LoadPinSetting,
    NodeConfig,
    NodePool,
    PoolOverrides,
    TrustConfig,
    TrustOverrides,
)

_T = TypeVar("_T")
# Keys of a section that are no values of the config.
_NOT_VALUES = {
    "trust",
    "logging",
    "eventSinks",
    "kubernetes",
    "nodePools",
    "name",
    "nodeSelector",
    "matchLabels",
}


def parse(data: bytes, *, source: str, directory: Path = Path()) -> NodeConfig:
    """Read a node config.

    Args:
        data: the file's bytes: one YAML document in UTF-8, at most 1 MiB.
        source: name of the file, for messages.
        directory: what relative paths in the file are relative to.

    Raises:
        ConfigError: with the line of the first problem; ``ConfigProblems`` when several
            keys or types are wrong.
    """
    document = read(data, source=source)  # 1
    try:
        model = schema.Document.read(document.data)  # 2
    except ValueError as error:
        raise report(error, document, source) from None
    config = _Builder(document, source, directory).build(model)  # 3, 4
    refuse_any(config)  # 5
    return config


@dataclass(slots=True)
class _Builder:
    """Steps 3 and 4 for one document; ``origins`` fills up on the way."""

    tree: Tree
    source: str
    directory: Path
    origins: dict[str, str] = field(default_factory=dict)

    def build(self, model: schema.Document) -> NodeConfig:
        policy, cgroup_mode = self.gke(model)
        ours = model.kmodgate or schema.Kmodgate()
        base = NodeConfig()
        trust = self.trust(ours, ("kmodgate",), self.origins)
        self.note(ours, ("kmodgate",), self.origins)
        level = None if ours.logging is None else ours.logging.level
        if level is not None:
            self.origins["logging.level"] = self.place(("kmodgate", "logging", "level"))
        kubernetes = ours.kubernetes or schema.Kubernetes()
        for key in kubernetes.given:
            self.origins[f"kubernetes.{key}"] = self.place(("kmodgate", "kubernetes", key))
        return NodeConfig(
            policy=_or(policy, base.policy),
            cgroup_mode=_or(cgroup_mode, base.cgroup_mode),
            mode=_or(ours.mode, base.mode),
            failure_policy=_or(ours.failure_policy, base.failure_policy),
            node_type=_or(ours.node_type, base.node_type),
            load_pin=_or(ours.load_pin, LoadPinSetting.AUTO),
            load_pin_digests=self.joined_one(ours.load_pin_digests),
            pinned_root_exempt=_or(ours.pinned_root_exempt, base.pinned_root_exempt),
            trust=TrustConfig(
                kernel_keyrings=_or(trust.kernel_keyrings, base.trust.kernel_keyrings),
                certificates=_or(trust.certificates, ()),
                require_validity=_or(trust.require_validity, base.trust.require_validity),
                revoked=_or(trust.revoked, ()),
                revoked_certificates=_or(trust.revoked_certificates, ()),
                kernel_profile=_or(trust.kernel_profile, base.trust.kernel_profile),
            ),
            hold_timeout_ns=_or(ours.hold_timeout, base.hold_timeout_ns),
            max_module_size=_or(ours.max_module_size, base.max_module_size),
            preverify=None if ours.preverify is None else tuple(ours.preverify),
            listen=_or(ours.listen, base.listen),
            web_config=self.joined_one(ours.web_config),
            log_level=_or(level, base.log_level),
            event_sinks=sinks.build(ours.event_sinks, self.directory),
            backend=_or(ours.backend, base.backend),
            on_exit=_or(ours.on_exit, base.on_exit),
            cannot_enforce=_or(ours.cannot_enforce, base.cannot_enforce),
            hardened=_or(ours.hardened, base.hardened),
            hardened_token=_or(ours.hardened_token, base.hardened_token),
            kubernetes_events=_or(kubernetes.events, base.kubernetes_events),
            kubernetes_condition=_or(kubernetes.node_condition, base.kubernetes_condition),
            node_pools=self.pools(ours.node_pools or []),
            source=self.source,
            origins=MappingProxyType(self.origins),
        )

    def gke(self, model: schema.Document) -> tuple[Policy | None, CgroupMode | None]:
        """Bring GKE's spellings together."""
        sections: list[tuple[KeyPath, schema.LinuxNodeConfig | None]] = [
            (("linuxNodeConfig",), model.linux_node_config),
            (("linuxConfig",), model.linux_config),
        ]
        if model.config is not None:
            sections += [
                (("config", "linuxNodeConfig"), model.config.linux_node_config),
                (("config", "linuxConfig"), model.config.linux_config),
            ]
        policies: list[tuple[KeyPath, Policy]] = []
        modes: list[tuple[KeyPath, CgroupMode]] = []
        for path, section in sections:
            if section is None:
                continue
            if section.cgroup_mode is not None:
                modes.append(((*path, "cgroupMode"), section.cgroup_mode))
            for key, loading in (
                ("kernelModuleLoading", section.kernel_module_loading),
                ("nodeKernelModuleLoading", section.node_kernel_module_loading),
            ):
                if loading is not None and loading.policy is not None:
                    policies.append(((*path, key, "policy"), loading.policy))
        return self.agreed("policy", policies), self.agreed("cgroupMode", modes)

    def agreed(self, key: str, given: list[tuple[KeyPath, _T]]) -> _T | None:
        """The value that all places give, or None when there is no place."""
        if not given:
            return None
        (path, value), *others = given
        for other_path, other in others:
            if other != value:
                lines = sorted((self.tree.line(path) or 0, self.tree.line(other_path) or 0))
                raise ConfigError(
                    f"{key} is {other} here, but line {lines[0]} says otherwise; keep one of the two",
                    source=self.source,
                    line=lines[1],
                )
        self.origins[key] = self.place(path)
        return value

    def pools(self, models: list[schema.Pool]) -> tuple[NodePool, ...]:
        pools = []
        first: dict[str, int | None] = {}
        problems = []
        for index, model in enumerate(models):
            path: KeyPath = ("kmodgate", "nodePools", index)
            line = self.tree.line(path)
            if model.name in first:
                problems.append(
                    ConfigError(
                        f"node pool {model.name} stands twice, first on line {first[model.name]}; rename one",
                        source=self.source,
                        line=line,
                    )
                )
            first.setdefault(model.name, line)
            origins: dict[str, str] = {}
            self.note(model, path, origins)
            overrides = PoolOverrides(
                policy=model.policy,
                cgroup_mode=model.cgroup_mode,
                mode=model.mode,
                failure_policy=model.failure_policy,
                node_type=model.node_type,
                load_pin=model.load_pin,
                load_pin_digests=self.joined_one(model.load_pin_digests),
                pinned_root_exempt=model.pinned_root_exempt,
                trust=self.trust(model, path, origins),
            )
            labels = tuple(sorted(model.labels.items()))
            pools.append(NodePool(model.name, labels, overrides, line, MappingProxyType(origins)))
        if problems:
            raise ConfigProblems(problems)
        return tuple(pools)

    def trust(self, section: schema.Overridable, path: KeyPath, origins: dict[str, str]) -> TrustOverrides:
        model = section.trust
        if model is None:
            return TrustOverrides()
        for key in model.given:
            origins[f"trust.{key}"] = self.place((*path, "trust", key))
        return TrustOverrides(
            kernel_keyrings=model.kernel_keyrings,
            certificates=self.joined(model.certificates),
            require_validity=model.require_validity,
            revoked=self.joined(model.revoked),
            revoked_certificates=self.joined(model.revoked_certificates),
            kernel_profile=model.kernel_profile,
        )

    def joined(self, paths: list[Path] | None) -> tuple[Path, ...] | None:
        return None if paths is None else tuple(self.directory / path for path in paths)

    def joined_one(self, path: Path | None) -> Path | None:
        return None if path is None else self.directory / path

    def note(self, model: schema.Overridable, path: KeyPath, origins: dict[str, str]) -> None:
        """Write down where each key of a section stands."""
        for key in model.given.keys() - _NOT_VALUES:
            origins[key] = self.place((*path, key))

    def place(self, path: KeyPath) -> str:
        return f"{self.source}:{self.tree.line(path)}"


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
