# SPDX-License-Identifier: Apache-2.0
"""YAML bytes to ``NodeConfig``: GKE's own shapes, node pools, reload.

``parse`` is pure, ``load`` reads a file, ``resolve`` picks the node pool, and
``to_effective_policy`` gives the policy engine what it needs. Watching for edits is in
``kmodgate.config.watch``. Certificates are named here and read elsewhere.
"""

from __future__ import annotations

from .effective import apply_pool, resolve, to_effective_policy
from .files import load
from .parse import parse
from .problems import ConfigProblems
from .sinkvalues import EventSinks, FileSinkConfig, OtlpSinkConfig
from .values import (
    BackendChoice,
    CannotEnforce,
    KernelProfileChoice,
    ListenAddress,
    LoadPinSetting,
    LogLevel,
    NodeConfig,
    NodePool,
    OnExit,
    TrustConfig,
    load_pin,
)

__all__ = [
    "BackendChoice",
    "CannotEnforce",
    "ConfigProblems",
    "EventSinks",
    "FileSinkConfig",
    "KernelProfileChoice",
    "ListenAddress",
    "LoadPinSetting",
    "LogLevel",
    "NodeConfig",
    "NodePool",
    "OnExit",
    "OtlpSinkConfig",
    "TrustConfig",
    "apply_pool",
    "load",
    "load_pin",
    "parse",
    "resolve",
    "to_effective_policy",
]
