# SPDX-License-Identifier: Apache-2.0
"""The shape of a node config file, as pydantic models. Pure.

The models know keys and types. Lines, messages and what the values mean together are
the business of ``parse`` and ``checks``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic.alias_generators import to_camel

from kmodgate.model import CgroupMode, FailurePolicy, Mode, NodeType, Policy

from . import gke, scalars
from .values import BackendChoice, ListenAddress, LoadPinSetting, LogLevel

_T = TypeVar("_T")
# Strict models take an enum's member only; a file can hold nothing but its word.
Word = Annotated[_T, Field(strict=False)]
FilePath = Annotated[Path, PlainValidator(scalars.path)]
Paths = Annotated[list[FilePath], Field(max_length=1000)]
HoldTimeout = Annotated[int, PlainValidator(scalars.hold_timeout)]
ModuleSize = Annotated[int, PlainValidator(scalars.module_size)]
Listen = Annotated[ListenAddress, PlainValidator(scalars.listen)]
MAX_POOLS = 200
MAX_LABELS = 50


class Section(BaseModel):
    """A mapping whose keys are all known. Values of the wrong type are not converted."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )


def _is_set(value: object) -> object:
    if value is None:
        raise ValueError("has no value; write one or remove the key")
    return value


# Every key may be left out, none may be left empty: a forgotten value is not a choice.
Given = BeforeValidator(_is_set)


class ModuleLoading(Section):
    """GKE's ``nodeKernelModuleLoading``."""

    policy: Annotated[Word[Policy] | None, Given] = None


class LinuxNodeConfig(Section):
    """GKE's ``linuxNodeConfig``, without the keys that are skipped by name."""

    kernel_module_loading: Annotated[ModuleLoading | None, Given] = None
    node_kernel_module_loading: Annotated[ModuleLoading | None, Given] = None
    cgroup_mode: Annotated[Word[CgroupMode] | None, Given] = None


class GkeNodeConfig(Section):
    """GKE's ``NodeConfig``: what ``describe`` prints under ``config``."""

    linux_node_config: Annotated[LinuxNodeConfig | None, Given] = None
    linux_config: Annotated[LinuxNodeConfig | None, Given] = None


class Trust(Section):
    """``kmodgate.trust``."""

    kernel_keyrings: Annotated[bool | None, Given] = None
    certificates: Annotated[Paths | None, Given] = None
    require_validity: Annotated[bool | None, Given] = None
    revoked: Annotated[Paths | None, Given] = None


class Logging(Section):
    """``kmodgate.logging``."""

    level: Annotated[Word[LogLevel] | None, Given] = None


class Overridable(Section):
    """The keys that stand under ``kmodgate`` and in a node pool alike."""

    mode: Annotated[Word[Mode] | None, Given] = None
    failure_policy: Annotated[Word[FailurePolicy] | None, Given] = None
    node_type: Annotated[Word[NodeType] | None, Given] = None
    load_pin: Annotated[Word[LoadPinSetting] | None, BeforeValidator(scalars.load_pin), Given] = None
    pinned_root_exempt: Annotated[bool | None, Given] = None
    trust: Annotated[Trust | None, Given] = None


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


Labels = Annotated[dict[str, str], PlainValidator(_labels)]
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Pool(Overridable):
    """One entry of ``kmodgate.nodePools``."""

    name: Annotated[Name, Given]
    node_selector: Annotated[Labels | None, Given] = None
    match_labels: Annotated[Labels | None, Given] = None
    policy: Annotated[Word[Policy] | None, Given] = None
    cgroup_mode: Annotated[Word[CgroupMode] | None, Given] = None

    @model_validator(mode="after")
    def _one_selector(self) -> Self:
        if (self.node_selector is None) == (self.match_labels is None):
            raise ValueError("needs nodeSelector (or matchLabels, the same thing), and only one of them")
        return self

    @property
    def labels(self) -> dict[str, str]:
        """The selector, by whichever name."""
        return self.node_selector or self.match_labels or {}


class Kmodgate(Overridable):
    """``kmodgate:``."""

    hold_timeout: Annotated[HoldTimeout | None, Given] = None
    max_module_size: Annotated[ModuleSize | None, Given] = None
    listen: Annotated[Listen | None, Given] = None
    logging: Annotated[Logging | None, Given] = None
    backend: Annotated[Word[BackendChoice] | None, Given] = None
    node_pools: Annotated[list[Pool] | None, Field(max_length=MAX_POOLS), Given] = None


class Document(Section):
    """The whole file."""

    config: Annotated[GkeNodeConfig | None, Given] = None
    linux_node_config: Annotated[LinuxNodeConfig | None, Given] = None
    linux_config: Annotated[LinuxNodeConfig | None, Given] = None
    kmodgate: Annotated[Kmodgate | None, Given] = None


# Path of a section (list positions left out) -> its model and the GKE keys skipped there.
_NOTHING: frozenset[str] = frozenset()
SECTIONS: dict[tuple[str, ...], tuple[type[Section], frozenset[str]]] = {
    (): (Document, gke.NODE_POOL | gke.NODE_CONFIG),
    ("config",): (GkeNodeConfig, gke.NODE_CONFIG),
    ("kmodgate",): (Kmodgate, _NOTHING),
    ("kmodgate", "trust"): (Trust, _NOTHING),
    ("kmodgate", "logging"): (Logging, _NOTHING),
    ("kmodgate", "nodePools"): (Pool, _NOTHING),
    ("kmodgate", "nodePools", "trust"): (Trust, _NOTHING),
}
for _around in ((), ("config",)):
    for _linux in ("linuxNodeConfig", "linuxConfig"):
        SECTIONS[*_around, _linux] = (LinuxNodeConfig, gke.LINUX_NODE_CONFIG)
        for _loading in ("kernelModuleLoading", "nodeKernelModuleLoading"):
            SECTIONS[*_around, _linux, _loading] = (ModuleLoading, _NOTHING)


def keys(model: type[Section]) -> list[str]:
    """The keys of a section, as they stand in the file."""
    return [str(info.alias) for info in model.model_fields.values()]


def prune(data: Any, section: tuple[str, ...] = ()) -> Any:
    """``data`` without the GKE keys that are skipped by name."""
    if not isinstance(data, dict) or section not in SECTIONS:
        return data
    skipped = SECTIONS[section][1]
    return {key: prune(value, (*section, key)) for key, value in data.items() if key not in skipped}
