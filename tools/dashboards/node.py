# SPDX-License-Identifier: Apache-2.0
"""*Node*: is it enforced here, what was refused, and does the agent keep up."""

from __future__ import annotations

from .parts import (
    BLUE,
    GREEN,
    LOKI,
    RED,
    SEVERITY,
    YELLOW,
    Json,
    bars,
    by_name,
    by_pattern,
    column,
    dashboard,
    dashboard_link,
    fixed,
    heat,
    lines,
    link,
    panel,
    query,
    stat,
    steps,
    table,
)
from .shared import CERTIFICATE, ENDS_IN, FLEET, NODE, REFUSED, TO_RUNBOOK, VERDICTS, variables

_NODE = 'job="kmodgate", instance="$node"'
_YES_NO = [
    {
        "type": "value",
        "options": {
            "0": {"text": "no", "color": RED, "index": 0},
            "1": {"text": "yes", "color": GREEN, "index": 1},
        },
    }
]


def node() -> Json:
    """The dashboard."""
    return dashboard(
        NODE,
        "kmodgate / Node",
        "What one node refused, whether it enforces, and how long loads wait.",
        variables=variables(node=True),
        links=[
            dashboard_link("Fleet", f"/d/{FLEET}?${{datasource:queryparam}}"),
            dashboard_link("Runbooks", "${runbooks}/README.md"),
        ],
        rows=[_state(), _verdicts(), _log(), _latency(), _trust(), _upkeep()],
    )


def _state() -> list[Json]:
    return [
        stat(
            "Enforcing",
            query(f"kmodgate_enforcing{{{_NODE}}}"),
            description="What the probe of the last second saw. Runbook: KmodgateNotEnforcing.",
            mappings=_YES_NO,
            thresholds=steps((None, RED), (1, GREEN)),
        ),
        stat(
            "Agent answers",
            query(f"up{{{_NODE}}}"),
            description="Runbook: KmodgateAgentDown.",
            mappings=_YES_NO,
            thresholds=steps((None, RED), (1, GREEN)),
        ),
        stat(
            "Policy",
            query(f"kmodgate_policy_info{{{_NODE}}}", "{{policy}}, {{mode}}"),
            size=(8, 4),
            text="name",
            description="In force now.",
        ),
        stat(
            "Rung",
            query(f"kmodgate_backend_info{{{_NODE}}}", "{{backend}}"),
            text="name",
            description="What the kernel of this node offers; bpf-lsm is the best.",
        ),
        stat(
            "Refused",
            query(
                f"sum(increase(kmodgate_module_loads_total{{{_NODE}, {REFUSED}}}[$__range]))", instant=True
            ),
            description="Loads in the time shown, those that audit let in included.",
            decimals=0,
            thresholds=steps((None, GREEN), (1, RED)),
        ),
    ]


def _verdicts() -> list[Json]:
    loads = f"kmodgate_module_loads_total{{{_NODE}}}"
    return [
        lines(
            "Verdicts",
            [
                query(
                    f"sum by (verdict, reason) (increase({loads}[$__rate_interval])) > 0",
                    "{{verdict}}: {{reason}}",
                )
            ],
            size=(16, 8),
            description="Every decided load. A point of an exemplar names the event's number in the log.",
            stacked=True,
            decimals=0,
            overrides=VERDICTS,
        ),
        table(
            "Alerts",
            query(
                'sum by (alertname, severity, reason) (ALERTS{alertname=~"Kmodgate.*", alertstate="firing", '
                'instance="$node"})',
                instant=True,
            ),
            {"alertname": "Alert", "severity": "Severity", "reason": "Reason"},
            size=(8, 8),
            sort="Severity",
            description="What fires for this node now; leads to the runbook.",
            overrides=[column("Alert", 240, ("links", [link("Runbook", TO_RUNBOOK)])), SEVERITY],
        ),
    ]


def _log() -> list[Json]:
    expr = '{app="kmodgate"} | json | event="module_load" | node="$node" | verdict=~"deny|would_deny"'
    line = (
        '{{.verdict}} {{.reason}} {{.module}} {{.path}} pod={{.pod_namespace}}/{{.pod_name}} signer="{{.signer_issuer}}" '
        "exe={{.exe}} uid={{.uid}}"
    )
    target = {
        "refId": "A",
        "datasource": LOKI,
        "expr": f"{expr} | line_format `{line}`",
        "queryType": "range",
    }
    return [
        panel(
            "logs",
            "Latest refusals",
            [target],
            size=(24, 7),
            description="Module, file, pod and signer, from the event log. Needs Loki with the agents' standard output.",
            datasource=LOKI,
            options={
                "showTime": True,
                "wrapLogMessage": True,
                "enableLogDetails": True,
                "sortOrder": "Descending",
                "dedupStrategy": "none",
                "showLabels": False,
                "showCommonLabels": False,
                "prettifyLogMessage": False,
            },
        )
    ]


def _latency() -> list[Json]:
    def seen(name: str) -> str:
        return f"sum by (le) (increase({name}_bucket{{{_NODE}}}[$__rate_interval]))"

    return [
        heat(
            "Time to decide",
            seen("kmodgate_decision_seconds"),
            description="What kmodgate adds to a load, waiting included.",
        ),
        heat(
            "Wait for the agent",
            seen("kmodgate_hold_seconds"),
            description="Only loads of modules that the kernel does not trust and the agent has not seen yet.",
        ),
        heat(
            "Verification", seen("kmodgate_verify_seconds"), description="Reading and verifying one module."
        ),
    ]


def _trust() -> list[Json]:
    return [
        lines(
            "Slowest wait, and the limit",
            [
                query(f"instance:kmodgate_hold_seconds:p99_15m{{{_NODE}}} >= 0", "99 of 100 loads"),
                query(f"kmodgate_hold_limit_seconds{{{_NODE}}}", "limit", ref="B"),
            ],
            size=(8, 8),
            unit="s",
            description="Beyond the limit failurePolicy decides. Runbook: KmodgateHoldNearLimit.",
            overrides=[by_name("limit", fixed(RED)), by_pattern("99.*", fixed(BLUE))],
        ),
        table(
            "Trust anchors",
            query(f"kmodgate_trust_anchor_not_after_timestamp_seconds{{{_NODE}}} - time()", instant=True),
            {"anchor": "Certificate", "Value": "Ends in"},
            size=(8, 8),
            sort="Ends in",
            description="By the first digits of their SHA-256; `kmodgate trust list` names them.",
            overrides=[CERTIFICATE, ENDS_IN],
        ),
        bars(
            "Loaded modules, by signature",
            query(f"kmodgate_loaded_modules{{{_NODE}}} > 0", "{{signature}}"),
            size=(8, 8),
            description="All that are in the kernel now. Runbook: KmodgateUntrustedModuleLoadedEarlier.",
            thresholds=steps((None, YELLOW)),
            overrides=[by_name("trusted_signature", fixed(GREEN))],
        ),
    ]


def _upkeep() -> list[Json]:
    def rising(name: str, label: str, ref: str) -> Json:
        return query(
            f"increase({name}{{{_NODE}}}[$__rate_interval]) > 0", f"{label}: {{{{{label}}}}}", ref=ref
        )

    return [
        lines(
            "What should stay at 0",
            [
                rising("kmodgate_kernel_errors_total", "kind", "A"),
                rising("kmodgate_events_lost_total", "kind", "B"),
                rising("kmodgate_off_switch_events_total", "switch", "C"),
                rising("kmodgate_scrape_errors_total", "source", "D"),
                rising("kmodgate_event_sink_dropped_total", "sink", "E"),
            ],
            size=(12, 8),
            description="Errors inside the programs, lost events, off switches. Empty is good.",
            stacked=True,
            decimals=0,
        ),
        lines(
            "Answers of the agent",
            [
                query(
                    f"sum by (outcome) (increase(kmodgate_questions_total{{{_NODE}}}[$__rate_interval])) > 0",
                    "{{outcome}}",
                )
            ],
            size=(6, 8),
            description="What became of the questions about unknown modules.",
            stacked=True,
            decimals=0,
        ),
        lines(
            "The agent itself",
            [
                query(f"rate(process_cpu_seconds_total{{{_NODE}}}[$__rate_interval])", "processors"),
                query(f"process_resident_memory_bytes{{{_NODE}}}", "memory", ref="B"),
            ],
            size=(6, 8),
            description="Processor time and resident memory.",
            overrides=[by_name("memory", ("unit", "bytes"), ("custom.axisPlacement", "right"))],
        ),
    ]
