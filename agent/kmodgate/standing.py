# SPDX-License-Identifier: Apache-2.0
"""Which rung an agent stands on, and when it goes to a lower one.

A rung that has broken is left only for one that the config lets it stand on. Nothing that the broken
one has in force is taken away: its programs can only refuse.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from .config import BackendChoice
from .errors import HookError, KmodgateError
from .hooks.choice import Choice, Features, choose
from .model import Backend
from .node import NodeFacts, NodePaths
from .rungs import Terms
from .settings import Settings, refuse_on_rung

log = logging.getLogger(__name__)

_PATIENCE: Final = 15
"""Probes in a row, one a second, that a rung may fail before it counts as broken."""


class Standing:
    """The rung of one agent.

    Args:
        facts: of the node.
        paths: where its file systems are mounted.
        wanted: what the operator says.
    """

    def __init__(self, facts: NodeFacts, paths: NodePaths, wanted: BackendChoice) -> None:
        self._facts = facts
        self._paths = paths
        self._wanted = wanted.rung
        self._hopeless = False

    def choose(self, settings: Settings) -> tuple[Choice, Terms]:
        """The rung to begin on. Raises KmodgateError when there is none that can enforce the policy."""
        if os.geteuid() != 0:
            raise HookError("hooking module loads needs root; run: sudo kmodgate run …")
        choice = choose(self._features(), self._wanted)
        for backend, lacks in choice.passed_over:
            log.warning("not on backend %s: %s", backend, "; ".join(lacks) or f"{self._wanted} was asked for")
        return choice, refuse_on_rung(settings, choice.backend)

    def _features(self) -> Features:
        return Features.look(lsm_active=self._facts.has_bpf_lsm, paths=self._paths, wanted=self._wanted)

    def lower(self, settings: Settings, broken: Backend, failures: int) -> tuple[Choice, Terms] | None:
        """The rung to go down to, or None to stay.

        Args:
            settings: in force.
            broken: the rung that the agent stands on.
            failures: its failed probes in a row.
        """
        if failures < _PATIENCE:
            self._hopeless = False
            return None
        if self._hopeless or self._wanted is not None:
            return None
        try:
            choice = choose(self._features(), below=broken)
            terms = refuse_on_rung(settings, choice.backend)
        except KmodgateError as error:
            self._hopeless = True
            log.critical("backend %s has broken, and there is no other to go down to: %s", broken, error)
            return None
        log.critical(
            "backend %s has broken (%d failed probes): going down to %s; restart the agent to go up again",
            broken,
            failures,
            choice.backend,
        )
        return choice, terms
