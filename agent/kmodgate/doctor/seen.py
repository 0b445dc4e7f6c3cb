# SPDX-License-Identifier: Apache-2.0
"""What ``doctor`` looked at. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from kmodgate.model import Backend, EffectivePolicy
from kmodgate.node import NodeFacts
from kmodgate.node.process import ProcessFacts
from kmodgate.signature import KernelProfile, TrustStore


@dataclass(frozen=True, slots=True)
class AgentSeen:
    """The answer of the agent's ``/readyz``.

    Attributes:
        address: where it was asked.
        ready: what it said; None when nobody answered.
        said: its first line, or why there was no answer.
    """

    address: str
    ready: bool | None
    said: str


@dataclass(frozen=True, slots=True)
class Purpose:
    """What the node is wanted for.

    Attributes:
        policy: to be enforced on it.
        trust: configured certificates and revocations.
        kernel_keyrings: the kernel's keyrings are trusted.
        require_validity: certificates outside their validity count for nothing.
        refusal: why this version would not start with the config, or None.
        warnings: of the config itself.
        backend: the one that the config names; None where the choice is the agent's.
        may_observe: the config puts up with loads that are told and not refused.
    """

    policy: EffectivePolicy
    trust: TrustStore
    kernel_keyrings: bool = True
    require_validity: bool = False
    refusal: str | None = None
    warnings: tuple[str, ...] = ()
    backend: Backend | None = None
    may_observe: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at a node, or at the image of one; None where it does not tell.

    Attributes:
        live: a running kernel was looked at; False for a mounted image.
        kernels: releases whose build config the image holds; of these, ``facts.release`` was
            looked at.
        machine: ``uname -m``.
        kconfig: options of the build, without ``CONFIG_``.
        functions: which of the names asked for the kernel's BTF has.
        crypto: names of ``/proc/crypto``.
        profile: what these and the build make of the kernel's signature code.
        headers: the kernel's headers are installed, or it carries them.
        bcc: how to get BCC's Python binding; empty when it is here.
        no_refusal: why a kprobe may not refuse a system call here; empty when it may; None when that could
            not be seen.
        no_tracefs: what keeps trace events from being read; None when they could not be looked for.
        jit: ``net.core.bpf_jit_enable`` is not 0.
        libbpf: why libbpf or the programs are missing; empty when they are here.
        tried: the rung whose programs these two are about; None when they are about all of them.
        load: how loading the programs went: empty when the kernel took them, else what it
            said; None when it was not tried.
        now: the clock, UTC.
    """

    live: bool
    facts: NodeFacts
    now: datetime
    kernels: tuple[str, ...] = ()
    machine: str | None = None
    kconfig: Mapping[str, str] | None = None
    functions: frozenset[str] | None = None
    crypto: frozenset[str] | None = None
    profile: KernelProfile | None = None
    process: ProcessFacts | None = None
    bpffs: tuple[str, ...] | None = None
    pinned: tuple[str, ...] | None = None
    headers: bool | None = None
    bcc: str | None = None
    no_refusal: str | None = None
    no_tracefs: tuple[str, ...] | None = None
    jit: bool | None = None
    libbpf: str | None = None
    load: str | None = None
    tried: Backend | None = None
    agent: AgentSeen | None = None

    def option(self, name: str) -> bool | None:
        """Whether a build option is on (``y``); None when the build's config is not at hand."""
        return None if self.kconfig is None else self.kconfig.get(name) == "y"
