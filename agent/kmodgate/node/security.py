# SPDX-License-Identifier: Apache-2.0
"""What the kernel itself already refuses: LSMs, lockdown, sig_enforce, LoadPin.

Sources: ``security/inode.c`` (lsm), ``security/lockdown/lockdown.c``,
``kernel/module/signing.c`` (sig_enforce), ``security/loadpin/loadpin.c``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from kmodgate.errors import NodeError

from .kernel import bracketed, parse_flag, read_sysctl_flag
from .paths import NodePaths, read_word

_LSM_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Lockdown(StrEnum):
    """The lockdown mode; from ``integrity`` up unsigned modules are refused with EPERM."""

    NONE = "none"
    INTEGRITY = "integrity"
    CONFIDENTIALITY = "confidentiality"


@dataclass(frozen=True, slots=True)
class ModuleSignatures:
    """How the kernel treats module signatures.

    Attributes:
        built: CONFIG_MODULE_SIG; None when nothing tells.
        enforced: ``module.sig_enforce`` or CONFIG_MODULE_SIG_FORCE; None when nothing tells.
    """

    built: bool | None
    enforced: bool | None


@dataclass(frozen=True, slots=True)
class KernelStrictness:
    """What makes the kernel refuse untrusted modules before any BPF program is asked.

    Attributes:
        sig_enforce: ``module.sig_enforce``: EKEYREJECTED.
        lockdown: lockdown in integrity or confidentiality mode: EPERM.
        load_pin: its own LoadPin pins modules: EPERM, by file system and not by signature.
    """

    sig_enforce: bool
    lockdown: bool
    load_pin: bool = False

    @property
    def refuses(self) -> bool:
        """The kernel itself refuses what its keyrings do not trust."""
        return self.sig_enforce or self.lockdown


@dataclass(frozen=True, slots=True)
class KernelLoadPin:
    """The kernel's own LoadPin.

    Attributes:
        enforced: it refuses reads from other file systems; None when nothing tells.
        excludes_modules: booted with ``loadpin.exclude=kernel-module``.
    """

    enforced: bool | None
    excludes_modules: bool

    @property
    def restricts_modules(self) -> bool:
        """True when the kernel is known to pin modules by itself."""
        return self.enforced is True and not self.excludes_modules


def parse_lsm_list(text: str) -> tuple[str, ...]:
    """``lockdown,capability,bpf`` in the order of their calls.

    Raises:
        NodeError: it is no such list.
    """
    names = tuple(text.strip().split(","))
    if not all(_LSM_NAME.fullmatch(name) for name in names):
        raise NodeError(f"the list of security modules is {text[:60]!a}; report this as a bug")
    return names


def parse_lockdown(text: str) -> Lockdown:
    """The mode in brackets of ``none [integrity] confidentiality``.

    Raises:
        NodeError: no known mode is in brackets.
    """
    word = bracketed(text)
    if word not in set(Lockdown):
        raise NodeError(f"the lockdown mode is {text[:60]!a}, none that is known; report this as a bug")
    return Lockdown(word)


def read_lsms(paths: NodePaths) -> tuple[str, ...] | None:
    """Active security modules; None when securityfs is not mounted.

    Raises:
        NodeError: the list makes no sense.
    """
    text = read_word(paths.sys / "kernel/security/lsm")
    return None if text is None else parse_lsm_list(text)


def read_lockdown(paths: NodePaths) -> Lockdown | None:
    """The lockdown mode; None when lockdown is not active or securityfs is not mounted.

    Raises:
        NodeError: the mode is unknown.
    """
    text = read_word(paths.sys / "kernel/security/lockdown")
    return None if text is None else parse_lockdown(text)


def read_strictness(paths: NodePaths) -> KernelStrictness:
    """The switches as they stand now. Only LoadPin's can be turned off while the node runs.

    Raises:
        NodeError: one of them makes no sense.
    """
    return KernelStrictness(
        sig_enforce=read_module_signatures(paths, None).enforced is True,
        lockdown=read_lockdown(paths) in {Lockdown.INTEGRITY, Lockdown.CONFIDENTIALITY},
        load_pin=read_load_pin(paths, None).restricts_modules,
    )


def read_module_signatures(paths: NodePaths, kconfig: Mapping[str, str] | None) -> ModuleSignatures:
    """Whether the kernel checks module signatures, and whether it insists on them.

    The parameter exists exactly when CONFIG_MODULE_SIG is built; the build's own config
    answers where sysfs is out of sight.

    Raises:
        NodeError: the parameter is neither Y nor N.
    """
    text = read_word(paths.sys / "module/module/parameters/sig_enforce")
    if text is not None:
        return ModuleSignatures(built=True, enforced=parse_flag(text, "module.sig_enforce"))
    if kconfig is not None:
        built = kconfig.get("MODULE_SIG") == "y"
        forced = kconfig.get("MODULE_SIG_FORCE") == "y"
        return ModuleSignatures(built=built, enforced=(True if forced else None) if built else False)
    if (paths.sys / "module").is_dir():
        return ModuleSignatures(built=False, enforced=False)
    return ModuleSignatures(built=None, enforced=None)


def read_load_pin(
    paths: NodePaths, lsms: tuple[str, ...] | None, kconfig: Mapping[str, str] | None = None
) -> KernelLoadPin:
    """The kernel's own LoadPin.

    The sysctl was ``enabled`` at first and is ``enforce`` on newer kernels; it may be absent
    when the pinned device is read-only. Its parameters are not in sysfs, so the command
    line and the build's config are asked in its place.

    Raises:
        NodeError: the sysctl is neither 0 nor 1.
    """
    words = dict(word.partition("=")[::2] for word in (read_word(paths.proc / "cmdline") or "").split())
    excludes_modules = "kernel-module" in words.get("loadpin.exclude", "").strip('"').split(",")
    for name in ("enforce", "enforced", "enabled"):
        enforced = read_sysctl_flag(paths, f"kernel/loadpin/{name}")
        if enforced is not None:
            return KernelLoadPin(enforced, excludes_modules)
    if lsms is None:
        return KernelLoadPin(None, excludes_modules)
    if "loadpin" not in lsms:
        return KernelLoadPin(enforced=False, excludes_modules=excludes_modules)
    choice = words.get("loadpin.enforce", words.get("loadpin.enabled"))
    if choice in {"0", "1"}:
        return KernelLoadPin(choice == "1", excludes_modules)
    built_in = None if kconfig is None else kconfig.get("SECURITY_LOADPIN_ENFORCE") == "y"
    return KernelLoadPin(built_in, excludes_modules)
