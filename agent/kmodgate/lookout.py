# SPDX-License-Identifier: Apache-2.0
"""What no load waits for: a look at what is loaded already, and at what may be loaded later.

Wires ``inventory`` and ``preverify`` to the rest of the agent, which knows only this.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from .answers import Answerer
from .inventory import Inventory, Process, Question
from .node import NodeFacts, NodePaths
from .preverify import Preverifier, directories
from .settings import Settings
from .telemetry.events import EventLog
from .telemetry.inventory import LoadedModuleReport, inventory_record
from .telemetry.status import AgentStatus


class Lookout:
    """Inventory and pre-verification of one agent. A context manager; leaving it ends both.

    Args:
        facts: of the node.
        paths: where its file systems are mounted.
        status: takes the numbers.
        event_log: takes a record for each loaded module that is not trusted.
        answerer: verifies.
    """

    def __init__(
        self, facts: NodeFacts, paths: NodePaths, status: AgentStatus, event_log: EventLog, answerer: Answerer
    ) -> None:
        self._paths = paths
        self._built = bool(facts.signatures.built)
        self._root = paths.proc / "1/root"
        self._event_log = event_log
        self._stack = ExitStack()
        process = Process()
        self._stack.callback(process.kill)
        self._inventory = Inventory(paths, publish=status.set_loaded_modules, tell=self._tell, ask=process)
        self._preverifier = Preverifier(
            answerer.learn,
            root=self._root,
            report=status.set_preverified,
            busy=lambda: answerer.busy,
        )
        self._stack.callback(self._preverifier.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def judge_by(self, settings: Settings) -> None:
        """These settings are in force from now on."""
        self._inventory.judge_by(Question.of(self._root, settings, signatures_built=self._built))
        self._preverifier.watch(directories(settings.config, self._paths), settings.config.max_module_size)

    def trust_changed(self) -> None:
        """Answers from before are void. Call it once the new trust answers, before ``judge_by``."""
        self._inventory.redo()
        self._preverifier.redo()

    def look(self) -> None:
        """See which modules came and went: once a second, and after a load. Raises NodeError."""
        self._inventory.look()

    def _tell(self, module: LoadedModuleReport) -> None:
        self._event_log.write_record(
            lambda time, node, number: inventory_record(module, time=time, node=node, sequence=number)
        )
