# SPDX-License-Identifier: Apache-2.0
"""The kernel itself: release, BTF, preemption, CPUs, ftrace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from kmodgate.errors import NodeError

from .paths import NodePaths, read_text, read_word

_BRACKETED = re.compile(r"[\[(]([A-Za-z]+)[\])]", re.ASCII)
_CPU_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", re.ASCII)
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}", re.ASCII)


class Preemption(StrEnum):
    """The preemption model, in the words of ``preempt=`` on the kernel command line.

    ``rt`` is always fully preemptible. ``none_or_voluntary``: one of the two, and the
    kernel does not say which. ``dynamic``: chosen at boot, and nothing says how.
    """

    NONE = "none"
    VOLUNTARY = "voluntary"
    LAZY = "lazy"
    FULL = "full"
    RT = "rt"
    NONE_OR_VOLUNTARY = "none_or_voluntary"
    DYNAMIC = "dynamic"

    @property
    def may_preempt_kernel(self) -> bool:
        """True unless kernel code is known to run until it gives the CPU up by itself."""
        return self not in {Preemption.NONE, Preemption.VOLUNTARY, Preemption.NONE_OR_VOLUNTARY}


_CHOICES = {
    item.value: item for item in (Preemption.NONE, Preemption.VOLUNTARY, Preemption.LAZY, Preemption.FULL)
}


def bracketed(text: str) -> str | None:
    """The chosen word of ``none [integrity] confidentiality`` or ``none voluntary (full)``."""
    match = _BRACKETED.search(text)
    return None if match is None else match[1]


def parse_cpu_list(text: str) -> int:
    """How many CPUs ``0-3,8`` names. Source: cpulist format, ``lib/bitmap-str.c``.

    Raises:
        NodeError: it is no such list, or an empty one.
    """
    count = 0
    for part in text.strip().split(","):
        match = _CPU_RANGE.fullmatch(part)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else -1
        if last < first:
            raise NodeError(
                f"the list of online CPUs is {text[:60]!a}, which names none; report this as a bug"
            )
        count += last - first + 1
    return count


def parse_flag(text: str, name: str) -> bool:
    """``Y``/``N`` of a module parameter or ``0``/``1`` of a sysctl.

    Raises:
        NodeError: it is something else; ``name`` says what was read.
    """
    word = text.strip()
    if word in {"Y", "y", "1"}:
        return True
    if word in {"N", "n", "0"}:
        return False
    raise NodeError(f"{name} is {word[:60]!a}, neither yes nor no; report this as a bug")


def parse_preemption(
    version: str | None,
    *,
    debugfs: str | None = None,
    cmdline: str | None = None,
    kconfig: Mapping[str, str] | None = None,
) -> Preemption | None:
    """The preemption model from what can be read; None when ``version`` is missing.

    Asked in turn: ``/sys/kernel/debug/sched/preempt``, ``/proc/version``; for a kernel
    that chooses at boot also ``preempt=`` and the built-in default (since 5.12,
    ``kernel/sched/core.c``).
    """
    words = (version or "").split()
    if "PREEMPT_RT" in words:
        return Preemption.RT
    chosen = _CHOICES.get(bracketed(debugfs or "") or "")
    if chosen is not None:
        return chosen
    if not words:
        return None
    if "PREEMPT_DYNAMIC" not in words:
        if "PREEMPT_LAZY" in words:
            return Preemption.LAZY
        return Preemption.FULL if "PREEMPT" in words else Preemption.NONE_OR_VOLUNTARY
    for word in reversed((cmdline or "").split()):
        key, _, value = word.partition("=")
        if key == "preempt" and value in _CHOICES:
            return _CHOICES[value]
    return _built_in(kconfig or {})


def _built_in(kconfig: Mapping[str, str]) -> Preemption:
    for option, model in (
        ("PREEMPT_NONE", Preemption.NONE),
        ("PREEMPT_VOLUNTARY", Preemption.VOLUNTARY),
        ("PREEMPT_LAZY", Preemption.LAZY),
        ("PREEMPT", Preemption.FULL),
    ):
        if kconfig.get(option) == "y":
            return model
    return Preemption.DYNAMIC


def read_release(paths: NodePaths) -> str | None:
    """The kernel release, as ``uname -r`` gives it.

    Raises:
        NodeError: it could not be part of a file name.
    """
    release = read_word(paths.proc / "sys/kernel/osrelease")
    if release is None:  # built without CONFIG_PROC_SYSCTL: "Linux version RELEASE (…"
        words = (read_text(paths.proc / "version") or "").split(maxsplit=3)
        release = words[2] if words[:2] == ["Linux", "version"] and len(words) > 2 else None  # noqa: PLR2004
    if release is not None and not _RELEASE.fullmatch(release):
        raise NodeError(f"the kernel release is {release[:60]!a}, which is no release; report this as a bug")
    return release


def read_preemption(paths: NodePaths, kconfig: Mapping[str, str] | None) -> Preemption | None:
    """The preemption model; None when ``/proc/version`` cannot be read."""
    return parse_preemption(
        read_text(paths.proc / "version"),
        debugfs=read_text(paths.sys / "kernel/debug/sched/preempt"),
        cmdline=read_text(paths.proc / "cmdline"),
        kconfig=kconfig,
    )


def read_online_cpus(paths: NodePaths) -> int | None:
    """How many CPUs are online; None when sysfs does not tell.

    Raises:
        NodeError: the list makes no sense.
    """
    text = read_word(paths.sys / "devices/system/cpu/online")
    return None if text is None else parse_cpu_list(text)


def read_sysctl_flag(paths: NodePaths, name: str) -> bool | None:
    """A sysctl that is 0 or 1, by its path below ``/proc/sys``; None when absent.

    Raises:
        NodeError: it holds something else.
    """
    text = read_word(paths.proc / "sys" / name)
    return None if text is None else parse_flag(text, name.replace("/", "."))


def has_btf(paths: NodePaths) -> bool:
    """Whether the kernel carries its own type information (CONFIG_DEBUG_INFO_BTF)."""
    return (paths.sys / "kernel/btf/vmlinux").is_file()
