# SPDX-License-Identifier: Apache-2.0
"""Whether enforcement works: seen by a probe, never taken from a setting."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Final

from .errors import KmodgateError
from .hooks.bpf import ProbeResult
from .hooks.rung import RungBackend
from .hooks.switches import KernelSwitches
from .model import Backend, EffectivePolicy, Mode, Policy
from .node import NodePaths, read_strictness
from .rungs import ONLY_WATCHES, Terms
from .selfprobe import kernel_enforces, probe_problem, watch_problem
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
        since: Unix time since which probes have found it so; None before the first one.
        strictness: what the kernel refuses by itself.
        terms: on which the agent stands on its rung.
        failures: probes in a row that found something wrong.
    """

    def __init__(self, status: AgentStatus, paths: NodePaths) -> None:
        self.problem: str | None = _STARTING
        self.since: float | None = None
        self._status = status
        self._paths = paths
        self.strictness = read_strictness(paths)
        self.terms = Terms()
        self.failures = 0
        self._switches = KernelSwitches(paths)

    def strictness_changed(self) -> bool:
        """Look again at what the kernel refuses by itself, and say when it is not as it was."""
        strictness = read_strictness(self._paths)
        if strictness == self.strictness:
            return False
        log.warning("the kernel's own checks changed: %s", strictness)
        self.strictness = strictness
        return True

    def probe(
        self,
        backend: RungBackend,
        policy: EffectivePolicy,
        changed: Callable[[RungBackend], None] = lambda _backend: None,
    ) -> None:
        """See whether enforcement works, and be ready only if it does.

        A rung that only watches is ready where it sees, and the kernel enforces or need not.

        Args:
            backend: the rung.
            policy: in force.
            changed: is called before the probe where the kernel refuses something else than before.
        """
        enforces = True
        try:
            unset: tuple[str, ...] = ()
            if backend.backend in ONLY_WATCHES and self.terms.by_kernel:
                unset = self._switches.apply(policy)
            if self.strictness_changed():
                changed(backend)
            if backend.backend in ONLY_WATCHES:
                probe = backend.probe()
                enforces = self.terms.by_kernel and not unset and kernel_enforces(policy, probe)
                problem = watch_problem(probe) or self._unenforced(policy, probe, unset, enforces=enforces)
            else:
                probe = backend.probe()
                enforces = not probe.only_watches
                problem = probe_problem(policy, probe, kernel_refuses=self.strictness.refuses)
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
        if self.since is None or (problem is None) != (self.problem is None):
            self.since = time.time()
        self.problem = problem
        self.failures = 0 if problem is None else self.failures + 1
        self._status.set_enforcing(problem is None and enforces and policy.mode is Mode.ENFORCE)

    def _unenforced(
        self, policy: EffectivePolicy, probe: ProbeResult, unset: tuple[str, ...], *, enforces: bool
    ) -> str | None:
        """Why a policy that is to be enforced is not; None where that is put up with."""
        if enforces or policy.mode is not Mode.ENFORCE or self.terms.may_observe:
            return None
        why = "; ".join(unset) or f"the self-probe was answered {errno.errorcode.get(probe.errno, '0')}"
        return (
            f"nothing refuses what {policy.policy} refuses: {why}; write cannotEnforce: observe to be "
            "told of such loads only"
        )

    def leave(self, backend: Backend, *, keep: bool) -> str:
        """What is left in force on this node, in a sentence, after what can be undone was undone."""
        if backend not in ONLY_WATCHES:
            return "detached: this node no longer enforces a module policy"
        if not keep:
            left = self._switches.restore()
        else:
            left = "".join(f"{name} stays 1; " for name in self._switches.set_here).removesuffix("; ")
        return f"nobody watches this node any more; {left or 'no switch of the kernel was set'}"
