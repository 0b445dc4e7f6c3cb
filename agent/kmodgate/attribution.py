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
from .node.procstat import TICK_NS, TaskStat, read_executable, read_proc, read_task_stat
from .workload import Pod, Workload

log = logging.getLogger(__name__)

_PF_KTHREAD: Final = 0x00200000  # include/linux/sched.h
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
    return _began_at(read_task_stat(f"{proc}/{tgid}/task/{tid}"), start_time)


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
        return self._look(tgid, tid, start_time, parent, cgroup)[1]

    def asker(self, tgid: int, tid: int, start_time: int) -> tuple[str | None, Attribution]:
        """Executable, None where it cannot be seen, and workload of a thread that waits for an answer."""
        executable = read_executable(f"{self._proc}/{tgid}")
        same, who = self._look(tgid, tid, start_time, None, 0)
        return executable if same else None, who

    def _look(
        self, tgid: int, tid: int, start_time: int, parent: int | None, cgroup: int
    ) -> tuple[bool, Attribution]:
        """Whether the thread is still there, and was when its files were read; and who it works for."""
        task = f"{self._proc}/{tgid}/task/{tid}"
        ref = parse_proc_cgroup(os.fsdecode(read_proc(f"{task}/cgroup")))
        stat = read_task_stat(task)  # last: what was read before it is the same task's
        same = _began_at(stat, start_time)
        if not same:
            ref = None
        elif parent is None and stat is not None:
            parent = stat.parent
        if parent is not None and self._is_kernel_thread(parent):
            request = self._request(tgid, tid, start_time)
            return same, Attribution(Workload.KERNEL, kernel_request=request)
        if ref is None:
            ref = self._by_id(cgroup)
        elif cgroup and not ref.is_host:
            self._remember(cgroup, ref)
        if ref is None:
            return same, UNKNOWN
        if ref.is_host:
            return same, Attribution(Workload.HOST)
        pod = self._pod(ref)
        return same, Attribution(Workload.CONTAINER if pod is None else Workload.POD, ref.container_id, pod)

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
        stat = read_task_stat(f"{self._proc}/{pid}")
        return stat is not None and bool(stat.flags & _PF_KTHREAD)

    def _request(self, tgid: int, tid: int, start_time: int) -> str | None:
        """What was asked for: ``modprobe -q -- NAME`` (``call_modprobe`` in ``kernel/module/kmod.c``)."""
        words = os.fsdecode(read_proc(f"{self._proc}/{tgid}/cmdline")).split("\0")
        match words:
            case [_, "-q", "--", name, *_] if name and is_same_process(self._proc, tgid, tid, start_time):
                return name
            case _:
                return None


def _began_at(stat: TaskStat | None, start_time: int) -> bool:
    return stat is not None and stat.start == start_time // TICK_NS
