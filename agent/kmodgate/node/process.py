# SPDX-License-Identifier: Apache-2.0
"""What this process itself may do: capabilities, locked memory, PID namespace.

Sources: proc_pid_status(5), proc_pid_limits(5), ``include/uapi/linux/capability.h``,
``PROC_PID_INIT_INO`` in ``include/linux/proc_ns.h``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from .paths import NodePaths, read_text

_CAPABILITIES = re.compile(r"^CapEff:\t([0-9a-f]{1,16})$", re.MULTILINE | re.ASCII)
_LOCKED = re.compile(r"^Max locked memory +(\S+)", re.MULTILINE | re.ASCII)
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"


class Capability(IntEnum):
    """The capabilities that kmodgate can need, by their bit."""

    CAP_DAC_READ_SEARCH = 2
    CAP_NET_ADMIN = 12
    CAP_SYS_MODULE = 16
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_PERFMON = 38
    CAP_BPF = 39


NEEDED: Final = (
    Capability.CAP_BPF,
    Capability.CAP_PERFMON,
    Capability.CAP_SYS_MODULE,
    Capability.CAP_SYS_PTRACE,
)
"""Without one of these `kmodgate run` does not start: docs/operations.md."""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """This process; None where ``/proc/self`` does not tell.

    Attributes:
        capabilities: the effective ones, of those above.
        locked_memory: RLIMIT_MEMLOCK (soft) in bytes; -1 for no limit.
        in_initial_pid_namespace: process 1 is the machine's, not a container's.
    """

    capabilities: frozenset[Capability] | None
    locked_memory: int | None
    in_initial_pid_namespace: bool | None

    def may(self, capability: Capability) -> bool | None:
        """Whether it has a capability; CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON."""
        if self.capabilities is None:
            return None
        if capability in {Capability.CAP_BPF, Capability.CAP_PERFMON}:
            return capability in self.capabilities or Capability.CAP_SYS_ADMIN in self.capabilities
        return capability in self.capabilities

    def lacking(self, needed: Iterable[Capability] = NEEDED) -> list[str]:
        """The names of those that it certainly does not have."""
        return [capability.name for capability in needed if self.may(capability) is False]


def parse_capabilities(status: str) -> frozenset[Capability] | None:
    """The effective capabilities from ``/proc/PID/status``; None when it has no such line."""
    match = _CAPABILITIES.search(status)
    if match is None:
        return None
    bits = int(match[1], 16)
    return frozenset(item for item in Capability if bits >> item & 1)


def parse_locked_memory(limits: str) -> int | None:
    """RLIMIT_MEMLOCK from ``/proc/PID/limits``: bytes, -1 for unlimited; None without such a line."""
    match = _LOCKED.search(limits)
    if match is None:
        return None
    if match[1] == "unlimited":
        return -1
    return int(match[1]) if match[1].isdecimal() else None


def read_process(paths: NodePaths) -> ProcessFacts:
    """Read ``self`` below ``paths.proc``. What is absent is None."""
    own = paths.proc / "self"
    return ProcessFacts(
        capabilities=parse_capabilities(read_text(own / "status") or ""),
        locked_memory=parse_locked_memory(read_text(own / "limits") or ""),
        in_initial_pid_namespace=_is_initial(own / "ns/pid"),
    )


def _is_initial(link: Path) -> bool | None:
    try:
        return str(link.readlink()) == _INITIAL_PID_NAMESPACE
    except OSError:
        return None
