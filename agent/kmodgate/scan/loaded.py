# SPDX-License-Identifier: Apache-2.0
"""Which file a loaded module came from, as far as names and source versions tell. Pure.

The kernel keeps no path of what it loaded. modprobe(8) finds a module by its name through
``modules.dep``, which depmod(8) fills by its search order; so does this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from kmodgate.node import LoadedModule

from .records import LoadedNow, ScannedFile, module_name

# depmod.d(5): what distributions search first. Everything else comes last.
_SEARCH = ("updates", "extra", "weak-updates", "kernel")


def parse_modules_dep(text: str) -> frozenset[str]:
    """Paths, below ``lib/modules/RELEASE``, of the files that modprobe would load."""
    return frozenset(line.partition(":")[0] for line in text.splitlines() if ":" in line)


def match_loaded(
    modules: Iterable[LoadedModule],
    files: tuple[ScannedFile, ...],
    *,
    base: str,
    chosen: frozenset[str],
    srcversions: Mapping[str, str],
    signatures_built: bool | None,
) -> tuple[tuple[LoadedNow, ...], tuple[ScannedFile, ...]]:
    """Pair loaded modules with files.

    Args:
        modules: what is loaded.
        files: what was scanned, of the running kernel.
        base: its directory of modules (``/lib/modules/RELEASE``).
        chosen: from ``parse_modules_dep``; may be empty.
        srcversions: of the loaded modules that have one, by name.
        signatures_built: CONFIG_MODULE_SIG of the running kernel; None when not known.

    Returns:
        The loaded modules in their order, and the files with ``loaded`` set.
    """
    by_name: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        for name in {file.name.replace("-", "_"), module_name(file.path)}:
            by_name.setdefault(name, []).append(index)
    found: list[tuple[LoadedModule, int | None]] = []
    for module in modules:
        candidates = by_name.get(module.name.replace("-", "_"), [])
        best = min(candidates, key=lambda index: _rank(files[index], base, chosen), default=None)
        found.append((module, best))
    marked = list(files)
    for _, best in found:
        if best is not None:
            marked[best] = replace(files[best], loaded=True)
    return tuple(
        LoadedNow(
            name=module.name,
            taints=module.taints,
            trusted_at_load=_trusted_at_load(module, signatures_built),
            file=None if best is None else marked[best],
            same=None if best is None else _same(srcversions.get(module.name), marked[best]),
        )
        for module, best in found
    ), tuple(marked)


def _rank(file: ScannedFile, base: str, chosen: frozenset[str]) -> tuple[bool, int, str]:
    top = file.place.partition("/")[0]
    return (
        file.path.removeprefix(base + "/") not in chosen,
        _SEARCH.index(top) if top in _SEARCH else len(_SEARCH),
        file.path,
    )


def _same(srcversion: str | None, file: ScannedFile) -> bool | None:
    module = file.signature.module
    if srcversion is None or module is None or module.srcversion is None:
        return None
    return srcversion == module.srcversion


def _trusted_at_load(module: LoadedModule, signatures_built: bool | None) -> bool | None:
    # Taint E says that the kernel found no trusted signature. Its absence says nothing
    # where the kernel was built without CONFIG_MODULE_SIG.
    if module.is_unsigned:
        return False
    return True if signatures_built else None
