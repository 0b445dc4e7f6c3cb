# SPDX-License-Identifier: Apache-2.0
"""*Fleet*: is the policy in force everywhere, who tries what, and where."""

from __future__ import annotations

from .parts import (
    BLUE,
    GREEN,
    RED,
    SEVERITY,
    YELLOW,
    Json,
    bars,
    column,
    dashboard,
    dashboard_link,
    lines,
    link,
    query,
    stat,
    steps,
    table,
)
from .shared import ENDS_IN, FLEET, NODE, REASONS, REFUSED, TO_NODE, TO_RUNBOOK, variables

_POOL = 'job="kmodgate", pool=~"$pool"'
_ALERT = '{alertname=~"Kmodgate.*", alertstate="firing"}'
_ZERO_IS_GOOD = steps((None, GREEN), (1, RED))


def fleet() -> Json:
    """The dashboard."""
    return dashboard(
        FLEET,
        "kmodgate / Fleet",
        "Which nodes enforce their module policy, what is refused, and where.",
        variables=variables(node=False),
        links=[
            dashboard_link("Node", f"/d/{NODE}?${{datasource:queryparam}}"),
            dashboard_link("Runbooks", "${runbooks}/README.md"),
        ],
        rows=[_numbers(), _alerts(), _attempts(), _coverage(), _inventory()],
    )


def _numbers() -> list[Json]:
    refused = f"kmodgate_module_loads_total{{{_POOL}, verdict="
    return [
        stat(
            "Nodes that enforce",
            query(
                'sum(pool:kmodgate_nodes_enforcing:sum{pool=~"$pool"}) / sum(pool:kmodgate_nodes:count{pool=~"$pool"})'
            ),
            description="Seen by a probe on each node, over all nodes, those without an agent included.",
            unit="percentunit",
            decimals=1,
            thresholds=steps((None, RED), (0.5, YELLOW), (0.99, GREEN)),
        ),
        stat(
            "To enforce, and do not",
            query(
                f"count(kmodgate_enforcing{{{_POOL}}} == 0 and on (instance) "
                f'kmodgate_policy_info{{{_POOL}, mode="enforce"}}) or vector(0)'
            ),
            description="Any module may load there. Runbook: KmodgateNotEnforcing.",
            thresholds=_ZERO_IS_GOOD,
        ),
        stat(
            "Agents that do not answer",
            query(f"count(up{{{_POOL}}} == 0) or vector(0)"),
            description="Runbook: KmodgateAgentDown.",
            thresholds=_ZERO_IS_GOOD,
        ),
        stat(
            "Refused",
            query(f'sum(increase({refused}"deny"}}[$__range]))', instant=True),
            description="Loads that were refused in the time shown.",
            decimals=0,
            thresholds=_ZERO_IS_GOOD,
        ),
        stat(
            "Would be refused",
            query(f'sum(increase({refused}"would_deny"}}[$__range]))', instant=True),
            description="Loads that audit mode let in, in the time shown.",
            decimals=0,
            thresholds=steps((None, GREEN), (1, YELLOW)),
        ),
        stat(
            "In without a decision",
            query(
                f'sum(increase(kmodgate_kernel_errors_total{{{_POOL}, kind="loaded_unseen"}}[$__range]))',
                instant=True,
            ),
            description="Modules that no program judged. Runbook: KmodgateLoadedWithoutDecision.",
            decimals=0,
            thresholds=_ZERO_IS_GOOD,
        ),
    ]


def _alerts() -> list[Json]:
    return [
        table(
            "Alerts",
            query(f"sum by (alertname, severity, pool, instance, reason) (ALERTS{_ALERT})", instant=True),
            {
                "alertname": "Alert",
                "severity": "Severity",
                "pool": "Pool",
                "instance": "Node",
                "reason": "Reason",
            },
            size=(12, 8),
            description="What fires now. The alert leads to its runbook, the node to its dashboard.",
            overrides=[
                column("Alert", 270, ("links", [link("Runbook", TO_RUNBOOK)])),
                SEVERITY,
                column("Pool", 80),
                column("Node", 190, ("links", [link("Node", TO_NODE)])),
            ],
        ),
        table(
            "Who tries what, and where",
            query(
                "topk(50, sum by (pool, instance, verdict, reason) "
                f"(increase(kmodgate_module_loads_total{{{_POOL}, {REFUSED}}}[$__range])) > 0.5)",
                instant=True,
            ),
            {"pool": "Pool", "instance": "Node", "verdict": "Verdict", "reason": "Reason", "Value": "Loads"},
            size=(12, 8),
            description="The nodes with most refused loads in the time shown. Module and pod are in the node's events.",
            decimals=0,
            overrides=[
                column("Pool", 80),
                column("Node", 190, ("links", [link("Node", TO_NODE)])),
                column("Verdict", 100),
                column("Loads", 80),
            ],
        ),
    ]


def _attempts() -> list[Json]:
    loads = f"kmodgate_module_loads_total{{{_POOL}, {REFUSED}}}"
    return [
        lines(
            "Attempts, by reason",
            [query(f"sum by (reason) (increase({loads}[$__rate_interval])) > 0", "{{reason}}")],
            description="Refused loads, and those that audit let in.",
            stacked=True,
            decimals=0,
            overrides=REASONS,
        ),
        lines(
            "Would be refused, by pool",
            [query('pool:kmodgate_would_deny:increase1h{pool=~"$pool"}', "{{pool}}")],
            description="In an hour, in audit mode. Nothing for a week: the pool can go over to enforce.",
            decimals=0,
        ),
    ]


def _coverage() -> list[Json]:
    return [
        bars(
            "Enforcing, by pool",
            query('pool:kmodgate_enforcing:ratio{pool=~"$pool"}', "{{pool}}"),
            description="Nodes that enforce over all nodes of the pool.",
            size=(7, 7),
            unit="percentunit",
            thresholds=steps((None, RED), (0.5, YELLOW), (0.99, GREEN)),
            bounds=(0, 1),
        ),
        bars(
            "Map of attempts",
            query(
                f"sum by (pool, reason) (increase(kmodgate_module_loads_total{{{_POOL}, {REFUSED}}}[$__range])) > 0.5",
                "{{pool}}: {{reason}}",
                instant=True,
            ),
            size=(8, 7),
            description="By pool and reason, in the time shown.",
            decimals=0,
            thresholds=steps((None, YELLOW), (10, RED)),
        ),
        bars(
            "Policy and mode",
            query('pool_policy_mode:kmodgate_nodes:count{pool=~"$pool"}', "{{pool}}: {{mode}} {{policy}}"),
            size=(9, 7),
            thresholds=steps((None, BLUE)),
            description="Nodes by the policy in force there.",
        ),
    ]


def _inventory() -> list[Json]:
    return [
        bars(
            "Versions",
            query('sum by (version) (pool_version:kmodgate_nodes:count{pool=~"$pool"})', "{{version}}"),
            thresholds=steps((None, BLUE)),
            size=(6, 6),
            description="How far a rollout has come.",
        ),
        bars(
            "Rungs",
            query('sum by (backend) (pool_backend:kmodgate_nodes:count{pool=~"$pool"})', "{{backend}}"),
            thresholds=steps((None, BLUE)),
            size=(6, 6),
            description="What the nodes' kernels offer; bpf-lsm is the best.",
        ),
        bars(
            "Loaded and not trusted",
            query(
                f'sum by (signature) (kmodgate_loaded_modules{{{_POOL}, signature!="trusted_signature"}}) > 0',
                "{{signature}}",
            ),
            size=(6, 6),
            description="Modules in the kernels of these nodes, by what is known of their signature.",
            thresholds=steps((None, YELLOW)),
        ),
        table(
            "Certificates",
            query(
                f"min by (pool, anchor) (kmodgate_trust_anchor_not_after_timestamp_seconds{{{_POOL}}}) - time()",
                instant=True,
            ),
            {"pool": "Pool", "anchor": "Certificate", "Value": "Ends in"},
            size=(6, 6),
            description="Trust anchors by the first digits of their SHA-256. Runbook: KmodgateTrustAnchorExpiring.",
            overrides=[column("Pool", 70), column("Certificate", 170), ENDS_IN],
        ),
    ]
