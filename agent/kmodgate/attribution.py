# SPDX-License-Identifier: Apache-2.0
"""Who asked for a load: a pod's container, another container, the node itself, or the kernel.

Best effort, for people; nothing is decided here. The process is asked while it is there, and
else the cgroup that the programs saw. Pods come from the API server, if there is one.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .hooks.kernfs import path_of_cgroup
from .kube.cgroups import CgroupRef, parse_path, parse_proc_cgroup
from .node.procstat import TICK_NS, TaskStat, read_task_stat
from .workload import Pod, Workload

log = logging.getLogger(__name__)

_PF_KTHREAD: Final = 0x00200000  # include/linux/sched.h
_MAX_FILE: Final = 64 << 10
_REMEMBERED: Final = 4096
_CGROUP_ROOTS: Final = ("sys/fs/cgroup", "sys/fs/cgroup/unified")

FindPod = Callable[[CgroupRef], Pod | None]


@dataclass(frozen=True, slots=True)
class Attribution:
    """Who asked for a load; each None where it is not known.

    Attributes:
        kernel_request: what the kernel asked ``modprobe`` for. It has no word on which process
            made it ask: ``modprobe`` is a child of a kernel thread.
    """

    workload: Workload | None = None
    container_id: str | None = None
    pod: Pod | None = None
    kernel_request: str | None = None


UNKNOWN: Final = Attribution()


def is_same_process(proc: Path, tgid: int, tid: int, start_time: int) -> bool:
    """Whether a thread is still the one that began at ``start_time`` (nanoseconds since boot)."""
    return _began_at(read_task_stat(proc / str(tgid) / "task" / str(tid)), start_time)


class Attributor:
    """Finds out who asked for a load.

    Args:
        proc: where procfs is mounted.
        find_pod: the pod of a cgroup (``PodStore.find``); None where no pods are known.
    """

    def __init__(self, proc: Path = Path("/proc"), find_pod: FindPod | None = None) -> None:
        self._proc = proc
        self._find_pod = find_pod
        self._refs: OrderedDict[int, CgroupRef] = OrderedDict()
        self._said = False

    def of(
        self, tgid: int, tid: int, start_time: int, *, parent: int | None = None, cgroup: int = 0
    ) -> Attribution:
        """Who a thread works for.

        Args:
            tgid: its process.
            tid: the thread.
            start_time: when it began, nanoseconds since boot.
            parent: its parent process; read from procfs where None.
            cgroup: id of its cgroup in the v2 hierarchy; 0: not known.
        """
        task = self._proc / str(tgid) / "task" / str(tid)
        ref = parse_proc_cgroup(_read(task / "cgroup"))
        words = _read(self._proc / str(tgid) / "cmdline").split("\0")
        stat = read_task_stat(task)  # last: what was read before it is the same task's
        if stat is None or not _began_at(stat, start_time):
            ref, words = None, []
        elif parent is None:
            parent = stat.parent
        if parent is not None and self._is_kernel_thread(parent):
            return Attribution(Workload.KERNEL, kernel_request=_request(words))
        if ref is None:
            ref = self._by_id(cgroup)
        elif cgroup and not ref.is_host:
            self._remember(cgroup, ref)
        if ref is None:
            return UNKNOWN
        if ref.is_host:
            return Attribution(Workload.HOST)
        pod = self._pod(ref)
        return Attribution(Workload.CONTAINER if pod is None else Workload.POD, ref.container_id, pod)

    def _pod(self, ref: CgroupRef) -> Pod | None:
        if self._find_pod is not None:
            return self._find_pod(ref)
        return None if ref.pod_uid is None else Pod(ref.pod_uid)

    def _remember(self, cgroup: int, ref: CgroupRef) -> None:
        self._refs[cgroup] = ref
        self._refs.move_to_end(cgroup)
        while len(self._refs) > _REMEMBERED:
            self._refs.popitem(last=False)

    def _by_id(self, cgroup: int) -> CgroupRef | None:
        """From the id that the programs saw, when the process is gone."""
        if not cgroup:
            return None
        known = self._refs.get(cgroup)
        if known is not None:
            return known
        for place in _CGROUP_ROOTS:
            root = self._proc / "1/root" / place
            if not (root / "cgroup.procs").exists():
                continue  # no cgroup file system itself, but where those of cgroup v1 are mounted
            try:
                ref = parse_path(path_of_cgroup(root, cgroup))
            except OSError as error:
                if isinstance(error, PermissionError) and not self._said:
                    self._said = True
                    log.warning(
                        "pods of processes that are gone cannot be told: %s; give CAP_DAC_READ_SEARCH", error
                    )
                return None
            # Beside cgroup v1 the v2 hierarchy may hold every process in its root.
            if ref.is_host and not (root / "cgroup.controllers").exists():
                return None
            if ref.is_host and place != _CGROUP_ROOTS[0]:
                return None
            self._remember(cgroup, ref)
            return ref
        return None

    def _is_kernel_thread(self, pid: int) -> bool:
        """Only what the kernel has started itself (``call_usermodehelper``) has one for a parent."""
        stat = read_task_stat(self._proc / str(pid))
        return stat is not None and bool(stat.flags & _PF_KTHREAD)


def _began_at(stat: TaskStat | None, start_time: int) -> bool:
    return stat is not None and stat.start == start_time // TICK_NS


def _request(words: list[str]) -> str | None:
    """What was asked for: ``modprobe -q -- NAME`` (``call_modprobe`` in ``kernel/module/kmod.c``)."""
    match words:
        case [_, "-q", "--", name, *_] if name:
            return name
        case _:
            return None


def _read(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            return os.fsdecode(file.read(_MAX_FILE) or b"")
    except OSError:
        return ""
