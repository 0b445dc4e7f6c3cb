# SPDX-License-Identifier: Apache-2.0
"""A scan's report for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kmodgate.cli import terminal
from kmodgate.model import Policy
from kmodgate.scan.formats import signer_name
from kmodgate.scan.records import LoadedNow, Outcome, Report, ScannedFile, ScanReason

if TYPE_CHECKING:
    from rich.text import Text

_STYLES = {
    Outcome.ACCEPTED: terminal.GOOD,
    Outcome.REFUSED: terminal.BAD,
    Outcome.UNKNOWN: terminal.UNSURE,
    Outcome.UNREADABLE: terminal.UNSURE,
}
# From here on, modules that nothing is known of, all alike, are told in one line.
_ALIKE = 10

_WHAT_TO_DO = {
    ScanReason.KERNEL_KEYRING_UNVERIFIED: "the kernel lists a key of that name or id, which cannot be "
    "verified with from here; give its certificate with --trust",
    ScanReason.KERNEL_KEYS_MISSING: "the kernel's own certificates are not at hand; "
    "give them with --trust, make its image readable, or say with --kernel which kernel it is for",
    ScanReason.NO_FILE_FOUND: "loaded from an initial RAM disk, from memory, or from a file that is gone",
}


def write_text(report: Report) -> None:
    """Print the report to standard output."""
    _kernels(report)
    _summary(report)
    refused = tuple(report.with_outcome(Outcome.REFUSED))
    if refused:
        now = sum(file.loaded for file in refused)
        _heading(f"{Policy.ENFORCE} would refuse {_modules(len(refused))}, {now} of them loaded now:")
        _files(refused)
    _unknown(report)
    unreadable = tuple(report.with_outcome(Outcome.UNREADABLE))
    if unreadable:
        _heading(f"{_modules(len(unreadable))} could not be read:")
        table = terminal.table(["file", "errno", "problem"])
        for file in unreadable:
            table.add_row(terminal.cell(file.path), file.errno or "", terminal.cell(file.signature.detail))
        terminal.show(table)
    differing = [module.name for module in report.loaded or () if module.same is False]
    if differing:
        names = ", ".join(differing)
        _note(f"loaded from another build than the file on disk, which is what was verified: {names}")
    for note in report.notes:
        _note(note)


def _kernels(report: Report) -> None:
    table = terminal.table(["kernel", "own certificates", "modules", "from"], numbers=["modules"])
    files = Counter(file.release for file in report.files)
    for kernel in report.kernels:
        found = kernel.certificates
        table.add_row(
            terminal.cell(kernel.release + (" (running)" if kernel.running else "")),
            "not at hand" if found is None else str(found),
            f"{files[kernel.release]:,}",
            terminal.cell("; ".join(filter(None, (kernel.image, kernel.problem)))),
        )
    if report.kernels:
        terminal.show(table)
        print()


def _summary(report: Report) -> None:
    counts, loaded = report.counts(), report.loaded_counts()
    numbers = ["modules", "loaded"]
    table = terminal.table(["outcome", "reason", *numbers], numbers=numbers)
    order = list(Outcome)
    for outcome, reason in sorted(counts, key=lambda key: (order.index(key[0]), key[1])):
        table.add_row(
            terminal.cell(outcome.value, _STYLES[outcome]),
            reason,
            f"{counts[outcome, reason]:,}",
            "" if report.loaded is None else f"{loaded[outcome, reason]:,}",
        )
    terminal.show(table)


def _files(files: Iterable[ScannedFile]) -> None:
    table = terminal.table(["module", "errno", "reason", "signer", "file", "tree"])
    for file in files:
        table.add_row(
            terminal.cell(file.name, terminal.BAD if file.loaded else ""),
            file.errno or "",
            file.reason,
            terminal.cell(signer_name(file.signature.signer) or "none"),
            terminal.cell(file.path),
            _tree(file),
        )
    terminal.show(table)


def _unknown(report: Report) -> None:
    unknown = tuple(report.with_outcome(Outcome.UNKNOWN))
    without = report.without_file
    if not unknown and not without:
        return
    _heading(f"Not known for {_modules(len(unknown) + len(without))}:")
    table = terminal.table(["module", "reason", "signer", "file", "tree"])
    for alike in _group(unknown):
        first, many = alike[0], len(alike) > _ALIKE
        name = f"{len(alike):,} modules" if many else None
        for file in alike[:1] if many else alike:
            table.add_row(
                name or _name(file),
                file.reason,
                terminal.cell(signer_name(first.signature.signer) or "none"),
                terminal.cell(_common(alike) if many else file.path),
                _tree(file),
            )
    for module in without:
        table.add_row(_name(module), ScanReason.NO_FILE_FOUND, "", "", "")
    terminal.show(table)
    reasons = {file.reason for file in unknown} | ({ScanReason.NO_FILE_FOUND} if without else set())
    for reason, text in _WHAT_TO_DO.items():
        if reason in reasons:
            _note(f"{reason}: {text}")


def _group(files: Iterable[ScannedFile]) -> list[list[ScannedFile]]:
    groups: dict[tuple[object, ...], list[ScannedFile]] = {}
    for file in files:
        key = (file.loaded, file.release, file.place, file.reason, file.signature.signer)
        groups.setdefault(key, []).append(file)
    return list(groups.values())


def _common(files: Sequence[ScannedFile]) -> str:
    """The directory that files which are alike have in common."""
    first, last = (file.path.split("/")[:-1] for file in (files[0], files[-1]))
    same = [one for one, other in zip(first, last, strict=False) if one == other]
    return "/".join(same) + "/"


def _name(module: ScannedFile | LoadedNow) -> Text:
    loaded = isinstance(module, LoadedNow) or module.loaded
    return terminal.cell(module.name, "bold" if loaded else "")


def _tree(file: ScannedFile) -> Text:
    if file.in_tree:
        return terminal.cell("in-tree", terminal.FAINT)
    return terminal.cell(f"out-of-tree ({file.place})" if file.place else "")


def _modules(count: int) -> str:
    return f"{count:,} module{'' if count == 1 else 's'}"


def _heading(text: str) -> None:
    print()
    terminal.show(terminal.cell(text, "bold"))


def _note(text: str) -> None:
    terminal.show(terminal.cell(f"note: {text}", terminal.FAINT))
