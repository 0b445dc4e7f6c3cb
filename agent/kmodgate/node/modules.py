# SPDX-License-Identifier: Apache-2.0
"""The modules that are loaded now.

Sources: proc_modules(5), ``m_show()`` in ``kernel/module/procfs.c``, the table of taint
letters in ``kernel/panic.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from kmodgate.errors import NodeError

from .paths import NodePaths, read_text, read_word

# The kernel cuts names at MODULE_NAME_LEN, 56 bytes on 64-bit; no "/" and no leading
# dot, because a name becomes a directory of sysfs.
_LINE = re.compile(
    r"(?P<name>[^\s/.][^\s/]{0,63}) (?P<size>[0-9]{1,19}) (?P<refs>-?[0-9]{1,10}|-) (?P<users>\S+) "
    r"(?P<state>Live|Loading|Unloading) (?P<address>(?:0x)?[0-9a-fA-F]+)(?: \((?P<taints>[A-Z+-]*)\))?"
)
_TAINTS = re.compile(r"[A-Z]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """One loaded module.

    Attributes:
        size: bytes in memory.
        references: how many hold it, -1 while it is being unloaded; None when the kernel
            cannot unload modules.
        used_by: names of the modules that need it.
        state: ``Live``, ``Loading`` or ``Unloading``.
        taints: letters of ``kernel/panic.c``; ``E`` means that its signature was
            missing or not trusted when it was loaded, ``O`` that it is out of tree.
    """

    name: str
    size: int
    references: int | None
    used_by: tuple[str, ...]
    state: str
    taints: str

    @property
    def is_unsigned(self) -> bool:
        """True when the kernel marked it as loaded without a trusted signature."""
        return "E" in self.taints


def parse_modules(text: str) -> tuple[LoadedModule, ...]:
    """All modules, in the order of the file (latest first).

    Raises:
        NodeError: a line that is no line of ``/proc/modules``.
    """
    modules = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise NodeError(
                f"/proc/modules line {number} has not the form of proc_modules(5); report this as a bug"
            )
        users = match["users"]
        modules.append(
            LoadedModule(
                name=match["name"],
                size=int(match["size"]),
                references=None if match["refs"] == "-" else int(match["refs"]),
                # "[permanent]" stands in this column for a module that cannot go.
                used_by=tuple(user for user in users.split(",") if user not in {"", "-", "[permanent]"}),
                state=match["state"],
                taints="".join(letter for letter in match["taints"] or "" if letter not in "+-"),
            )
        )
    return tuple(modules)


def read_modules(paths: NodePaths) -> tuple[LoadedModule, ...] | None:
    """The loaded modules, each with the taints that sysfs gives it.

    None when ``/proc/modules`` is absent (CONFIG_MODULES=n).

    Raises:
        NodeError: the list or a taint makes no sense.
    """
    text = read_text(paths.proc / "modules")
    if text is None:
        return None
    return tuple(_with_taints(module, paths) for module in parse_modules(text))


def _with_taints(module: LoadedModule, paths: NodePaths) -> LoadedModule:
    taints = read_word(paths.sys / "module" / module.name / "taint")
    if taints is None:  # none at all, or gone since
        return module
    if not _TAINTS.fullmatch(taints):
        raise NodeError(f"the taint of module {module.name} is {taints[:60]!a}; report this as a bug")
    return replace(module, taints=taints)
