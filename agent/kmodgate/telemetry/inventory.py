# SPDX-License-Identifier: Apache-2.0
"""One loaded module that did not pass for trusted, as a record of the event log. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from kmodgate.model import Signer

from .events import SCHEMA_VERSION, Kind, signer_record, text_value, time_value
from .metrics import LoadedSignature
from .text import PATH_LIMIT


class InventoryOutcome(StrEnum):
    """What ENFORCE_SIGNED_MODULES would have done with a module that is loaded already."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LoadedModuleReport:
    """What is known of one loaded module.

    Attributes:
        name: as in ``/proc/modules``.
        taints: letters of ``kernel/panic.c``.
        signature: in one word.
        outcome: what ENFORCE would have done, judged by ``signature``.
        errno: name of what the loader would have seen; None when not refused.
        trusted_at_load: the kernel found its signature good; None when it does not tell.
        path: the file that modprobe(8) would load under this name, from the node's root.
        sha256: of that file, decompressed.
        same_source: the file has the loaded module's ``srcversion``; None when one has none.
        detail: what verification said of the file.
        signer: whom the file names.
    """

    name: str
    taints: str
    signature: LoadedSignature
    outcome: InventoryOutcome
    errno: str | None = None
    trusted_at_load: bool | None = None
    path: str | None = None
    sha256: str | None = None
    same_source: bool | None = None
    detail: str | None = None
    signer: Signer | None = None


def inventory_record(
    module: LoadedModuleReport, *, time: datetime, node: str | None, sequence: int
) -> Mapping[str, object]:
    """The keys and values of one ``module_inventory`` record, every string escaped."""
    return {
        "event": Kind.MODULE_INVENTORY.value,
        "schema": SCHEMA_VERSION,
        "sequence": sequence,
        "time": time_value(time),
        "node": text_value(node),
        "module": text_value(module.name),
        "signature": module.signature.value,
        "outcome": module.outcome.value,
        "errno": module.errno,
        "taints": text_value(module.taints),
        "trusted_at_load": module.trusted_at_load,
        "path": text_value(module.path, PATH_LIMIT),
        "sha256": text_value(module.sha256),
        "same_source": module.same_source,
        "signature_detail": text_value(module.detail),
        "signer": signer_record(module.signer),
    }
