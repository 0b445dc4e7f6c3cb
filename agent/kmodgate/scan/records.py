# SPDX-License-Identifier: Apache-2.0
"""What a scan finds, as frozen values. No I/O, no decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from kmodgate.model import SignatureReport


class Outcome(StrEnum):
    """What ENFORCE_SIGNED_MODULES would do with a module: a closed set.

    ``unknown`` is no softer word for accepted: it says that the scan could not find out.
    """

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    UNREADABLE = "unreadable"


class ScanReason(StrEnum):
    """Reasons that only a scan has; all others are the policy's (``model.Reason``)."""

    KERNEL_KEYRING_UNVERIFIED = "kernel_keyring_unverified"
    """A certificate of the signer's name or id is in /proc/keys, but not at hand to verify with."""
    KERNEL_KEYS_MISSING = "kernel_keys_missing"
    """No configured certificate is the signer's, and the kernel's own are not at hand."""
    NO_FILE_FOUND = "no_file_found"
    """The module is loaded, and no file of its name is on disk."""


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """One module file.

    Attributes:
        path: from the root that was scanned; not UTF-8 as lone surrogates.
        release: the kernel it is installed for; None outside ``lib/modules/RELEASE``.
        place: where in that directory: ``kernel``, ``updates/dkms``, ``extra``, …; ``.`` for
            the directory itself, empty outside.
        outcome: what ENFORCE would do.
        reason: why: label of a ``Reason``, or a ``ScanReason``.
        errno: name of what the loader would see, the file system's error for an unreadable
            file; None when accepted or unknown.
        signature: what verification found.
        loaded: a module of this file's name is loaded.
    """

    path: str
    release: str | None
    place: str
    outcome: Outcome
    reason: str
    errno: str | None
    signature: SignatureReport
    loaded: bool = False

    @property
    def in_tree(self) -> bool:
        """True where depmod(8) puts the modules of the kernel's own sources."""
        return self.place == "kernel"

    @property
    def name(self) -> str:
        """The module's own name, or the one that its file name gives it."""
        module = self.signature.module
        return (module.name if module else None) or module_name(self.path)


@dataclass(frozen=True, slots=True)
class LoadedNow:
    """One module that is loaded.

    Attributes:
        name: as in ``/proc/modules``.
        taints: letters of ``kernel/panic.c``.
        trusted_at_load: the kernel found its signature good when it was loaded; None when
            the kernel does not tell.
        file: what modprobe(8) would load under this name; None when there is none.
        same: the file has the loaded module's ``srcversion``; None when one has none.
    """

    name: str
    taints: str
    trusted_at_load: bool | None
    file: ScannedFile | None
    same: bool | None


@dataclass(frozen=True, slots=True)
class KernelTrust:
    """What is known of the keys that one kernel trusts by itself.

    Attributes:
        release: ``uname -r``.
        running: it is the kernel that runs now.
        image: path of the image that the certificates were taken from, or None.
        certificates: how many; None when they are not at hand.
        problem: why they are not, or what was left out; empty when nothing.
    """

    release: str
    running: bool
    image: str | None
    certificates: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that one scan found.

    Attributes:
        root: the directory that was scanned.
        kernels: one for each release, in order.
        files: all module files, in order of their paths.
        loaded: what is loaded, in the kernel's order; None when that was not looked at.
        notes: what an operator should know of this node, a sentence each.
    """

    root: str
    kernels: tuple[KernelTrust, ...]
    files: tuple[ScannedFile, ...]
    loaded: tuple[LoadedNow, ...] | None
    notes: tuple[str, ...] = ()

    @property
    def without_file(self) -> tuple[LoadedNow, ...]:
        """Loaded modules that no file was found for."""
        return tuple(module for module in self.loaded or () if module.file is None)

    def counts(self) -> Counter[tuple[Outcome, str]]:
        """Files, and loaded modules without one, by outcome and reason."""
        found = Counter((file.outcome, file.reason) for file in self.files)
        if without := len(self.without_file):
            found[Outcome.UNKNOWN, ScanReason.NO_FILE_FOUND] = without
        return found

    def loaded_counts(self) -> Counter[tuple[Outcome, str]]:
        """The same of what is loaded alone."""
        return Counter(
            (module.file.outcome, module.file.reason)
            if module.file
            else (Outcome.UNKNOWN, ScanReason.NO_FILE_FOUND)
            for module in self.loaded or ()
        )

    def with_outcome(self, *outcomes: Outcome) -> Iterator[ScannedFile]:
        """Files of these outcomes, the loaded ones first."""
        wanted = [file for file in self.files if file.outcome in outcomes]
        yield from (file for file in wanted if file.loaded)
        yield from (file for file in wanted if not file.loaded)

    @property
    def exit_code(self) -> int:
        """0 all accepted, 1 something would be refused or is unknown, 2 something was not read."""
        outcomes = {outcome for outcome, _ in self.counts()}
        if Outcome.UNREADABLE in outcomes:
            return 2
        return 0 if outcomes <= {Outcome.ACCEPTED} else 1


def module_name(path: str) -> str:
    """The name that the kernel build gives a file: ``snd-hda-intel.ko.xz`` is ``snd_hda_intel``."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
