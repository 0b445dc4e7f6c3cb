# SPDX-License-Identifier: Apache-2.0
"""The values that every part of kmodgate shares.

This module holds closed sets and records, and nothing else: no I/O, no policy, no
parsing. The numbered enums have a twin in ``bpf/kmodgate.h``; a test compares the two.
Numbers are ABI between the agent and the programs it leaves in the kernel, so a member
may be added, but a number is never reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum

from .workload import Pod, Workload


class Policy(StrEnum):
    """``linuxNodeConfig.kernelModuleLoading.policy``, in GKE's own words."""

    UNSPECIFIED = "POLICY_UNSPECIFIED"
    ENFORCE = "ENFORCE_SIGNED_MODULES"
    DO_NOT_ENFORCE = "DO_NOT_ENFORCE_SIGNED_MODULES"


class CgroupMode(StrEnum):
    """``linuxNodeConfig.cgroupMode``, in GKE's own words."""

    UNSPECIFIED = "CGROUP_MODE_UNSPECIFIED"
    V1 = "CGROUP_MODE_V1"
    V2 = "CGROUP_MODE_V2"


class NodeType(StrEnum):
    """Hardware class of the node; it selects the LoadPin default."""

    CPU = "CPU"
    TPU = "TPU"
    GPU = "GPU"


class Mode(StrEnum):
    """Whether a refusal is carried out (``enforce``) or only reported (``audit``)."""

    ENFORCE = "enforce"
    AUDIT = "audit"


class FailurePolicy(StrEnum):
    """What happens to a load that needs the agent while the agent is away."""

    FAIL = "Fail"
    IGNORE = "Ignore"


class Api(IntEnum):
    """The system call that a load came through. Twin: ``enum kmg_api``."""

    FINIT_MODULE = 0
    INIT_MODULE = 1

    @property
    def label(self) -> str:
        """The name used in metrics and events: ``finit_module`` or ``init_module``."""
        return self.name.lower()


class Origin(IntEnum):
    """Where the bytes of a load came from. Twin: ``enum kmg_origin``."""

    PINNED_ROOT = 0
    OTHER_FILESYSTEM = 1
    MEMORY = 2

    @property
    def label(self) -> str:
        """The lower-case name used in events."""
        return self.name.lower()


class Stage(IntEnum):
    """The point of a load at which the table is consulted. Twin: ``enum kmg_stage``.

    ``SIGNATURE``: the first hook, and again where the kernel has found no signature that it
    trusts. ``BYTES``: the bytes have been read, and the kernel has not checked them yet; an
    allow there means "nothing against it so far".
    """

    SIGNATURE = 0
    BYTES = 1


class Verdict(IntEnum):
    """The answer to one load. Twin: ``enum kmg_verdict``.

    ``PENDING`` appears only inside the decision table: the facts at hand do not settle
    the load yet, and the programs must gather more.
    """

    PENDING = 0
    ALLOW = 1
    DENY = 2
    WOULD_DENY = 3

    @property
    def label(self) -> str:
        """The lower-case name used in metrics and events."""
        return self.name.lower()


class By(IntEnum):
    """Who took the decision. Twin: ``enum kmg_by``.

    ``KERNEL``: the kernel's own keyrings trusted the module, or the kernel refused it
    without being asked by kmodgate. ``SHARED``: the kernel (since 6.5) gave this task
    the result of another task's load of the same file.
    """

    KMODGATE = 0
    KERNEL = 1
    SHARED = 2

    @property
    def label(self) -> str:
        """The lower-case name used in metrics and events."""
        return self.name.lower()


class Reason(IntEnum):
    """Why. One set from the BPF programs to log field and metric label.

    Ordered by family with gaps: 1x the policy lets it in, 2x LoadPin, 3x signature,
    5x kmodgate could not find out, 6x refused by the kernel alone.
    Twin: ``enum kmg_reason``.
    """

    NONE = 0
    PINNED_ROOT = 10
    NOT_RESTRICTED = 11
    TRUSTED_SIGNATURE = 12
    FAILURE_POLICY_IGNORE = 13

    OUTSIDE_PINNED_ROOT = 20
    NO_FILE = 21

    UNSIGNED = 30
    UNTRUSTED_SIGNER = 31
    BAD_SIGNATURE = 32
    MALFORMED_SIGNATURE = 33
    UNSUPPORTED_SIGNATURE = 34
    REVOKED = 35

    AGENT_UNAVAILABLE = 50
    HOLD_TIMEOUT = 51
    TOO_LARGE = 52
    UNREADABLE = 53
    STATE_MISSING = 54

    KERNEL_SIG_ENFORCE = 60
    KERNEL_LOCKDOWN = 61
    OTHER_SECURITY_MODULE = 62

    @property
    def label(self) -> str:
        """The lower-case name used in metrics and events."""
        return self.name.lower()


class Verification(IntEnum):
    """What is known about a load's signature when the table is consulted.

    Twin: ``enum kmg_verification``. ``NOT_YET`` is the state at the first hook;
    everything from ``AGENT_AWAY`` up says why there is no answer.
    """

    NOT_YET = 0
    KERNEL_TRUSTED = 1
    TRUSTED = 2
    UNSIGNED = 3
    UNTRUSTED_SIGNER = 4
    BAD_SIGNATURE = 5
    MALFORMED_EBADMSG = 6
    MALFORMED_EINVAL = 7
    MALFORMED_EMSGSIZE = 8
    UNSUPPORTED = 9
    REVOKED = 10
    IGNORE_FLAGS = 11
    AGENT_AWAY = 12
    TIMED_OUT = 13
    TOO_LARGE = 14
    UNREADABLE = 15
    STATE_MISSING = 16


class SignatureStatus(StrEnum):
    """``status`` of ``kmodgate verify``: a closed set, stable across releases."""

    TRUSTED_SIGNATURE = "trusted_signature"
    UNSIGNED = "unsigned"
    UNTRUSTED_SIGNER = "untrusted_signer"
    BAD_SIGNATURE = "bad_signature"
    MALFORMED_SIGNATURE = "malformed_signature"
    UNSUPPORTED_SIGNATURE = "unsupported_signature"
    REVOKED = "revoked"
    UNREADABLE = "unreadable"


class Backend(StrEnum):
    """The rung of the ladder that this node stands on, best first."""

    BPF_LSM = "bpf-lsm"
    BPF_FMOD_RET = "bpf-fmod-ret"
    BPF_LSM_BASIC = "bpf-lsm-basic"
    """``bpf-lsm`` on a kernel without ``bpf_loop``: LoadPin and kernel keyrings only."""
    BCC = "bcc"
    TRACEFS = "tracefs"
    NONE = "none"
    """No hook is attached; nothing is seen and nothing enforced."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed, as far as message and trust store tell.

    Attributes:
        issuer: RFC 4514 name of the issuer, or None when identified by key id alone.
        serial: certificate serial number in lower-case hexadecimal, or None.
        skid: SubjectKeyIdentifier in lower-case hexadecimal, or None.
        subject: RFC 4514 name of the subject when its certificate is at hand.
    """

    issuer: str | None = None
    serial: str | None = None
    skid: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """The ``.modinfo`` strings that name a module; each None when absent."""

    name: str | None
    version: str | None
    srcversion: str | None
    vermagic: str | None


@dataclass(frozen=True, slots=True)
class SignatureReport:
    """The signature stage of one module file, as ``kmodgate verify`` prints it.

    Attributes:
        status: the outcome.
        errno: name of the error ``finit_module(2)`` gives under ``sig_enforce`` at the
            signature stage (``"EKEYREJECTED"``, …); None when trusted.
        trusted_by: label of the trust anchor; None unless trusted.
        signer: who signed; None when nothing names a signer.
        hash_algorithm: the kernel's name (``"sha256"``), or None.
        signature_algorithm: ``"rsa"``, ``"ecdsa"``, …, or None.
        sha256: hex SHA-256 of the decompressed file with its signature, or None.
        module: the module's own strings, or None when it is no readable ELF file.
        detail: one sentence for people: what was found and where.
    """

    status: SignatureStatus
    errno: str | None
    trusted_by: str | None = None
    signer: Signer | None = None
    hash_algorithm: str | None = None
    signature_algorithm: str | None = None
    sha256: str | None = None
    module: ModuleInfo | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """The policy in force on this node: what ``policy.evaluate`` needs and no more.

    Attributes:
        policy: the GKE policy word.
        mode: enforce or audit.
        load_pin: True when LoadPin restricts module loads (already resolved from the
            node type; ignored under ENFORCE, which excludes modules from LoadPin).
        pinned_root_exempt: under ENFORCE, files on the pinned root need no signature.
        failure_policy: what happens to loads that need an absent agent.
        kernel_keyrings: under ENFORCE, what the kernel's own keyrings trust is trusted.
        revocations: something is revoked, so every load that the policy would let in must be
            looked up, whatever the kernel's keyrings say.
    """

    policy: Policy
    mode: Mode
    load_pin: bool
    pinned_root_exempt: bool = False
    failure_policy: FailurePolicy = FailurePolicy.FAIL
    kernel_keyrings: bool = True
    revocations: bool = False


@dataclass(frozen=True, slots=True)
class LoadFacts:
    """The facts of one load that a decision may depend on."""

    api: Api
    origin: Origin
    verification: Verification
    stage: Stage = Stage.SIGNATURE


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer: verdict, reason, and the errno that a refusal gives the loader.

    Attributes:
        errno: positive error number, 0 for allow and pending. For ``WOULD_DENY`` it is
            the number that enforcing would give.
    """

    verdict: Verdict
    reason: Reason
    errno: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEvent:
    """One load from the first hook to the end of the system call, ready to be told.

    Strings that come from the kernel, a module or a certificate are hostile and stand here
    as they were found (bytes that are no UTF-8 as lone surrogates, ``os.fsdecode``);
    whoever prints them escapes them. None means: not known, or there is none.

    Attributes:
        time: when the first hook saw the load; carries a time zone.
        verdict: the answer.
        reason: why.
        by: who answered.
        mode: enforce or audit, as of the table that decided.
        policy: the GKE policy word, as of the table that decided.
        api: the system call.
        origin: where the bytes came from.
        errno: positive number of the refusal, or of the one that audit withheld; else 0.
        result: what the system call returned: 0, or a negative errno.
        path: of the file; a label only, never an identity.
        path_truncated: the path was longer than the record has room for.
        file_system: type of the file's file system (``"ext4"``).
        device: ``(major, minor)`` of the file's superblock.
        inode: number of the file's inode.
        size: of the file, or of the ``init_module`` buffer, in bytes.
        sha256: hex digest of the decompressed file with its signature.
        module: name the kernel or the file gives.
        signer: who signed.
        trusted_by: label of the trust anchor.
        signature_status: what verification found; None when nobody verified.
        signature_detail: one sentence on it, for people.
        pid: process (kernel: tgid) in the initial PID namespace.
        tid: thread.
        ppid: parent process.
        comm: the thread's name, which the thread chooses itself.
        exe: target of ``/proc/PID/exe``.
        uid: real user id in the initial user namespace.
        workload: the sort of process.
        container_id: of the container runtime.
        pod: the pod.
        kernel_request: what the kernel asked ``modprobe`` for (``"fs-xfs"``, ``"net-pf-16"``).
        node: Kubernetes name of the node.
        pool: name of the node pool whose policy decided.
        hold_ns: nanoseconds waited for the agent.
        decision_ns: nanoseconds spent deciding, the wait included.
    """

    time: datetime
    verdict: Verdict
    reason: Reason
    by: By
    mode: Mode
    policy: Policy
    api: Api
    origin: Origin | None = None
    errno: int = 0
    result: int = 0
    path: str | None = None
    path_truncated: bool = False
    file_system: str | None = None
    device: tuple[int, int] | None = None
    inode: int | None = None
    size: int | None = None
    sha256: str | None = None
    module: str | None = None
    signer: Signer | None = None
    trusted_by: str | None = None
    signature_status: SignatureStatus | None = None
    signature_detail: str | None = None
    pid: int | None = None
    tid: int | None = None
    ppid: int | None = None
    comm: str | None = None
    exe: str | None = None
    uid: int | None = None
    workload: Workload | None = None
    container_id: str | None = None
    pod: Pod | None = None
    kernel_request: str | None = None
    node: str | None = None
    pool: str | None = None
    hold_ns: int = 0
    decision_ns: int = 0


@dataclass(frozen=True, slots=True)
class KernelHistogram:
    """A histogram that BPF programs fill, as read at one moment.

    Attributes:
        buckets: ``(upper bound in seconds, count)``, rising; each count is the bucket's own,
            not cumulated. The last bound is ``math.inf``.
        sum_seconds: sum of all observations.
    """

    buckets: tuple[tuple[float, int], ...]
    sum_seconds: float
