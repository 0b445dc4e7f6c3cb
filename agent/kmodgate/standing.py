# SPDX-License-Identifier: Apache-2.0
"""Which rung an agent stands on, and when it goes to another one.

The best rung that can carry the policy out is stood on. It is left when it has broken, for a lower one;
and when a changed config asks for what it cannot do and another one can. Nothing that a broken rung has in
force is taken away: its programs can only refuse.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from .config import BackendChoice, CannotEnforce
from .errors import HookError, KmodgateError, NodeError
from .hooks.choice import Choice, Features, choose
from .hooks.switches import KernelSwitches
from .model import Backend
from .node import NodeFacts, NodePaths
from .rungs import BEFORE_THE_KERNEL, ONLY_WATCHES, NodeCan, Terms, obstacles
from .settings import Settings

log = logging.getLogger(__name__)

_PATIENCE: Final = 15
"""Probes in a row, one a second, that a rung may fail before it counts as broken."""


class Standing:
    """The rung of one agent.

    Args:
        facts: of the node.
        paths: where its file systems are mounted.
        wanted: what the operator says.

    Attributes:
        choice: the rung that the agent stands on.
        terms: on which it does.
        next: the rung to go to and on which terms, or None.
        broken: the rung that it leaves has broken; False where the config is the reason.
    """

    choice: Choice
    terms: Terms

    def __init__(self, facts: NodeFacts, paths: NodePaths, wanted: BackendChoice) -> None:
        self.next: tuple[Choice, Terms] | None = None
        self.broken = False
        self._facts = facts
        self._paths = paths
        self._wanted = wanted.rung
        self._hopeless = False
        self._below: Backend | None = None
        self._before: tuple[tuple[Choice, Terms], Settings] | None = None

    def choose(self, settings: Settings) -> None:
        """Find the rung to begin on: ``next``. Raises KmodgateError when none can enforce the policy."""
        if os.geteuid() != 0:
            raise HookError("hooking module loads needs root; run: sudo kmodgate run …")
        self.next = self._best(settings)

    def lower(self, settings: Settings, failures: int) -> bool:
        """Whether to leave a rung that has broken: ``next`` is then the one to go down to.

        Args:
            settings: in force.
            failures: failed probes in a row.
        """
        if failures < _PATIENCE:
            self._hopeless = False
            return False
        if self._hopeless or self._wanted is not None:
            return False
        broken = self.choice.backend
        try:
            found = self._best(settings, below=broken)
        except KmodgateError as error:
            self._hopeless = True
            log.critical("backend %s has broken, and there is no other to go down to: %s", broken, error)
            return False
        self._below, self._before, self.next, self.broken = broken, None, found, True
        log.critical(
            "backend %s has broken (%d failed probes): going down to %s; restart the agent to go up again",
            broken,
            failures,
            found[0].backend,
        )
        return True

    def reconsider(self, old: Settings, new: Settings) -> bool:
        """Whether a changed config needs another rung: ``next`` is then that one.

        The present rung is kept where it can carry the config out, a better one or not.

        Raises:
            KmodgateError: no rung can carry it out.
        """
        backend = self.choice.backend
        lacks = self._cannot(new, backend)
        if not lacks:
            self.terms = self._terms(new, backend)
            return False
        found = self._best(new, below=self._below)
        self._before, self.next = ((self.choice, self.terms), old), found
        log.warning("leaving backend %s for %s: %s", backend, found[0].backend, "; ".join(lacks))
        return True

    def step(self) -> bool:
        """Stand on ``next``; False where there is none, and the agent ends."""
        if self.next is None:
            return False
        (self.choice, self.terms), self.next, self.broken = self.next, None, False
        return True

    def arrived(self, settings: Settings) -> None:
        """The rung works with these settings: there is no way back."""
        if self._before is not None:
            log.info("config reloaded: %s", settings.summary())
        self._before = None

    @contextmanager
    def going_back(self, refused: Callable[[Settings, KmodgateError], None]) -> Iterator[None]:
        """Stand where the agent stood before, if a rung fails that it went to for a changed config.

        Args:
            refused: is told the settings of before and why the changed ones were not put in force.
        """
        try:
            yield
        except KmodgateError as error:
            if self._before is None:
                raise
            (self.next, old), self._before = self._before, None
            refused(old, error)

    def _best(self, settings: Settings, *, below: Backend | None = None) -> tuple[Choice, Terms]:
        """The best rung for this config, or the one that is asked for. Raises KmodgateError."""
        features = Features.look(lsm_active=self._facts.has_bpf_lsm, paths=self._paths, wanted=self._wanted)
        choice = choose(features, self._wanted, below=below, cannot=partial(self._cannot, settings))
        if choice.cannot:
            policy = settings.policy.policy
            raise NodeError(f"this node cannot enforce {policy}: {'; '.join(choice.cannot)}")
        for backend, lacks in choice.passed_over:
            log.warning("not on backend %s: %s", backend, "; ".join(lacks))
        if choice.passed_over:
            best = "the best that works here and can carry the policy out"
            log.info("backend %s: %s", choice.backend, "it was asked for" if self._wanted else best)
        return choice, self._terms(settings, choice.backend)

    def _cannot(self, settings: Settings, backend: Backend) -> tuple[str, ...]:
        """What a rung cannot carry out, unless the config puts up with it."""
        return () if _observes(settings, backend) else self._obstacles(settings, backend)

    def _obstacles(self, settings: Settings, backend: Backend) -> tuple[str, ...]:
        node = NodeCan()
        if backend in BEFORE_THE_KERNEL:
            from .hooks.bcc import cannot_refuse

            node = NodeCan(no_refusal=cannot_refuse(self._paths))
        elif backend in ONLY_WATCHES:
            node = KernelSwitches(self._paths).offer()
        return obstacles(backend, settings.policy, node, configured_certificates=bool(settings.trust))

    def _terms(self, settings: Settings, backend: Backend) -> Terms:
        if backend not in ONLY_WATCHES:
            return Terms()
        problems = self._obstacles(settings, backend)
        for problem in problems:
            log.warning("not enforced, only observed: %s", problem)
        return Terms(by_kernel=not problems, may_observe=_observes(settings, backend))


def _observes(settings: Settings, backend: Backend) -> bool:
    return backend in ONLY_WATCHES and settings.config.cannot_enforce is CannotEnforce.OBSERVE
