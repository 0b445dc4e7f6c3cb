# SPDX-License-Identifier: Apache-2.0
"""The labels of this node, as its watch shows them, and as they were seen last while there is none.

A note under /run/kmodgate outlives the agent, so that one that starts while the API server is
away takes the node pool that was in force. The note picks among the pools of the config and
can say nothing else; it is for root alone, who could as well change the config.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from kmodgate.errors import KmodgateError, NodeError
from kmodgate.fsutil import read_regular_file, replace_file

from .api import Api, ApiError, Place, node_name, segment
from .objects import Json, NodeObject, node_of

log = logging.getLogger(__name__)

_NOTE: Final = "node-labels.json"
_MAX_NOTE: Final = 1 << 20


class NodeLabels:
    """The sink of the watch of one node. Safe to use from any thread.

    Args:
        name: of the node; another one's labels are never taken.
        state: directory for the note.
        relabelled: called on the watch's thread when the labels have changed.
    """

    def __init__(self, name: str, state: Path, relabelled: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._state = state
        self._relabelled = relabelled
        self._seen = threading.Event()
        self._node: NodeObject | None = None
        self._noted = _read_note(state / _NOTE, name)

    @property
    def noted(self) -> bool:
        """Whether an earlier agent left a note."""
        return self._noted is not None

    def wait(self, seconds: float) -> Mapping[str, str] | None:
        """The labels; waits so long for the API server, then takes the note; None without either."""
        self._seen.wait(seconds)
        if self._node is not None:
            return self._node.labels
        return self._noted

    @property
    def node(self) -> NodeObject | None:
        """The node as it was seen last; None before it was."""
        return self._node

    def replaced(self, objects: list[Json]) -> None:
        """The node is this; an empty list says that it was deleted, and its labels stay."""
        for item in objects:
            self.changed(item)

    def changed(self, item: Json) -> None:
        """The node changed."""
        node = node_of(item)
        if node is None or node.name != self._name:
            return
        before = self._noted if self._node is None else self._node.labels
        self._node = node
        relabelled = before is None or dict(before) != dict(node.labels)
        if relabelled:
            self._relabelled()
        self._seen.set()  # last of the two: whoever waited for it has heard of this change already
        if relabelled:
            _write_note(self._state, node)

    def deleted(self, item: Json) -> None:
        """The node is gone from the cluster, and this process still runs on it: its pool stays."""
        del item


def look_up_labels(
    name: str, state: Path, environment: Mapping[str, str] | None = None
) -> tuple[Mapping[str, str], str]:
    """The labels of a node, asked once, and where they are from: for commands, not for the agent.

    Raises:
        KmodgateError: not in a cluster, no such node, or no answer and no note.
    """
    environment = os.environ if environment is None else environment
    checked = node_name({"NODE_NAME": name})
    place = Place.in_cluster(environment)
    if place is None or checked is None:
        raise NodeError("not in a pod with a service account; name the labels with --node-label KEY=VALUE")
    try:
        node = node_of(Api(place).get(f"/api/v1/nodes/{segment(checked)}"))
    except ApiError as error:
        noted = _read_note(state / _NOTE, checked) if error.status is None else None
        if noted is None:
            raise
        return noted, f"labels of node {checked} as the agent noted them; {error}"
    if node is None:
        raise NodeError(f"the API server's answer for node {checked} is none; report this as a bug")
    return node.labels, f"labels of node {checked}"


def _read_note(path: Path, name: str) -> Mapping[str, str] | None:
    try:
        note = json.loads(read_regular_file(path, _MAX_NOTE))
    except (KmodgateError, ValueError, RecursionError):
        return None  # as a rule there is none
    node = node_of({"metadata": note}) if isinstance(note, dict) else None
    return node.labels if node is not None and node.name == name else None


def _write_note(state: Path, node: NodeObject) -> None:
    note = json.dumps({"name": node.name, "labels": dict(node.labels)}, sort_keys=True)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(state / _NOTE, note.encode())
    except (OSError, KmodgateError) as error:
        log.warning(
            "the node's labels cannot be noted in %s: an agent that starts while the API server is away will "
            "not know its node pool: %s",
            state,
            error,
        )
