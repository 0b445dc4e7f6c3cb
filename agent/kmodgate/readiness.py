# SPDX-License-Identifier: Apache-2.0
"""Whether enforcement works: seen by a probe, never taken from a setting."""

from __future__ import annotations

import logging
from typing import Final

from .errors import KmodgateError
from .hooks.bpf import BpfBackend
from .model import EffectivePolicy, Mode, Policy
from .node import NodePaths, read_strictness
from .selfprobe import probe_problem
from .telemetry.status import AgentStatus

log = logging.getLogger(__name__)

_STARTING: Final = "starting"


class Readiness:
    """What ``/readyz`` says, and ``kmodgate_enforcing`` with it.

    Args:
        status: is told whether the policy is enforced.
        paths: where the kernel's own checks are looked at.

    Attributes:
        problem: why the agent is not ready; None when it is.
        strictness: what the kernel refuses by itself.
    """

    def __init__(self, status: AgentStatus, paths: NodePaths) -> None:
        self.problem: str | None = _STARTING
        self._status = status
        self._paths = paths
        self.strictness = read_strictness(paths)

    def strictness_changed(self) -> bool:
        """Look again at what the kernel refuses by itself, and say when it is not as it was."""
        strictness = read_strictness(self._paths)
        if strictness == self.strictness:
            return False
        log.warning("the kernel's own checks changed: %s", strictness)
        self.strictness = strictness
        return True

    def probe(self, backend: BpfBackend, policy: EffectivePolicy) -> None:
        """See whether enforcement works, and be ready only if it does."""
        watches = False
        try:
            found = backend.probe()
            watches = found.only_watches
            problem = probe_problem(policy, found, kernel_refuses=self.strictness.refuses)
        except KmodgateError as error:
            problem = str(error)
        needs_root = policy.pinned_root_exempt if policy.policy is Policy.ENFORCE else policy.load_pin
        if problem is None and needs_root and not backend.root_pinned:
            problem = "the pinned root file system has gone away: nothing counts as lying on it any more"
        if problem != self.problem:
            if problem is not None:
                log.critical("not enforcing: %s", problem)
            elif self.problem != _STARTING:
                log.warning("enforcing again")
        self.problem = problem
        self._status.set_enforcing(problem is None and policy.mode is Mode.ENFORCE and not watches)
