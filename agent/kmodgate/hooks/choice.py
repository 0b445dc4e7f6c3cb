# SPDX-License-Identifier: Apache-2.0
"""Which backend this node gets: the best rung whose features the kernel was seen to have.

The kernel is asked for each feature by trying it (libbpf's probes) or by its type information.
Its release is never looked at. What a chosen rung cannot enforce is said in ``rungs``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from kmodgate.errors import HookError
from kmodgate.model import Backend
from kmodgate.node import NodePaths
from kmodgate.node.bpf import read_btf_names

from . import libbpf
from .basic import BasicBackend
from .bpf import BpfBackend, shipped_object
from .fmod_ret import FmodRetBackend
from .pins import Pins
from .rung import RungBackend

BACKENDS: Final[Mapping[Backend, type[BpfBackend]]] = {
    Backend.BPF_LSM: BpfBackend,
    Backend.BPF_FMOD_RET: FmodRetBackend,
    Backend.BPF_LSM_BASIC: BasicBackend,
}
"""The rungs on BPF programs that are compiled beforehand, best first."""

# include/uapi/linux/bpf.h
_BPF_FUNC_LOOP: Final = 181
_MAP_TYPE_TASK_STORAGE: Final = 29
_PROG_TYPE_LSM: Final = 29
_PROG_TYPE_SYSCALL: Final = 31

_LSM_HOOKS: Final = ("bpf_lsm_kernel_read_file", "bpf_lsm_kernel_load_data", "bpf_lsm_locked_down")
_HELPERS: Final = ("bpf_copy_from_user_task", "bpf_d_path")
_SECURITY_FUNCTIONS: Final = (
    "security_kernel_read_file",
    "security_kernel_load_data",
    "security_kernel_post_read_file",
    "security_kernel_post_load_data",
    "security_locked_down",
    "security_sb_free",
)
_SIGNATURE: Final = {rung: backend.required for rung, backend in BACKENDS.items()}


@dataclass(frozen=True, slots=True)
class Features:
    """What the running kernel offers BPF programs.

    Attributes:
        functions: of those that matter, the ones that its type information has.
        lsm_programs: it takes programs for the hooks of security modules.
        loop: it has ``bpf_loop()`` (5.17).
        task_storage: it keeps data of programs by task (5.11).
        syscall_programs: it runs programs on request, with an argument (5.14).
        lsm_active: ``bpf`` is among the security modules; None when they cannot be listed.
        no_programs: why no compiled program can be loaded at all; empty when they can.
        no_bcc: asks what keeps programs from being compiled here; empty when they can.
        no_tracefs: asks what keeps trace events from being read; empty when they can.

    The last two take time, and are called only where no better rung will do.
    """

    functions: frozenset[str]
    lsm_programs: bool
    loop: bool
    task_storage: bool
    syscall_programs: bool
    lsm_active: bool | None = None
    no_programs: str = ""
    no_bcc: Callable[[], tuple[str, ...]] = lambda: ("BCC was not looked for",)
    no_tracefs: Callable[[], tuple[str, ...]] = lambda: ("trace events were not looked for",)

    @classmethod
    def look(cls, *, lsm_active: bool | None, paths: NodePaths, wanted: Backend | None = None) -> Self:
        """Ask the running kernel for what rungs on compiled programs need; the others are asked for later.

        Raises:
            HookError: this kernel has type information, but a part of kmodgate is missing: a lower rung
                would be no remedy.
        """
        without = _no_programs(wanted)
        programs = cls._without(without) if without else cls.probe(lsm_active=lsm_active)
        return replace(programs, no_bcc=lambda: _no_bcc(paths), no_tracefs=lambda: _no_tracefs(paths))

    @classmethod
    def _without(cls, why: str) -> Self:
        nothing: frozenset[str] = frozenset()
        return cls(
            nothing,
            lsm_programs=False,
            loop=False,
            task_storage=False,
            syscall_programs=False,
            no_programs=why,
        )

    @classmethod
    def probe(cls, *, lsm_active: bool | None) -> Self:
        """Ask what BPF programs need. Raises HookError without libbpf, BTF or the right to ask."""
        names = (
            *_LSM_HOOKS,
            *_SECURITY_FUNCTIONS,
            *_HELPERS,
            *(name for names in _SIGNATURE.values() for name in names),
        )
        # Looked for as strings, which takes no parsing: only functions have these names.
        functions = read_btf_names(NodePaths(), names)
        if functions is None:
            raise HookError("the kernel's type information (/sys/kernel/btf/vmlinux) cannot be read")
        return cls(
            functions=functions,
            lsm_programs=libbpf.has_program_type(_PROG_TYPE_LSM),
            loop=libbpf.has_helper(_BPF_FUNC_LOOP),
            task_storage=libbpf.has_map_type(_MAP_TYPE_TASK_STORAGE),
            syscall_programs=libbpf.has_program_type(_PROG_TYPE_SYSCALL),
            lsm_active=lsm_active,
        )


def _no_programs(wanted: Backend | None) -> str:
    """Why BPF programs are out of the question; empty when they are not."""
    if wanted is not None and wanted not in BACKENDS:
        return f"{wanted} was asked for"
    if read_btf_names(NodePaths(), ()) is None:
        return "the kernel's type information (/sys/kernel/btf/vmlinux) cannot be read"
    return ""


# What only the lower rungs need is imported where one of them is looked at: most nodes never do.


def _no_bcc(paths: NodePaths) -> tuple[str, ...]:
    from .bcc import lacks

    return lacks(paths)


def _no_tracefs(paths: NodePaths) -> tuple[str, ...]:
    from .traceinstance import lacks

    return tuple(lacks(paths))


def missing_parts() -> str:
    """Why no rung can be tried at all (libbpf, an object, type information), or nothing. No root needed."""
    try:
        libbpf.kernel_functions(())
        for backend in BACKENDS.values():
            shipped_object(backend.object_name)
    except HookError as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The rung to stand on, and what kept the better ones from it.

    Attributes:
        backend: the rung.
        passed_over: better rungs, each with all that it lacks here, or cannot carry out.
        cannot: what keeps the rungs that work here from carrying the policy out; empty when this one can.
    """

    backend: Backend
    passed_over: tuple[tuple[Backend, tuple[str, ...]], ...]
    cannot: tuple[str, ...] = ()

    def open(self, *, pinned: bool, paths: NodePaths) -> RungBackend:
        """The rung, with nothing loaded or made yet.

        Args:
            pinned: they outlive this process.
            paths: where mounts are looked up.

        Raises:
            HookError: libbpf or the object is missing.
        """
        if self.backend is Backend.BCC:
            from .bcc import BccBackend

            return BccBackend(paths=paths)
        if self.backend is Backend.TRACEFS:
            from .tracefs import TracefsBackend

            return TracefsBackend(paths)
        return BACKENDS[self.backend](pins=Pins(self.backend, paths=paths) if pinned else None)


def _nothing(_backend: Backend) -> tuple[str, ...]:
    return ()


def choose(
    features: Features,
    wanted: Backend | None = None,
    *,
    below: Backend | None = None,
    cannot: Callable[[Backend], tuple[str, ...]] = _nothing,
) -> Choice:
    """The best rung that can carry the policy out, or ``wanted`` where an operator names one.

    Args:
        features: of the kernel.
        wanted: this rung and no other.
        below: only rungs under this one, which has broken. Those on compiled programs break together:
            what silences one kind of them silences all.
        cannot: what of the policy a rung cannot carry out here; asked only of one that works. Where none
            that works can, the best of them comes back with the reasons of all.

    Raises:
        HookError: the kernel lacks something for it, or for all of them.
    """
    passed_over: list[tuple[Backend, tuple[str, ...]]] = []
    works: Backend | None = None
    problems: list[str] = []
    if below in BACKENDS:
        below = list(BACKENDS)[-1]
    for backend, lacks in _NEEDS.items():
        if below is not None:
            below = None if backend is below else below
            continue
        if wanted not in {None, backend}:
            passed_over.append((backend, (f"{wanted} was asked for",)))
            continue
        if features.no_programs and backend in BACKENDS:
            missing: tuple[str, ...] = (features.no_programs,)
        else:
            missing = tuple(lacks(features))
        if missing and wanted is backend:
            raise HookError(f"backend {backend} cannot work on this kernel: {'; '.join(missing)}")
        if not missing:
            missing = cannot(backend)
            if not missing:
                return Choice(backend, tuple(passed_over))
            works = works or backend
            problems += missing
        passed_over.append((backend, missing))
    if works is not None:
        return Choice(works, (), tuple(problems))
    if wanted is not None:
        raise HookError(f"backend {wanted} is not in this version")
    reasons = (f"{backend}: {'; '.join(missing)}" for backend, missing in passed_over)
    raise HookError(f"no backend can work on this kernel: {' | '.join(reasons)}")


def _lsm_lacks(features: Features, backend: Backend) -> Iterator[str]:
    """What every rung on the security modules' hooks needs."""
    if not features.lsm_programs or not features.functions.issuperset(_LSM_HOOKS):
        yield "the kernel is built without CONFIG_BPF_LSM"
    elif features.lsm_active is False:
        yield "bpf is not among the active security modules (lsm= on the kernel command line)"
    if not features.functions.intersection(_SIGNATURE[backend]):
        yield f"no function {' or '.join(_SIGNATURE[backend])}() to attach to"


def _full_lacks(features: Features) -> Iterator[str]:
    yield from _lsm_lacks(features, Backend.BPF_LSM)
    yield from _digest_lacks(features)
    for name in _HELPERS:
        if name not in features.functions:
            yield f"no {name}()"


def _fmod_ret_lacks(features: Features) -> Iterator[str]:
    for name in _SECURITY_FUNCTIONS:
        if name not in features.functions:
            yield f"no function {name}() to attach to (CONFIG_SECURITY is off, or the compiler inlined it)"
    if not features.functions.intersection(_SIGNATURE[Backend.BPF_FMOD_RET]):
        yield "no function module_sig_check() to attach to"
    yield from _digest_lacks(features)


def _digest_lacks(features: Features) -> Iterator[str]:
    """What it takes to look at all bytes of a module and to follow a load."""
    for present, name in (
        (features.loop, "bpf_loop()"),
        (features.task_storage, "task storage"),
        (features.syscall_programs, "programs of type syscall"),
    ):
        if not present:
            yield f"no {name}"


def _basic_lacks(features: Features) -> Iterator[str]:
    yield from _lsm_lacks(features, Backend.BPF_LSM_BASIC)


def _bcc_lacks(features: Features) -> Iterator[str]:
    yield from features.no_bcc()


def _tracefs_lacks(features: Features) -> Iterator[str]:
    yield from features.no_tracefs()


_NEEDS: Final[Mapping[Backend, Callable[[Features], Iterator[str]]]] = {
    Backend.BPF_LSM: _full_lacks,
    Backend.BPF_FMOD_RET: _fmod_ret_lacks,
    Backend.BPF_LSM_BASIC: _basic_lacks,
    Backend.BCC: _bcc_lacks,
    Backend.TRACEFS: _tracefs_lacks,
}
"""In the order of the ladder. Another rung stands here, and in ``Choice.open``."""
