# SPDX-License-Identifier: Apache-2.0
"""What a node config says, as frozen values.

This module reads nothing and checks nothing: ``parse`` builds these values, ``checks``
refuses combinations. Two configs are equal when they mean the same; the places that
their values came from do not take part in the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from kmodgate.model import Backend, CgroupMode, FailurePolicy, Mode, NodeType, Policy

from .sinkvalues import EventSinks

DEFAULT_HOLD_TIMEOUT_NS = 250_000_000
DEFAULT_MAX_MODULE_SIZE = 64 << 20
DEFAULT_PORT = 9464
NANOSECONDS = 1_000_000_000

DEFAULT = "default"
FLAG = "flag"


class LoadPinSetting(StrEnum):
    """``kmodgate.loadPin``: ``auto`` leaves the choice to the node type."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class BackendChoice(StrEnum):
    """``kmodgate.backend``: the best rung that the node offers, or one by name."""

    AUTO = "auto"
    BPF_LSM = "bpf-lsm"
    BPF_FMOD_RET = "bpf-fmod-ret"
    BPF_LSM_BASIC = "bpf-lsm-basic"
    BCC = "bcc"
    TRACEFS = "tracefs"

    @property
    def rung(self) -> Backend | None:
        """The rung that is named; None where the choice is left to what the kernel offers."""
        return None if self is BackendChoice.AUTO else Backend(self.value)


class CannotEnforce(StrEnum):
    """``kmodgate.cannotEnforce``: what to do on a backend that cannot enforce the policy.

    ``observe`` weakens the node: loads that the policy refuses go through and are only told.
    """

    REFUSE = "refuse"
    OBSERVE = "observe"


class OnExit(StrEnum):
    """``kmodgate.onExit``: whether enforcement outlives the agent."""

    KEEP = "keep"
    DETACH = "detach"


class KernelProfileChoice(StrEnum):
    """``kmodgate.trust.kernelProfile``: the kernel whose signature checks are the measure.

    Its words are those of ``signature.PROFILES`` and ``running``, for the kernel at hand.
    """

    RUNNING = "running"
    LATEST = "latest"
    LINUX_5_10 = "5.10"
    LINUX_6_1 = "6.1"
    LINUX_6_12 = "6.12"
    LINUX_7_2 = "7.2"
    DEBIAN_11 = "debian-11"
    DEBIAN_12 = "debian-12"
    DEBIAN_13 = "debian-13"
    DEBIAN_14 = "debian-14"


class LogLevel(StrEnum):
    """``kmodgate.logging.level``, in the words of Python's ``logging``."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where the HTTP server listens.

    Attributes:
        host: a name, an IPv4 address, or an IPv6 address without brackets.
        port: 0 to 65535; 0 lets the kernel choose a free one.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TrustConfig:
    """Where a signature is trusted.

    Attributes:
        kernel_keyrings: the kernel's own trusted keyrings count.
        certificates: paths of PEM or DER X.509 files, relative ones already joined to
            the directory of the config file. They are not read here.
        require_validity: refuse signers whose certificate is expired or not yet valid.
        revoked: paths of files with revocations, joined likewise.
        revoked_certificates: paths of PEM or DER X.509 files, joined likewise: revoked
            certificates themselves.
        kernel_profile: what that kernel cannot verify is not trusted.
    """

    kernel_keyrings: bool = True
    certificates: tuple[Path, ...] = ()
    require_validity: bool = False
    revoked: tuple[Path, ...] = ()
    revoked_certificates: tuple[Path, ...] = ()
    kernel_profile: KernelProfileChoice = KernelProfileChoice.RUNNING

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is named here."""
        return (*self.certificates, *self.revoked, *self.revoked_certificates)

    @property
    def is_empty(self) -> bool:
        """True when nothing at all could be trusted."""
        return not self.kernel_keyrings and not self.certificates


@dataclass(frozen=True, slots=True)
class TrustOverrides:
    """The keys of ``trust`` that a node pool sets; None where it sets none."""

    kernel_keyrings: bool | None = None
    certificates: tuple[Path, ...] | None = None
    require_validity: bool | None = None
    revoked: tuple[Path, ...] | None = None
    revoked_certificates: tuple[Path, ...] | None = None
    kernel_profile: KernelProfileChoice | None = None


@dataclass(frozen=True, slots=True)
class PoolOverrides:
    """The keys that a node pool sets; None where it sets none."""

    policy: Policy | None = None
    cgroup_mode: CgroupMode | None = None
    mode: Mode | None = None
    failure_policy: FailurePolicy | None = None
    node_type: NodeType | None = None
    load_pin: LoadPinSetting | None = None
    load_pin_digests: Path | None = None
    pinned_root_exempt: bool | None = None
    trust: TrustOverrides = TrustOverrides()


@dataclass(frozen=True, slots=True)
class NodePool:
    """One entry of ``kmodgate.nodePools``.

    Attributes:
        name: unique in its file.
        match_labels: key and value of every label that a node must carry, sorted.
        overrides: what changes on these nodes.
        line: where the entry starts in the file.
        origins: where each overridden value came from.
    """

    name: str
    match_labels: tuple[tuple[str, str], ...]
    overrides: PoolOverrides = PoolOverrides()
    line: int | None = field(default=None, compare=False)
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True when ``labels`` carries every label of the selector."""
        return all(labels.get(key) == value for key, value in self.match_labels)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node's config: defaults filled in, combinations checked.

    Attributes:
        load_pin_digests: path of a file with trusted dm-verity root digests, or None; joined
            as those of ``TrustConfig``.
        policy: GKE's policy word; ``UNSPECIFIED`` when the file gives none.
        cgroup_mode: the cgroup mode that the node pool is configured for.
        hold_timeout_ns: longest time that a load waits for the agent.
        max_module_size: bytes, decompressed; a larger module is ``too_large``.
        event_sinks: where events go beside stdout.
        on_exit: whether enforcement outlives the agent.
        cannot_enforce: what to do on a backend that only watches and whose kernel does not enforce.
        preverify: directories whose modules are verified before they are loaded; None for
            ``updates`` of the running kernel.
        web_config: path of a Prometheus web config file for the HTTP server, or None; joined
            as those of ``TrustConfig``.
        hardened: deny the off switches to everybody but the agent.
        hardened_token: SHA-256 of the one-time token that lifts this, or None.
        kubernetes_events: send Kubernetes events.
        kubernetes_condition: keep the condition ``KernelModulePolicy`` of the node.
        node_pools: overrides by node label; the first match counts.
        pool: name of the node pool already applied by ``resolve``, or None.
        source: name of the file.
        origins: where each value came from, by its key in the file (``"policy"``,
            ``"trust.certificates"``): ``"FILE:LINE"``, ``"flag"``, or absent for a default.
    """

    policy: Policy = Policy.UNSPECIFIED
    cgroup_mode: CgroupMode = CgroupMode.UNSPECIFIED
    mode: Mode = Mode.ENFORCE
    failure_policy: FailurePolicy = FailurePolicy.FAIL
    node_type: NodeType = NodeType.CPU
    load_pin: LoadPinSetting = LoadPinSetting.AUTO
    load_pin_digests: Path | None = None
    pinned_root_exempt: bool = False
    trust: TrustConfig = TrustConfig()
    hold_timeout_ns: int = DEFAULT_HOLD_TIMEOUT_NS
    max_module_size: int = DEFAULT_MAX_MODULE_SIZE
    preverify: tuple[str, ...] | None = None
    listen: ListenAddress = ListenAddress()
    web_config: Path | None = None
    log_level: LogLevel = LogLevel.INFO
    event_sinks: EventSinks = field(default_factory=EventSinks)
    backend: BackendChoice = BackendChoice.AUTO
    on_exit: OnExit = OnExit.KEEP
    cannot_enforce: CannotEnforce = CannotEnforce.REFUSE
    hardened: bool = False
    hardened_token: bytes | None = None
    kubernetes_events: bool = True
    kubernetes_condition: bool = False
    node_pools: tuple[NodePool, ...] = ()
    pool: str | None = None
    source: str = field(default="", compare=False)
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    @property
    def hold_timeout(self) -> float:
        """``hold_timeout_ns`` in seconds."""
        return self.hold_timeout_ns / NANOSECONDS

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for every setting that weakens the node; empty when none does."""
        from .checks import warnings  # noqa: PLC0415  # checks is built on these values

        return warnings(self)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is named here."""
        pinned = () if self.load_pin_digests is None else (self.load_pin_digests,)
        return (*self.trust.files, *pinned)

    def origin(self, key: str) -> str:
        """``"FILE:LINE"``, ``"flag"`` or ``"default"`` for a key such as ``"trust.revoked"``."""
        return self.origins.get(key, DEFAULT)

    def with_policy(self, policy: Policy) -> NodeConfig:
        """This config with the policy that a command line flag demands, in every node pool.

        Raises:
            ConfigError: the new policy does not go with the rest of the config.
        """
        from .effective import with_policy  # noqa: PLC0415  # effective is built on these values

        return with_policy(self, policy)


_LOAD_PIN_BY_DEFAULT = {NodeType.CPU: True, NodeType.TPU: True, NodeType.GPU: False}


def load_pin(config: NodeConfig) -> bool:
    """Whether LoadPin restricts module loads: the setting, or GKE's default for the node type."""
    if config.load_pin is LoadPinSetting.AUTO:
        return _LOAD_PIN_BY_DEFAULT[config.node_type]
    return config.load_pin is LoadPinSetting.ON
