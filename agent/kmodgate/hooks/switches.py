# SPDX-License-Identifier: Apache-2.0
"""The kernel's own switches for module loading, set where no program can refuse a load.

``module.sig_enforce`` can be set and never unset before the next boot (``bool_enable_only``,
``kernel/module/signing.c``). LoadPin's sysctl goes both ways, unless its root device is read-only
(``security/loadpin/loadpin.c``). A switch that cannot be set is said, never assumed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.node import NodePaths
from kmodgate.node.paths import read_word

log = logging.getLogger(__name__)

_LOAD_PIN: Final = ("enforce", "enforced", "enabled")
_ON: Final = frozenset({"1", "Y"})


class KernelSwitches:
    """Sets what a policy asks for, and remembers what it set.

    Args:
        paths: where sysfs and procfs are mounted.
    """

    def __init__(self, paths: NodePaths | None = None) -> None:
        paths = paths or NodePaths()
        self._sig_enforce = paths.sys / "module/module/parameters/sig_enforce"
        self._load_pins = tuple(paths.proc / f"sys/kernel/loadpin/{name}" for name in _LOAD_PIN)
        self._set_sig_enforce = False
        self._set_load_pin: Path | None = None
        self._said = ""

    def apply(self, policy: EffectivePolicy) -> tuple[str, ...]:
        """Set what this policy asks for, and unset what only an earlier one asked for.

        Returns:
            What could not be set, each with its remedy; empty when the kernel refuses what the policy
            refuses.
        """
        enforce = policy.mode is Mode.ENFORCE
        signatures = enforce and policy.policy is Policy.ENFORCE
        load_pin = enforce and policy.policy is not Policy.ENFORCE and policy.load_pin
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
        switch = next((path for path in self._load_pins if read_word(path) is not None), None)
        if switch is None:
            yield "this kernel has no LoadPin of its own (CONFIG_SECURITY_LOADPIN, loadpin in lsm=)"
            return
        if read_word(switch) in _ON:
            return
        problem = _set(switch, "1")
        if read_word(switch) in _ON:
            self._set_load_pin = switch
            log.warning("%s is 1 from now on: the policy asks for it", switch)
            return
        yield f"{switch} cannot be set ({problem or 'the write did nothing'}); boot with loadpin.enforce=1"

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
