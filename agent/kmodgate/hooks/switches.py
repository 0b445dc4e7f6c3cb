# SPDX-License-Identifier: Apache-2.0
"""The kernel's own switches for module loading, set where no program can refuse a load.

``module.sig_enforce`` can be set and never unset before the next boot (``bool_enable_only``,
``kernel/module/signing.c``). LoadPin's sysctl goes both ways, unless its root device is read-only
(``security/loadpin/loadpin.c``). A switch that cannot be set is said, never assumed.

LoadPin pins the file system of the first file that is loaded; before 6.3 its sysctl is not there until
then. So a file of the node's root, which is no module, is offered before the switch is set, and
offered again afterwards: if that is refused, the kernel has pinned another file system.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from kmodgate.model import EffectivePolicy
from kmodgate.node import NodePaths, read_strictness
from kmodgate.node.paths import read_word
from kmodgate.rungs import NO_LOAD_PIN, NO_SIG_ENFORCE, NodeCan, switches

from .bpf import load_file

log = logging.getLogger(__name__)

_LOAD_PIN: Final = ("enforce", "enforced", "enabled")
_ON: Final = frozenset({"1", "Y"})
_TEXTS: Final = ("etc/passwd", "etc/hostname", "etc/fstab", "etc/os-release", "etc/machine-id")
"""Of the node's root: files of text that are there as a rule. None is a module in any format."""


class KernelSwitches:
    """Sets what a policy asks for, and remembers what it set.

    Args:
        paths: where sysfs and procfs are mounted.
        load: offers a descriptor's file to ``finit_module(2)``; the errno.
    """

    def __init__(self, paths: NodePaths | None = None, load: Callable[[int], int] = load_file) -> None:
        self._paths = paths = paths or NodePaths()
        self._root = paths.proc / "1/root"
        self._lsms = paths.sys / "kernel/security/lsm"
        self._load = load
        self._sig_enforce = paths.sys / "module/module/parameters/sig_enforce"
        self._load_pins = tuple(paths.proc / f"sys/kernel/loadpin/{name}" for name in _LOAD_PIN)
        self._set_sig_enforce = False
        self._set_load_pin: Path | None = None
        self._pinned_elsewhere: bool | None = None
        self._said = ""

    def offer(self) -> NodeCan:
        """What the kernel has switches for. Sets nothing and pins nothing."""
        return NodeCan(
            no_sig_enforce="" if self._sig_enforce.exists() else NO_SIG_ENFORCE,
            no_load_pin="" if self._load_pin() or self._has_load_pin() else NO_LOAD_PIN,
        )

    def apply(self, policy: EffectivePolicy) -> tuple[str, ...]:
        """Set what this policy asks for, and unset what only an earlier one asked for.

        Returns:
            What could not be set, each with its remedy; empty when the kernel refuses what the policy
            refuses.
        """
        signatures, load_pin = switches(policy)
        if not signatures and self._set_sig_enforce:
            self._say("module.sig_enforce stays 1 until the next boot: the kernel cannot unset it")
        if not load_pin:
            self._unset_load_pin()
        problems = (*self._signatures(wanted=signatures), *self._pin(wanted=load_pin))
        if problems:
            self._say("; ".join(problems))
        return problems

    def restore(self) -> str:
        """Unset what can be unset, and say what stays."""
        self._unset_load_pin()
        return "module.sig_enforce stays 1 until the next boot" if self._set_sig_enforce else ""

    @property
    def set_here(self) -> tuple[str, ...]:
        """Names of the switches that are on because this object set them."""
        names = ("module.sig_enforce",) if self._set_sig_enforce else ()
        return names if self._set_load_pin is None else (*names, "kernel.loadpin.enforce")

    def _signatures(self, *, wanted: bool) -> Iterator[str]:
        if not wanted or read_word(self._sig_enforce) in _ON:
            return
        problem = _set(self._sig_enforce, "1")
        if read_word(self._sig_enforce) in _ON:
            self._set_sig_enforce = True
            log.warning("module.sig_enforce is 1 from now on, until the next boot: the policy asks for it")
            return
        yield (
            f"module.sig_enforce cannot be set ({problem or 'the write changed nothing'}); boot with "
            "module.sig_enforce=1, or use a kernel with CONFIG_MODULE_SIG=y"
        )

    def _pin(self, *, wanted: bool) -> Iterator[str]:
        if not wanted:
            return
        switch = self._load_pin()
        if switch is None and self._has_load_pin():
            self._offer_text()
            switch = self._load_pin()
        if switch is None:
            yield (
                "the kernel's LoadPin has no switch (its root device is read-only?); boot with "
                "loadpin.enforce=1"
                if self._has_load_pin()
                else NO_LOAD_PIN
            )
            return
        if self._pinned_elsewhere and self._set_load_pin is None:
            yield _ELSEWHERE  # seen before, and switched off again
            return
        if read_word(switch) not in _ON:
            self._offer_text()
            problem = _set(switch, "1")
            if read_word(switch) not in _ON:
                why = problem or "the write did nothing"
                yield f"{switch} cannot be set ({why}); boot with loadpin.enforce=1"
                return
            self._set_load_pin = switch
            self._pinned_elsewhere = None
            log.warning("%s is 1 from now on: the policy asks for it", switch)
        if self._pinned_elsewhere is None:
            # Under lockdown that is the answer to whatever is not signed.
            self._pinned_elsewhere = (
                not read_strictness(self._paths).lockdown and self._offer_text() == errno.EPERM
            )
        if self._pinned_elsewhere:
            self._unset_load_pin()  # the node's own modules would not load any more
            yield _ELSEWHERE

    def _load_pin(self) -> Path | None:
        return next((path for path in self._load_pins if read_word(path) is not None), None)

    def _has_load_pin(self) -> bool:
        return "loadpin" in (read_word(self._lsms) or "").split(",")

    def _offer_text(self) -> int:
        """Offer a file of the node's root that is no module; the errno, and 0 where there is no such file."""
        with contextlib.suppress(OSError):
            device = self._root.stat().st_dev
            for name in _TEXTS:
                with contextlib.suppress(OSError):
                    descriptor = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                    try:
                        found = os.fstat(descriptor)
                        if stat.S_ISREG(found.st_mode) and found.st_size and found.st_dev == device:
                            return self._load(descriptor)
                    finally:
                        os.close(descriptor)
        return 0

    def _unset_load_pin(self) -> None:
        if self._set_load_pin is None:
            return
        problem = _set(self._set_load_pin, "0")
        if problem:
            self._say(f"{self._set_load_pin} stays 1: it cannot be unset ({problem})")
        else:
            log.warning("%s is 0 again", self._set_load_pin)
        self._set_load_pin = None

    def _say(self, text: str) -> None:
        """Once, until it is something else."""
        if text != self._said:
            log.warning("%s", text)
        self._said = text


_ELSEWHERE: Final = (
    "the kernel's LoadPin has pinned another file system than the node's root: the one that was loaded from "
    "first; boot so that the first load comes from the root"
)


def _set(path: Path, value: str) -> str:
    """Write one value; what is wrong, or nothing."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror or "it cannot be opened"
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        return error.strerror or "it cannot be written"
    finally:
        os.close(descriptor)
    return ""
