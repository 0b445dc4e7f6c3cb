# SPDX-License-Identifier: Apache-2.0
"""The one table of metrics: names, types, labels, and the closed sets of label values.

Everything that is exported is declared here, and docs/metrics.md is this table printed
(``python -m kmodgate.telemetry.reference > docs/metrics.md``; a test compares the two). No
name of a module, a path, a pod or a process is ever a label value: these are chosen by
whoever loads the module, and each new one would be a new series. They are in the event log.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from kmodgate.model import Api, Backend, By, FailurePolicy, Mode, Policy, Reason, Verdict
from kmodgate.node import RootProtection

from .kubernetes import KUBERNETES_EVENTS, KUBERNETES_WATCH, NODE_POOL_INFO
from .sinkmetrics import EVENT_SINK_DROPPED, EVENT_SINK_SENT
from .table import Kind, Label, Metric


class QuestionOutcome(StrEnum):
    """What became of a question that the programs asked the agent."""

    TRUSTED = "trusted"
    REFUSED = "refused"
    GONE = "gone"
    """The loader had closed the file or ended before the agent looked: no error."""
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    BUSY = "busy"
    """All workers were busy and the queue was full."""
    FAILED = "failed"
    """The agent made a mistake; its log says which."""


class EventLoss(StrEnum):
    """Where an event was lost. The first two are keys of ``KernelCounters.lost``."""

    EVENT_RING = "event_ring"
    QUESTION_RING = "question_ring"
    LOG_QUEUE = "log_queue"
    LOG_WRITE = "log_write"


class KernelErrorKind(StrEnum):
    """What failed inside the programs: the keys of ``KernelCounters.errors``."""

    STORAGE_FAILED = "storage_failed"
    READ_FAILED = "read_failed"
    PATH_FAILED = "path_failed"
    TABLE_RACED = "table_raced"
    ABANDONED = "abandoned"
    LOADED_UNSEEN = "loaded_unseen"
    REDECIDED = "redecided"
    REFUSED_EARLY = "refused_early"
    WAITS_REFUSED = "waits_refused"


class LoadedSignature(StrEnum):
    """What is known of a module that is loaded now: the kernel's own word, or its file's signature."""

    TRUSTED_SIGNATURE = "trusted_signature"
    """The kernel found its signature good, or the file of its name has one that is trusted here."""
    UNSIGNED = "unsigned"
    UNTRUSTED_SIGNER = "untrusted_signer"
    BAD_SIGNATURE = "bad_signature"
    MALFORMED_SIGNATURE = "malformed_signature"
    UNSUPPORTED_SIGNATURE = "unsupported_signature"
    REVOKED = "revoked"
    UNREADABLE = "unreadable"
    """There is a file, and it could not be read."""
    NO_FILE = "no_file"
    """Loaded from memory, from elsewhere, or its file is gone."""
    FILE_DIFFERS = "file_differs"
    """The file on disk is not what was loaded."""
    UNKNOWN = "unknown"
    """The signer may be a key of the kernel that is not at hand to verify with."""
    NOT_VERIFIED = "not_verified"
    """Nobody has looked yet, or looking failed: the agent's log says why."""


class PreverifyOutcome(StrEnum):
    """What became of a module file in a directory of ``kmodgate.preverify``."""

    TRUSTED = "trusted"
    NOT_TRUSTED = "not_trusted"
    """No configured certificate trusts it. The kernel's own keys may."""
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    LEFT_OUT = "left_out"
    """Beyond the bounds of a scan: at least so many."""


class OffSwitch(StrEnum):
    """What would switch kmodgate's programs off, and can be seen to have been touched."""

    FTRACE = "ftrace_enabled"
    BPFFS = "bpffs"
    PINS = "pins"


class GuardedSwitch(StrEnum):
    """What the guard denies (``hardened: true``)."""

    FTRACE = "ftrace_enabled"
    BPFFS = "bpffs"
    PINS = "pins"
    BPF = "bpf"
    PTRACE = "ptrace"


class ScrapeSource(StrEnum):
    """A part of the metrics that is read on its own and can fail on its own."""

    LOADS = "loads"
    HISTOGRAMS = "histograms"
    STATISTICS = "statistics"
    STATUS = "status"
    AGENT = "agent"
    EVENT_LOG = "event_log"
    GUARD = "guard"
    EVENT_SINKS = "event_sinks"
    CLUSTER = "cluster"


def _switch(name: str) -> Label:
    return Label(name, ("false", "true"))


def _doubled(*exponents: int) -> tuple[float, ...]:
    """Upper bounds among those that the programs count by: a microsecond, doubled so often."""
    return tuple(2**exponent * 1e-6 for exponent in exponents)


_VERDICT: Final = Label("verdict", tuple(v.label for v in Verdict if v is not Verdict.PENDING))
_REASON: Final = Label("reason", tuple(r.label for r in Reason))
_API: Final = Label("api", tuple(a.label for a in Api))
_BY: Final = Label("by", tuple(b.label for b in By))

MODULE_LOADS: Final = Metric(
    "kmodgate_module_loads_total",
    Kind.COUNTER,
    "Module loads decided, counted in the kernel by the program that took the decision.",
    "The first one to ask. `deny` and `would_deny` by `reason` say what is refused; the event log says which "
    "module. The refusals that the policy in force can give are there at 0 before the first load.",
    (_VERDICT, _REASON, _API, _BY),
)
LOAD_ATTEMPTS: Final = Metric(
    "kmodgate_module_load_attempts_total",
    Kind.COUNTER,
    "Module loads that reached the first hook, decided or not.",
    "Attempts + redecided = decided + undecided + program misses. A rising difference means loads that "
    "nobody judged.",
)
LOADS_UNDECIDED: Final = Metric(
    "kmodgate_module_loads_undecided_total",
    Kind.COUNTER,
    "Module loads that failed on their own before a decision was due.",
    "Broken files and kernels out of memory. Harmless, and needed to make the sum above come out.",
)
PROGRAM_MISSES: Final = Metric(
    "kmodgate_program_misses_total",
    Kind.COUNTER,
    "Runs of attached programs that the kernel skipped because the same program was active on that CPU.",
    "Must be 0 on `bpf-lsm`. On `bpf-fmod-ret` each one may be a load that was let in unseen.",
)
KERNEL_ERRORS: Final = Metric(
    "kmodgate_kernel_errors_total",
    Kind.COUNTER,
    "Failures inside the attached programs, by what failed.",
    "`loaded_unseen` is critical: a module got in without a decision. `storage_failed` ends in "
    '`reason="state_missing"`. `refused_early` counts calls that failed before any hook (no '
    "CAP_SYS_MODULE, a bad descriptor) and `redecided` loads under which the policy changed: no "
    "failures. `waits_refused` counts loads that got no answer because as many as may wait did so already: "
    'they end in `reason="hold_timeout"`. The others cost detail in events or a retry, not a decision.',
    (Label("kind", tuple(KernelErrorKind)),),
)
DECISION_SECONDS: Final = Metric(
    "kmodgate_decision_seconds",
    Kind.HISTOGRAM,
    "Time that the deciding program took for a load, the wait for the agent included.",
    "What kmodgate adds to a load. Microseconds, unless the load had to wait for a verification.",
    buckets=_doubled(2, 4, 6, 8, 10, 14, 18),
)
HOLD_SECONDS: Final = Metric(
    "kmodgate_hold_seconds",
    Kind.HISTOGRAM,
    "Time that a load waited for the agent's answer.",
    "Close to `kmodgate_hold_limit_seconds`: the agent is starved or the modules are large. Pre-verify their "
    "directory.",
    buckets=_doubled(10, 12, 14, 15, 16, 17, 18, 19, 20, 22),
)
HOLD_LIMIT: Final = Metric(
    "kmodgate_hold_limit_seconds",
    Kind.GAUGE,
    "Longest time that a load may wait for the agent's answer (`holdTimeout`).",
    "What `kmodgate_hold_seconds` is to be compared with.",
)
VERIFY_SECONDS: Final = Metric(
    "kmodgate_verify_seconds",
    Kind.HISTOGRAM,
    "Time that the agent took to read and verify one module.",
    "If this is short while the hold is long, questions wait for a worker.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0),
)
QUESTIONS: Final = Metric(
    "kmodgate_questions_total",
    Kind.COUNTER,
    "Questions of the programs to the agent, by what became of them.",
    "`busy` and `failed` are loads that were refused for want of an answer.",
    (Label("outcome", tuple(QuestionOutcome)),),
)
EVENTS_LOST: Final = Metric(
    "kmodgate_events_lost_total",
    Kind.COUNTER,
    "Records lost on their way to the event log or the agent, by where. Counts of loads lose nothing.",
    "Rings: the agent is too slow or stopped. `log_queue`: nobody reads stdout. `log_write`: stdout is gone.",
    (Label("kind", tuple(EventLoss)),),
)
EVENTS_SUPPRESSED: Final = Metric(
    "kmodgate_events_suppressed_total",
    Kind.COUNTER,
    "Events that the flood limit left out of the event log.",
    "Somebody tries again and again. The loads themselves are decided and counted all the same.",
    (_VERDICT, _REASON),
)
ENFORCING: Final = Metric(
    "kmodgate_enforcing",
    Kind.GAUGE,
    "1 if the policy is to be enforced and the last self-probe found the hooks alive, else 0.",
    "The alert to have. It is the result of a probe, not of a setting: 0 in audit mode and whenever the "
    "hooks are dead.",
)
HARDENED: Final = Metric(
    "kmodgate_hardened",
    Kind.GAUGE,
    "1 if the off switches are denied to everybody but the agent, else 0.",
    "0 with `hardened: true` in the config: a token has lifted the guard, or the agent is starting.",
)
OFF_SWITCH_EVENTS: Final = Metric(
    "kmodgate_off_switch_events_total",
    Kind.COUNTER,
    "Times that the agent found an off switch touched, by which one.",
    "Any increase: somebody with root tried to switch enforcement off, and the agent put it back where "
    "it could. Loads in between may have gone unjudged: look at `kmodgate_enforcing` and the log.",
    (Label("switch", tuple(OffSwitch)),),
)
OFF_SWITCH_DENIALS: Final = Metric(
    "kmodgate_off_switch_denials_total",
    Kind.COUNTER,
    "Attempts on the off switches that the guard denied (`hardened: true`), by which one.",
    "There on hardened nodes alone. The log names the process that tried last. `bpf` also counts harmless "
    "readers, such as `bpftool` listing maps.",
    (Label("switch", tuple(GuardedSwitch)),),
)
POLICY_INFO: Final = Metric(
    "kmodgate_policy_info",
    Kind.INFO,
    "The policy in force on this node.",
    "Compare it over the fleet; a node that differs has not read its config or matches another pool.",
    (
        Label("policy", tuple(Policy)),
        Label("mode", tuple(Mode)),
        _switch("load_pin"),
        _switch("pinned_root_exempt"),
        Label("failure_policy", tuple(FailurePolicy)),
    ),
)
BACKEND_INFO: Final = Metric(
    "kmodgate_backend_info",
    Kind.INFO,
    "The rung of the ladder that this node stands on.",
    "The log of the start says why a node cannot do better.",
    (Label("backend", tuple(Backend)),),
)
BACKEND_DOWNGRADES: Final = Metric(
    "kmodgate_backend_downgrades_total",
    Kind.COUNTER,
    "Times that a backend broke under the agent, which then went to a lower rung of the ladder.",
    "Any increase: this node enforces less than it did, and its counters began anew. The log says why; "
    "restart the agent to go up again.",
)
BUILD_INFO: Final = Metric(
    "kmodgate_build_info",
    Kind.INFO,
    "The running agent.",
    "Says how far a rollout has come.",
    (
        Label("version", pattern=r"[0-9A-Za-z.+-]{1,32}", note="of kmodgate"),
        Label("python", pattern=r"[0-9A-Za-z.+]{1,16}", note="of the interpreter"),
        Label("machine", pattern=r"[0-9a-z_]{1,16}", note="as `uname -m` prints it"),
    ),
)
RELOAD_SUCCESSFUL: Final = Metric(
    "kmodgate_config_last_reload_successful",
    Kind.GAUGE,
    "1 if the last config that was read could be used, else 0.",
    "0: the node keeps its last good config. The agent's log names file, line and remedy.",
)
RELOAD_TIMESTAMP: Final = Metric(
    "kmodgate_config_last_reload_success_timestamp_seconds",
    Kind.GAUGE,
    "Unix time of the last config that could be used.",
    "Older than your last rollout: this node has not seen it.",
)
TRUST_ANCHORS: Final = Metric(
    "kmodgate_trust_anchors",
    Kind.GAUGE,
    "Configured certificates in force.",
    "0 under `ENFORCE_SIGNED_MODULES` leaves the kernel's own keyrings alone to decide.",
)
TRUST_ANCHOR_NOT_AFTER: Final = Metric(
    "kmodgate_trust_anchor_not_after_timestamp_seconds",
    Kind.GAUGE,
    "Unix time at which a configured certificate expires; the 64 that expire first.",
    "Expiry alone refuses nothing unless validity is required. Renew all the same.",
    (Label("anchor", pattern=r"[0-9a-f]{16}", note="first 16 hex digits of the certificate's SHA-256"),),
)
LOADED_MODULES: Final = Metric(
    "kmodgate_loaded_modules",
    Kind.GAUGE,
    "Modules that are loaded now, those from before the agent too, by what is known of their signature.",
    "All but `trusted_signature` is to be looked into: the event log has a `module_inventory` record for "
    "each module that `ENFORCE_SIGNED_MODULES` would refuse or that nothing is known of. "
    "[boot.md](boot.md) says what a file on disk proves of what was loaded.",
    (Label("signature", tuple(LoadedSignature)),),
)
ENFORCEMENT_GAP: Final = Metric(
    "kmodgate_enforcement_gap_seconds",
    Kind.GAUGE,
    "Seconds before this agent took over in which none of kmodgate's programs was attached.",
    "0 after a restart or an upgrade: the programs stayed. Otherwise the time since they were detached, or "
    "since boot; what loaded then was not judged.",
)
AGENT_GAP: Final = Metric(
    "kmodgate_agent_gap_seconds",
    Kind.GAUGE,
    "Seconds before this agent in which no agent ran.",
    "Enforcement went on if the gap above is 0, but unknown modules met `failurePolicy`.",
)
PINNED_ROOT_INFO: Final = Metric(
    "kmodgate_pinned_root_info",
    Kind.INFO,
    "The file system that LoadPin pins, and what keeps it from being written to.",
    "`read_only_mount` and `writable` are weak: root on the node can put a module there and load it.",
    (
        Label("protection", tuple(RootProtection)),
        Label("fstype", pattern=r"[0-9A-Za-z_.-]{1,32}", note="of the file system"),
        Label("device", pattern=r"[0-9]{1,4}:[0-9]{1,7}", note="its device number, `major:minor`"),
    ),
)
PINNED_ROOT_CURRENT: Final = Metric(
    "kmodgate_pinned_root_current",
    Kind.GAUGE,
    "1 if process 1 still has the pinned root as its root, else 0.",
    "0: it was switched or has gone away, and modules on the new one are refused under LoadPin. "
    "Restart the agent to pin the new one.",
)
PINNED_VERITY: Final = Metric(
    "kmodgate_pinned_verity_filesystems",
    Kind.GAUGE,
    "File systems that count as pinned, because their dm-verity root digest is trusted.",
    "Fewer than are mounted: the agent's log says why one does not count.",
)
PREVERIFIED: Final = Metric(
    "kmodgate_preverified_modules",
    Kind.GAUGE,
    "Module files in the directories of `kmodgate.preverify`, by what verification found.",
    "A load of a `trusted` one waits for nobody. `left_out` above 0: name smaller directories. 0 everywhere "
    "while drivers lie there: the directories are spelled otherwise, or other certificates came into force "
    "just now.",
    (Label("outcome", tuple(PreverifyOutcome)),),
)
SCRAPE_ERRORS: Final = Metric(
    "kmodgate_scrape_errors_total",
    Kind.COUNTER,
    "Parts of the metrics that could not be read during a scrape.",
    "Series that belong to this part are missing or stale. The agent's log has the error.",
    (Label("source", tuple(ScrapeSource)),),
)

TABLE: Final[tuple[Metric, ...]] = (
    MODULE_LOADS,
    LOAD_ATTEMPTS,
    LOADS_UNDECIDED,
    ENFORCING,
    HARDENED,
    OFF_SWITCH_EVENTS,
    OFF_SWITCH_DENIALS,
    POLICY_INFO,
    NODE_POOL_INFO,
    BACKEND_INFO,
    BACKEND_DOWNGRADES,
    DECISION_SECONDS,
    HOLD_SECONDS,
    HOLD_LIMIT,
    VERIFY_SECONDS,
    QUESTIONS,
    EVENTS_LOST,
    EVENTS_SUPPRESSED,
    EVENT_SINK_SENT,
    EVENT_SINK_DROPPED,
    PROGRAM_MISSES,
    KERNEL_ERRORS,
    TRUST_ANCHORS,
    TRUST_ANCHOR_NOT_AFTER,
    LOADED_MODULES,
    PINNED_ROOT_INFO,
    PINNED_ROOT_CURRENT,
    PINNED_VERITY,
    PREVERIFIED,
    RELOAD_SUCCESSFUL,
    RELOAD_TIMESTAMP,
    ENFORCEMENT_GAP,
    AGENT_GAP,
    KUBERNETES_WATCH,
    KUBERNETES_EVENTS,
    BUILD_INFO,
    SCRAPE_ERRORS,
)
"""Every metric of kmodgate, in the order of the documentation."""
