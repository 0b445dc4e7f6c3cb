# SPDX-License-Identifier: Apache-2.0
"""The shape of a node config file, as tables of keys. Pure.

The tables know keys and types. Lines, messages and what the values mean together are
the business of ``parse``, ``problems`` and ``checks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kmodgate.model import CgroupMode, FailurePolicy, Mode, NodeType, Policy

from . import gke, scalars
from .section import Key, RequiredKey, Section, flag, list_of, section, sections, word
from .sinks import EventSinksSection
from .values import BackendChoice, CannotEnforce, KernelProfileChoice, LoadPinSetting, LogLevel, OnExit

MAX_PATHS = 1000
MAX_POOLS = 200
MAX_LABELS = 50
MAX_PREVERIFY = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_paths = list_of(scalars.path, MAX_PATHS)
_load_pin_word = word(LoadPinSetting)


def _load_pin(value: object) -> LoadPinSetting:
    return _load_pin_word(scalars.load_pin(value))


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text; put it in quotes")  # noqa: TRY004  # readers raise ValueError
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{scalars.shown(value)} is no name; use up to 63 letters, digits, '-', '_' and '.', "
            "a letter or digit first"
        )
    return value


def _labels(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise ValueError(
            "must map at least one label to its value; for all nodes write the keys under kmodgate"
        )
    if len(value) > MAX_LABELS:
        raise ValueError(f"has more than {MAX_LABELS} labels; shorten it")
    labels = {}
    for key, item in value.items():
        try:
            labels[scalars.label_key(key)] = scalars.label_value(item)
        except ValueError as error:
            raise ValueError(f"label {scalars.shown(key)}: {error}") from None
    return labels


class ModuleLoading(Section):
    """GKE's ``nodeKernelModuleLoading``."""

    policy = Key("policy", word(Policy))


class LinuxNodeConfig(Section):
    """GKE's ``linuxNodeConfig``."""

    skipped = gke.LINUX_NODE_CONFIG
    kernel_module_loading = section("kernelModuleLoading", ModuleLoading)
    node_kernel_module_loading = section("nodeKernelModuleLoading", ModuleLoading)
    cgroup_mode = Key("cgroupMode", word(CgroupMode))


class GkeNodeConfig(Section):
    """GKE's ``NodeConfig``: what ``describe`` prints under ``config``."""

    skipped = gke.NODE_CONFIG
    linux_node_config = section("linuxNodeConfig", LinuxNodeConfig)
    linux_config = section("linuxConfig", LinuxNodeConfig)


class Trust(Section):
    """``kmodgate.trust``."""

    kernel_keyrings = Key("kernelKeyrings", flag)
    certificates = Key("certificates", _paths)
    require_validity = Key("requireValidity", flag)
    revoked = Key("revoked", _paths)
    revoked_certificates = Key("revokedCertificates", _paths)
    kernel_profile = Key("kernelProfile", word(KernelProfileChoice))


class Logging(Section):
    """``kmodgate.logging``."""

    level = Key("level", word(LogLevel))


class Kubernetes(Section):
    """``kmodgate.kubernetes``."""

    events = Key("events", flag)
    node_condition = Key("nodeCondition", flag)


class Overridable(Section):
    """The keys that stand under ``kmodgate`` and in a node pool alike."""

    mode = Key("mode", word(Mode))
    failure_policy = Key("failurePolicy", word(FailurePolicy))
    node_type = Key("nodeType", word(NodeType))
    load_pin = Key("loadPin", _load_pin)
    load_pin_digests = Key("loadPinTrustedVerityDigests", scalars.path)
    pinned_root_exempt = Key("pinnedRootExempt", flag)
    trust = section("trust", Trust)


class Pool(Overridable):
    """One entry of ``kmodgate.nodePools``."""

    name = RequiredKey("name", _name)
    node_selector = Key("nodeSelector", _labels)
    match_labels = Key("matchLabels", _labels)
    policy = Key("policy", word(Policy))
    cgroup_mode = Key("cgroupMode", word(CgroupMode))

    def check(self) -> None:
        """Exactly one selector."""
        if (self.node_selector is None) == (self.match_labels is None):
            raise ValueError("needs nodeSelector (or matchLabels, the same thing), and only one of them")

    @property
    def labels(self) -> dict[str, str]:
        """The selector, by whichever name."""
        return self.node_selector or self.match_labels or {}


class Kmodgate(Overridable):
    """``kmodgate:``."""

    hold_timeout = Key("holdTimeout", scalars.hold_timeout)
    max_module_size = Key("maxModuleSize", scalars.module_size)
    preverify = Key("preverify", list_of(scalars.directory_pattern, MAX_PREVERIFY))
    listen = Key("listen", scalars.listen)
    web_config = Key("webConfig", scalars.path)
    logging = section("logging", Logging)
    event_sinks = section("eventSinks", EventSinksSection)
    backend = Key("backend", word(BackendChoice))
    on_exit = Key("onExit", word(OnExit))
    cannot_enforce = Key("cannotEnforce", word(CannotEnforce))
    hardened = Key("hardened", flag)
    hardened_token = Key("hardenedToken", scalars.sha256)
    kubernetes = section("kubernetes", Kubernetes)
    node_pools = sections("nodePools", Pool, MAX_POOLS)


class Document(Section):
    """The whole file."""

    skipped = gke.NODE_POOL | gke.NODE_CONFIG
    config = section("config", GkeNodeConfig)
    linux_node_config = section("linuxNodeConfig", LinuxNodeConfig)
    linux_config = section("linuxConfig", LinuxNodeConfig)
    kmodgate = section("kmodgate", Kmodgate)


def keys(model: type[Section]) -> list[str]:
    """The keys of a section, as they stand in the file."""
    return list(model.known)


def places(
    model: type[Section] = Document, at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    """The path of every section, list positions left out, and its table."""
    yield at, model
    for key in model.known.values():
        if key.section is not None:
            yield from places(key.section, (*at, key.name))
