# SPDX-License-Identifier: Apache-2.0
"""What Prometheus knows of each node: pool, policy, refusals by reason, and for how long it was looked at.

The pool is that of now: a node that changed its pool within the window brings its counts along.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from kmodgate.errors import InputError
from kmodgate.model import Mode, Policy, Reason, Verdict

from .prometheus import Sample

Ask = Callable[[str], list[Sample]]

# What LoadPin refuses is no concern of ENFORCE_SIGNED_MODULES, which excludes modules from it.
LOAD_PIN: Final = frozenset({Reason.OUTSIDE_PINNED_ROOT.label, Reason.NO_FILE.label})
LOADED_REFUSED: Final = frozenset(
    {
        "unsigned",
        "untrusted_signer",
        "bad_signature",
        "malformed_signature",
        "unsupported_signature",
        "revoked",
    }
)
LOADED_TRUSTED: Final = "trusted_signature"
_STEPS: Final = 200
_SELECTOR: Final = re.compile(r'[a-zA-Z_]\w*(=|!=|=~|!~)"[^"\\{}\n]*"', re.ASCII)


@dataclass(slots=True)
class NodeCounts:
    """One node.

    Attributes:
        node: its Kubernetes name, or where it is scraped.
        pool: of the config; empty for none.
        policy: in force now; None: it was seen within the window and is not now.
        mode: likewise.
        refused: refusals within the window by verdict and reason, those of LoadPin left out.
        coverage: the part of the window in which ENFORCE was judged, in either mode; 0 to 1.
        loaded_refused: modules that are loaded and that ENFORCE would refuse at the next boot.
        loaded_unknown: modules that are loaded and of which that cannot be told.
        untold: events that were left out of the log or lost within the window.
    """

    node: str
    pool: str = ""
    policy: str | None = None
    mode: str | None = None
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    coverage: float = 0.0
    loaded_refused: int = 0
    loaded_unknown: int = 0
    untold: int = 0

    @property
    def judged(self) -> bool:
        """ENFORCE is judged there now, be it in audit."""
        return self.policy == Policy.ENFORCE

    @property
    def enforced(self) -> bool:
        """ENFORCE is in force there now."""
        return self.judged and self.mode == Mode.ENFORCE


def checked_selector(text: str) -> str:
    """Matchers for every query, such as ``cluster="eu",job="kmodgate"``.

    Raises:
        InputError: they are none.
    """
    if text and not all(_SELECTOR.fullmatch(part.strip()) for part in text.split(",")):
        raise InputError(f'--selector {text!a}: write matchers such as cluster="eu",job="kmodgate"')
    return text


def read_counts(ask: Ask, window: int, selector: str = "") -> list[NodeCounts]:
    """Every node that Prometheus has seen within the window.

    Args:
        ask: an instant query.
        window: seconds.
        selector: matchers, as ``checked_selector`` gives them.
    """
    chosen = f"{{{selector}}}"
    also = f",{selector}" if selector else ""
    by = "by (job, instance"
    nodes: dict[tuple[str, str], NodeCounts] = {}

    def at(sample: Sample) -> NodeCounts:
        key = sample.labels.get("job", ""), sample.labels.get("instance", "")
        return nodes.setdefault(key, NodeCounts(key[1]))

    # One that has no policy now has gone away, or its agent is down.
    for sample in ask(f"count {by}) (last_over_time(kmodgate_policy_info{chosen}[{window}s]))"):
        at(sample)
    # Of a node that is gone the last pools it had; then those of the others, which are the ones that count.
    last = f"last_over_time(kmodgate_node_pool_info{chosen}[{window}s])"
    for expression in (last, f"kmodgate_node_pool_info{chosen}"):
        for sample in ask(f"max {by}, pool, node) ({expression})"):
            _name(at(sample), sample)
    for sample in ask(f"max {by}, policy, mode) (kmodgate_policy_info{chosen})"):
        node = at(sample)
        node.policy, node.mode = sample.labels.get("policy"), sample.labels.get("mode")
    refusals = f"{Verdict.DENY.label}|{Verdict.WOULD_DENY.label}"
    for sample in ask(
        f"sum {by}, verdict, reason) "
        f'(increase(kmodgate_module_loads_total{{verdict=~"{refusals}"{also}}}[{window}s]))'
    ):
        reason = sample.labels.get("reason", "")
        if reason not in LOAD_PIN and sample.value > 0:
            # Prometheus extrapolates to the edges of the window, so counts come out as fractions.
            at(sample).refused[sample.labels.get("verdict", ""), reason] += math.ceil(sample.value - 1e-6)
    step = max(window // _STEPS, 15)
    for sample in ask(
        f"sum {by}) (count_over_time(kmodgate_policy_info"
        f'{{policy="{Policy.ENFORCE}"{also}}}[{window}s:{step}s]))'
    ):
        at(sample).coverage = min(1.0, sample.value * step / window)
    for sample in ask(f"max {by}, signature) (kmodgate_loaded_modules{chosen})"):
        signature = sample.labels.get("signature", "")
        if signature in LOADED_REFUSED:
            at(sample).loaded_refused += int(sample.value)
        elif signature != LOADED_TRUSTED:
            at(sample).loaded_unknown += int(sample.value)
    for sample in ask(
        f'sum {by}) (increase({{__name__=~"kmodgate_events_(suppressed|lost)_total"{also}}}[{window}s]))'
    ):
        at(sample).untold = math.ceil(sample.value - 1e-6)
    return sorted(nodes.values(), key=lambda node: (node.pool, node.node))


def _name(node: NodeCounts, sample: Sample) -> None:
    node.pool = sample.labels.get("pool", "")
    node.node = sample.labels.get("node") or node.node
