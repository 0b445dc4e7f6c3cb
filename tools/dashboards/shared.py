# SPDX-License-Identifier: Apache-2.0
"""What both dashboards have: variables, links, and how verdicts and reasons look."""

from __future__ import annotations

from .parts import (
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Json,
    by_name,
    by_pattern,
    datasource_variable,
    fixed,
    label_variable,
    steps,
    text_variable,
)

FLEET, NODE = "kmodgate-fleet", "kmodgate-node"
TO_NODE = f"/d/{NODE}?var-node=${{__data.fields.Node}}&${{datasource:queryparam}}&${{__url_time_range}}"
TO_RUNBOOK = "${runbooks}/${__data.fields.Alert}.md"
REFUSED = 'verdict=~"deny|would_deny"'

# By family: LoadPin, signature, "could not be found out", the kernel alone.
REASONS: list[Json] = [
    by_pattern("revoked", fixed(PURPLE)),
    by_pattern("unsigned", fixed(RED)),
    by_pattern("untrusted_signer", fixed(ORANGE)),
    by_pattern("(bad|malformed|unsupported)_signature", fixed("#E02F44")),
    by_pattern("outside_pinned_root|no_file", fixed(YELLOW)),
    by_pattern("agent_unavailable|hold_timeout|too_large|unreadable|state_missing", fixed("#1F60C4")),
    by_pattern("kernel_.*|other_security_module", fixed(GREY)),
]
VERDICTS: list[Json] = [
    by_pattern("^deny.*", fixed(RED)),
    by_pattern("^would_deny.*", fixed(YELLOW)),
    by_pattern("^allow.*", fixed(GREEN)),
]

# A certificate is digits as well, and no time.
ENDS_IN = by_name(
    "Ends in",
    ("unit", "s"),
    ("decimals", 1),
    ("thresholds", steps((None, RED), (7 * 86400, YELLOW), (30 * 86400, GREEN))),
    ("custom.cellOptions", {"type": "color-text"}),
    ("color", {"mode": "thresholds"}),
)


def variables(*, node: bool) -> list[Json]:
    """Data source, pool, node, and where the runbooks are."""
    several = not node
    pool = label_variable("pool", "Pool", 'label_values(up{job="kmodgate"}, pool)', several=True)
    found = [datasource_variable("datasource", "prometheus", "Prometheus")]
    if node:
        found.append(datasource_variable("loki", "loki", "Loki"))
    found.append(pool)
    if node:
        expr = 'label_values(up{job="kmodgate", pool=~"$pool"}, instance)'
        found.append(label_variable("node", "Node", expr, several=several))
    found.append(text_variable("runbooks", "Runbooks", "docs/runbooks"))
    return found
