# SPDX-License-Identifier: Apache-2.0
"""A Debian root made with mmdebstrap, from this machine's mirror and with its way to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from . import apt
from .errors import VmToolError
from .host import need_root, run

# Documentation is left out of every root.
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*")
# mmdebstrap starts from apt's defaults; these settings say how this machine reaches its mirror.
_CARRIED = re.compile(r"Acquire::(https?::.*|Check-(Date|Valid-Until)|ForceIPv[46]|Retries)", re.IGNORECASE)
RECIPE = (*_EXCLUDED, _CARRIED.pattern)


def carried_settings(dump: str) -> list[str]:
    """The lines of ``apt-config dump`` that a root's own apt needs to reach the mirror."""
    found = []
    for line in dump.splitlines():
        name, _, value = line.rstrip(";").partition(" ")
        if _CARRIED.fullmatch(name) and value not in {"", '""'}:
            found.append(f"{name} {value}")
    return found


def make(
    suite: str,
    packages: Sequence[str],
    target: Path,
    *,
    variant: str = "minbase",
    machine: str = apt.MACHINE,
) -> None:
    """Debian's minbase of ``suite`` plus ``packages``: a tarball if ``target`` ends in .tar, else a folder.

    Args:
        suite: a Debian code name.
        packages: beyond what the variant has.
        target: where it goes.
        variant: of mmdebstrap; ``extract`` unpacks the packages and runs nothing of them.
        machine: Debian's name of the processor.

    Raises:
        VmToolError: not root, or a package or the mirror is not to be had.
    """
    need_root("making a Debian root")
    listing = target.with_name(f"{target.name}.sources")
    listing.write_text(apt.sources(suite))
    settings = ['Acquire::Languages "none"', 'APT::Install-Recommends "false"']
    settings += carried_settings(run(["apt-config", "dump"]).decode())
    kind = "tar" if target.suffix == ".tar" else "directory"
    try:
        run(
            [
                *("mmdebstrap", f"--variant={variant}", "--mode=root", f"--format={kind}"),
                f"--architectures={machine}",
                f"--include={','.join(packages)}",
                *(f"--aptopt={setting}" for setting in settings),
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
                *(suite, target, listing),
            ]
        )
    except VmToolError as error:
        if not re.search(r"Unable to locate package|404", str(error)):
            raise
        raise VmToolError(f"{error}\nThe mirror has moved on. Type: vm-images/vm build --refresh") from error
    finally:
        listing.unlink(missing_ok=True)
