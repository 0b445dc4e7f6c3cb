# SPDX-License-Identifier: Apache-2.0
"""From the kernel's record of a load to the event that is told.

Adds what the programs do not know: the signer, the policy in words, the executable. All of
it is best effort, for people; nothing is decided here.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from .attribution import UNKNOWN, Attribution, Attributor, is_same_process
from .hooks import abi
from .model import (
    Api,
    By,
    EffectivePolicy,
    LoadEvent,
    Origin,
    Reason,
    SignatureReport,
    SignatureStatus,
    Verdict,
    Verification,
)
from .node.procstat import read_executable

_GENERATIONS: Final = 64
_ASKERS: Final = 1024

_STATUS: Final = {
    Verification.TRUSTED: SignatureStatus.TRUSTED_SIGNATURE,
    Verification.KERNEL_TRUSTED: SignatureStatus.TRUSTED_SIGNATURE,
    Verification.UNSIGNED: SignatureStatus.UNSIGNED,
    Verification.UNTRUSTED_SIGNER: SignatureStatus.UNTRUSTED_SIGNER,
    Verification.BAD_SIGNATURE: SignatureStatus.BAD_SIGNATURE,
    Verification.MALFORMED_EBADMSG: SignatureStatus.MALFORMED_SIGNATURE,
    Verification.MALFORMED_EINVAL: SignatureStatus.MALFORMED_SIGNATURE,
    Verification.MALFORMED_EMSGSIZE: SignatureStatus.MALFORMED_SIGNATURE,
    Verification.UNSUPPORTED: SignatureStatus.UNSUPPORTED_SIGNATURE,
    Verification.REVOKED: SignatureStatus.REVOKED,
}

_DETAIL: Final = {
    Verification.KERNEL_TRUSTED: "the kernel's own keyrings trust the signature",
    Verification.IGNORE_FLAGS: "MODULE_INIT_IGNORE_* was given: the kernel takes the module for unsigned",
    Verification.AGENT_AWAY: "the agent gave no sign of life, so nobody could verify the module",
    Verification.TIMED_OUT: "the agent did not answer within holdTimeout",
    Verification.TOO_LARGE: "the module is larger than maxModuleSize",
    Verification.UNREADABLE: "the agent could not read the bytes that the kernel was given",
    Verification.STATE_MISSING: "the programs lost track of this load",
}


def is_routine(record: abi.Event) -> bool:
    """A load that was let in without the agent, and loaded: the log would leave it out in any case.

    ``telemetry.events.is_remarkable`` says the same of the event, which need not be made.
    """
    return (
        record.verdict == Verdict.ALLOW
        and not record.question
        and not record.has_digest
        and record.result == 0
    )


class Observer:
    """Turns records into events.

    Args:
        report_for: what verification found for a digest.
        node: Kubernetes name of the node, or None.
        proc: where procfs is mounted.
        attributor: finds the pod or container; None for one that knows no pods by name.
    """

    def __init__(
        self,
        report_for: Callable[[bytes], SignatureReport | None],
        *,
        node: str | None = None,
        proc: Path = Path("/proc"),
        attributor: Attributor | None = None,
    ) -> None:
        self._report_for = report_for
        self._node = node
        self._proc = proc
        self._attributor = attributor or Attributor(proc)
        self._policies: OrderedDict[int, tuple[EffectivePolicy, str | None]] = OrderedDict()
        self._askers: OrderedDict[int, tuple[str | None, Attribution]] = OrderedDict()

    def asked(self, question: int, tgid: int, tid: int, start_time: int) -> None:
        """Note who a loader is while it waits: a refused one is gone at once."""
        self._askers[question] = self._attributor.asker(tgid, tid, start_time)
        while len(self._askers) > _ASKERS:
            self._askers.popitem(last=False)

    def policy_changed(self, generation: int, policy: EffectivePolicy, pool: str | None = None) -> None:
        """Note which policy, of which node pool, a generation of the table stands for."""
        self._policies[generation & 0xFFFFFFFF] = (policy, pool)
        while len(self._policies) > _GENERATIONS:
            self._policies.popitem(last=False)

    def event(self, record: abi.Event) -> LoadEvent:
        """The event of one record."""
        digest = bytes(record.digest) if record.has_digest else None
        found = self._report_for(digest) if digest else None
        verification = Verification(record.verification)
        status = _STATUS.get(verification)
        # The report is of what the agent verified. Where something else decided (the kernel's
        # keyrings, the bytes of a compressed file as they lie), it only names the signer.
        told = verification is Verification.NOT_YET
        decisive = found if found is not None and (told or found.status is status) else None
        policy, pool = self._policies.get(record.generation) or next(reversed(self._policies.values()))
        exe, who = self._asker(record)
        known = record.origin != abi.UNKNOWN  # where a rung only watches, the file may be gone
        has_file = record.api == Api.FINIT_MODULE and known
        called = record.tgid != 0  # and so may the caller
        module = os.fsdecode(abi.text(record.module)) or (
            found.module.name if found is not None and found.module is not None else None
        )
        return LoadEvent(
            time=_wall(record.time),
            verdict=Verdict(record.verdict),
            reason=Reason(record.reason),
            by=By(record.by),
            mode=policy.mode,
            policy=policy.policy,
            api=Api(record.api),
            origin=Origin(record.origin) if known else None,
            errno=record.error,
            result=record.result,
            path=os.fsdecode(abi.text(record.path)) if record.path_length else None,
            path_truncated=has_file and not record.path_length,
            file_system=(os.fsdecode(abi.text(record.fstype)) or None) if has_file else None,
            device=(record.device >> 20, record.device & 0xFFFFF) if has_file else None,
            inode=(record.inode or None) if has_file else None,
            size=(record.size or None) if known else None,  # nothing of 0 bytes comes as far as a hook
            sha256=_sha256(digest, decisive),
            module=module,
            signer=found.signer if found else None,
            trusted_by=decisive.trusted_by if decisive else _kernel(verification),
            signature_status=decisive.status if decisive else status,
            signature_detail=decisive.detail if decisive else _DETAIL.get(verification),
            pid=record.tgid if called else None,
            tid=record.tid,
            ppid=record.parent if called else None,
            comm=os.fsdecode(abi.text(record.comm)) if called else None,
            exe=exe,
            uid=record.uid if called else None,
            workload=who.workload,
            container_id=who.container_id,
            pod=who.pod,
            kernel_request=who.kernel_request,
            node=self._node,
            pool=pool,
            hold_ns=record.hold,
            decision_ns=record.decision_time,
        )

    def _asker(self, record: abi.Event) -> tuple[str | None, Attribution]:
        """Executable and workload, as noted when the question came, or as they can be seen now."""
        exe, who = self._askers.pop(record.question, (None, UNKNOWN))
        if exe is None:
            exe = self._executable(record.tgid, record.tid, record.start_time)
        if who == UNKNOWN or (who.pod is not None and who.pod.name is None):
            process = (record.tgid, record.tid, record.start_time)
            now = self._attributor.of(*process, parent=record.parent, cgroup=record.cgroup)
            who = who if now == UNKNOWN else now
        return exe, who

    def _executable(self, tgid: int, tid: int, start_time: int) -> str | None:
        """The process's executable, while it is still the same process."""
        target = read_executable(f"{self._proc}/{tgid}")
        return target if is_same_process(self._proc, tgid, tid, start_time) else None


def _sha256(digest: bytes | None, found: SignatureReport | None) -> str | None:
    """Of the decompressed file, also where the programs saw only the compressed one."""
    if digest is None:
        return None
    return found.sha256 if found is not None and found.sha256 is not None else digest.hex()


def _kernel(verification: Verification) -> str | None:
    return "kernel keyrings" if verification is Verification.KERNEL_TRUSTED else None


def _wall(monotonic_ns: int) -> datetime:
    offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return datetime.fromtimestamp((monotonic_ns + offset) / 1e9, UTC)
