# SPDX-License-Identifier: Apache-2.0
"""A scan for machines: one JSON document, or CSV. Both ASCII or UTF-8, and harmless.

File, module and signer names are hostile. In both formats they are escaped as in the event
log (``telemetry.text``): every character prints, a backslash starts an escape, nothing is
lost. In CSV a cell that a spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, TextIO

from kmodgate.model import Policy, Signer
from kmodgate.telemetry.text import PATH_LIMIT, printable

from .records import KernelTrust, LoadedNow, Outcome, Report, ScannedFile, ScanReason

SCHEMA = 1
"""Version of the JSON document; ``report.schema.json`` describes it."""

COLUMNS = (
    *("outcome", "reason", "errno", "loaded", "module", "file", "kernel", "place", "in_tree"),
    *("status", "signer", "trusted_by", "sha256", "detail"),
)
"""Header of the CSV, in order."""

# What spreadsheets take for the start of a formula, full-width forms included.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def write_json(report: Report, stream: TextIO) -> None:
    """One document; each file and each loaded module has a line of its own."""
    head = {
        "schema": SCHEMA,
        "root": _text(report.root),
        "policy": Policy.ENFORCE.value,
        "kernels": [_kernel(kernel) for kernel in report.kernels],
        "notes": [_text(note) for note in report.notes],
        "summary": _summary(report),
    }
    stream.write(json.dumps(head)[:-1])
    stream.write(', "files": [')
    _write_lines(stream, map(_file, report.files))
    stream.write('], "loaded": ')
    if report.loaded is None:
        stream.write("null}\n")
        return
    stream.write("[")
    _write_lines(stream, map(_loaded, report.loaded))
    stream.write("]}\n")


def _write_lines(stream: TextIO, records: Iterator[dict[str, Any]]) -> None:
    separator = "\n"
    for record in records:
        stream.write(separator + json.dumps(record))
        separator = ",\n"
    stream.write("\n")


def write_csv(report: Report, stream: TextIO) -> None:
    """A header and a row for each file; then one for each loaded module without a file."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for file in report.files:
        found = file.signature
        writer.writerow(
            map(
                csv_cell,
                (
                    *(file.outcome.value, file.reason, file.errno, file.loaded, file.name, file.path),
                    *(file.release, file.place, file.in_tree, found.status.value),
                    *(signer_name(found.signer), found.trusted_by, found.sha256, found.detail),
                ),
            )
        )
    for module in report.without_file:
        row = (Outcome.UNKNOWN.value, ScanReason.NO_FILE_FOUND.value, None, True, module.name)
        writer.writerow(map(csv_cell, row + (None,) * (len(COLUMNS) - len(row))))


def signer_name(signer: Signer | None) -> str | None:
    """A signer in one line: the best name there is."""
    if signer is None:
        return None
    return signer.subject or signer.issuer or (signer.skid and f"SKID {signer.skid}")


def csv_cell(value: str | bool | None) -> str:
    """A value that neither a terminal nor a spreadsheet takes for more than it is."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    escaped = printable(value, PATH_LIMIT)
    return f"'{escaped}" if escaped.startswith(_FORMULA) else escaped


def _text(value: str | None) -> str | None:
    return None if value is None else printable(value, PATH_LIMIT)


def _kernel(kernel: KernelTrust) -> dict[str, Any]:
    return {
        "release": _text(kernel.release),
        "running": kernel.running,
        "image": _text(kernel.image),
        "certificates": kernel.certificates,
        "problem": _text(kernel.problem) or None,
    }


def _summary(report: Report) -> dict[str, Any]:
    counts, loaded = report.counts(), report.loaded_counts()
    order = {outcome: position for position, outcome in enumerate(Outcome)}
    return {
        "exit_code": report.exit_code,
        "files": len(report.files),
        "loaded": None if report.loaded is None else len(report.loaded),
        **{
            outcome.value: sum(count for (one, _), count in counts.items() if one is outcome)
            for outcome in Outcome
        },
        "by_reason": [
            {
                "outcome": outcome.value,
                "reason": reason,
                "modules": counts[outcome, reason],
                "loaded": loaded[outcome, reason],
            }
            for outcome, reason in sorted(counts, key=lambda key: (order[key[0]], key[1]))
        ],
    }


def _file(file: ScannedFile) -> dict[str, Any]:
    found, signer = file.signature, file.signature.signer
    return {
        "file": _text(file.path),
        "module": _text(file.name),
        "kernel": _text(file.release),
        "place": _text(file.place),
        "in_tree": file.in_tree,
        "loaded": file.loaded,
        "outcome": file.outcome.value,
        "reason": file.reason,
        "errno": file.errno,
        "status": found.status.value,
        "trusted_by": _text(found.trusted_by),
        "signer": None
        if signer is None
        else {
            "issuer": _text(signer.issuer),
            "serial": signer.serial,
            "skid": signer.skid,
            "subject": _text(signer.subject),
        },
        "hash_algorithm": found.hash_algorithm,
        "signature_algorithm": found.signature_algorithm,
        "sha256": found.sha256,
        "detail": _text(found.detail),
    }


def _loaded(module: LoadedNow) -> dict[str, Any]:
    file = module.file
    return {
        "module": _text(module.name),
        "taints": module.taints,
        "trusted_at_load": module.trusted_at_load,
        "file": None if file is None else _text(file.path),
        "same_as_file": module.same,
        "outcome": (Outcome.UNKNOWN if file is None else file.outcome).value,
        "reason": ScanReason.NO_FILE_FOUND.value if file is None else file.reason,
        "errno": None if file is None else file.errno,
    }
