# SPDX-License-Identifier: Apache-2.0
"""All that kmodgate knows of libbpf's ABI, through ctypes.

libbpf keeps its ABI within a major version (``libbpf.so.1``); only functions of its first
1.x release are used. No policy and no record layout here: bytes in, bytes out.

Conventions of libbpf 1.x (libbpf_legacy.h): a pointer function returns NULL and sets
``errno``; an int function returns a negative errno. Both become ``HookError`` here.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError

from .library import LinkInfo, Sample, TestRunOpts, info, library, misses

BTF_KIND_FUNC: Final = 12  # include/uapi/linux/btf.h
_NO_PREVIOUS: Final = None
_PROG_TYPE_RAW_TRACEPOINT: Final = 17  # include/uapi/linux/bpf.h


class Map:
    """One BPF map of a loaded object, by its file descriptor."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    def update(self, key: bytes, value: bytes) -> None:
        """Store one element (``BPF_ANY``). Raises HookError, for instance when it is full."""
        library.integer(f"map {self.name}: update", library.lib.bpf_map_update_elem(self.fd, key, value, 0))

    def delete(self, key: bytes) -> None:
        """Remove one element; one that is not there is no error."""
        result = library.lib.bpf_map_delete_elem(self.fd, key)
        if result != -errno.ENOENT:
            library.integer(f"map {self.name}: delete", result)

    def lookup(self, key: bytes, size: int) -> bytes | None:
        """The value of one element, ``size`` bytes as the map has them; None when it is not there."""
        value = ctypes.create_string_buffer(size)
        result = library.lib.bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        library.integer(f"map {self.name}: look-up", result)
        return value.raw

    def memory(self, size: int) -> mmap.mmap:
        """The values of an array created with ``BPF_F_MMAPABLE``, shared with the kernel."""
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            return mmap.mmap(self.fd, pages, mmap.MAP_SHARED)
        except OSError as error:
            raise HookError(f"map {self.name}: mmap: {error}") from error

    def items(self, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
        """Every element of a hash. One that is deleted meanwhile may be left out."""
        key = ctypes.create_string_buffer(key_size)
        value = ctypes.create_string_buffer(value_size)
        at: ctypes.Array[ctypes.c_char] | None = None
        while library.lib.bpf_map_get_next_key(self.fd, at, key) == 0:
            at = key
            if library.lib.bpf_map_lookup_elem(self.fd, key, value) == 0:
                yield key.raw, value.raw


class RingBuffer:
    """A consumer of one ring-buffer map.

    Records are copied out in the callback and handed over afterwards, so that no Python
    exception has to cross libbpf. One read takes a bounded number of them: libbpf goes on
    while there are more, and a storm of loads would keep the agent in here for ever.
    """

    _BATCH: Final = 64

    def __init__(self, ring: Map) -> None:
        self._records: list[bytes] = []
        self._callback = Sample(self._sample)
        self._ring: int | None = library.pointer(
            f"ring buffer {ring.name}",
            library.lib.ring_buffer__new(ring.fd, self._callback, None, None),
        )

    def _sample(self, _context: int, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        # A negative number stops libbpf after this record, which counts as consumed.
        return 0 if len(self._records) < self._BATCH else -errno.EAGAIN

    def fileno(self) -> int:
        """A descriptor that polls readable while records wait."""
        return int(library.lib.ring_buffer__epoll_fd(self._ring))

    def read(self) -> list[bytes]:
        """Up to 64 records that are ready, oldest first. Never blocks."""
        result = library.lib.ring_buffer__consume(self._ring)
        if result != -errno.EAGAIN:
            library.integer("ring buffer", result)
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        """Release the consumer."""
        if self._ring is not None:
            library.lib.ring_buffer__free(self._ring)
            self._ring = None


class Program:
    """One program of an object."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self.name = library.lib.bpf_program__name(pointer).decode()
        self.section = library.lib.bpf_program__section_name(pointer).decode()

    def skip(self) -> None:
        """Leave this program out when the object is loaded."""
        library.integer(self.name, library.lib.bpf_program__set_autoload(self._pointer, False))

    @property
    def fd(self) -> int:
        """File descriptor of the loaded program."""
        return library.integer(self.name, library.lib.bpf_program__fd(self._pointer))

    def attach(self) -> Link:
        """Attach where the section name says."""
        link = library.lib.bpf_program__attach(self._pointer)
        return Link(library.pointer(f"program {self.name}: attach to {self.section}", link), self)

    def test_run(self, context: ctypes.Structure | None = None) -> int:
        """Run a ``syscall`` program once in this thread's context; its return value.

        The context is read and written in place. Raises HookError when the kernel refuses.
        """
        opts = TestRunOpts(sz=ctypes.sizeof(TestRunOpts))
        if context is not None:
            opts.ctx_in = ctypes.addressof(context)
            opts.ctx_size_in = ctypes.sizeof(context)
        result = library.lib.bpf_prog_test_run_opts(self.fd, ctypes.byref(opts))
        library.integer(f"program {self.name}: run", result)
        return ctypes.c_int32(opts.retval).value

    def recursion_misses(self) -> int:
        """How often the kernel skipped this program (``bpf_prog_info``, since 5.12)."""
        return misses(self.fd, self.name)


class Link:
    """An attachment; it ends with ``close`` or with the process."""

    def __init__(self, pointer: int, program: Program) -> None:
        self._pointer: int | None = pointer
        self._program = program

    @property
    def fd(self) -> int:
        """File descriptor of the attachment; it stays this object's."""
        return library.integer("link", library.lib.bpf_link__fd(self._pointer))

    def recursion_misses(self) -> int:
        """How often the kernel skipped the program."""
        return self._program.recursion_misses()

    def pin(self, path: Path) -> None:
        """Keep the attachment beyond this process, under a path on a BPF file system.

        Not by ``bpf_link__pin``: it refuses to pin again what somebody has unpinned.
        """
        _pin(self.fd, path)

    def pin_program(self, path: Path) -> None:
        """Pin what is attached, so that a later process can look at it (``PinnedLink``)."""
        _pin(self._program.fd, path)

    def close(self) -> None:
        """Detach, unless it is pinned."""
        if self._pointer is not None:
            library.lib.bpf_link__destroy(self._pointer)
            self._pointer = None


class PinnedLink:
    """An attachment that an earlier process has pinned.

    Attributes:
        fd: descriptor of the attachment.
        program_fd: descriptor of the program behind it, closed with it.
    """

    def __init__(self, path: Path, program: Path) -> None:
        """Open it.

        Args:
            path: of the attachment.
            program: where its program is pinned. By its number alone the kernel gives a program to
                nobody without CAP_SYS_ADMIN (``bpf_prog_get_fd_by_id()``, kernel/bpf/syscall.c).

        Raises:
            HookError: one cannot be opened.
        """
        self._name = path.name
        self.fd = _pinned(path)
        link = LinkInfo()
        info(self.fd, link, self._name)
        self.program_fd: Final = _pinned(program) if program.exists() else _numbered(link.prog_id, program)

    def pin(self, path: Path) -> None:
        """Pin it once more."""
        _pin(self.fd, path)

    def pin_program(self, path: Path) -> None:
        """Pin the program behind it once more."""
        _pin(self.program_fd, path)

    def recursion_misses(self) -> int:
        """How often the kernel skipped the program behind it."""
        return misses(self.program_fd, self._name)

    def close(self) -> None:
        """Let go of it; it stays while it is pinned."""
        if self.fd >= 0:
            os.close(self.program_fd)
            os.close(self.fd)
            self.fd = -1


class Object:
    """A compiled BPF object: opened, loaded, closed.

    Args:
        data: the ELF file.
        wanted: keeps a program when it returns True for its section name; the others are
            not loaded. For programs whose target this kernel lacks.
    """

    def __init__(self, data: bytes, wanted: Callable[[str], bool] = lambda _section: True) -> None:
        self._data = data  # libbpf keeps pointers into it
        self._object: int | None = library.pointer(
            "BPF object", library.lib.bpf_object__open_mem(data, len(data), None)
        )
        self.programs: dict[str, Program] = {}
        pointer = _NO_PREVIOUS
        while pointer := library.lib.bpf_object__next_program(self._object, pointer):
            program = Program(pointer)
            if wanted(program.section):
                self.programs[program.name] = program
            else:
                program.skip()

    def pin_maps(self, directory: Path) -> None:
        """Have ``load`` take the maps that are pinned in the directory, and pin there what it creates.

        Maps that libbpf makes for constants and variables belong to one object and are left out.
        A pinned map of another shape makes ``load`` fail.
        """
        pointer = _NO_PREVIOUS
        while pointer := library.lib.bpf_object__next_map(self._object, pointer):
            name = library.lib.bpf_map__name(pointer).decode()
            if "." not in name:
                path = os.fsencode(directory / name)
                library.integer(f"map {name}", library.lib.bpf_map__set_pin_path(pointer, path))

    def set_constant(self, section: str, value: bytes) -> None:
        """Give a read-only section its contents, before ``load``. It must be as long."""
        pointer = library.pointer(
            section, library.lib.bpf_object__find_map_by_name(self._object, section.encode())
        )
        result = library.lib.bpf_map__set_initial_value(pointer, value, len(value))
        library.integer(f"constant {section}", result)

    def load(self) -> None:
        """Verify and load. Raises HookError with the verifier's last words."""
        library.integer("BPF object: load", library.lib.bpf_object__load(self._object))

    def map(self, name: str) -> Map:
        """A map by name."""
        pointer = library.pointer(
            f"map {name}", library.lib.bpf_object__find_map_by_name(self._object, name.encode())
        )
        return Map(name, library.integer(name, library.lib.bpf_map__fd(pointer)))

    def close(self) -> None:
        """Unload what nothing else holds."""
        if self._object is not None:
            library.lib.bpf_object__close(self._object)
            self._object = None


def pinned_map(path: Path) -> Map:
    """The map that is pinned at a path; the caller closes its descriptor. Raises HookError."""
    return Map(path.name, _pinned(path))


def _pinned(path: Path) -> int:
    return library.integer(f"open {path}", library.lib.bpf_obj_get(os.fsencode(path)))


def _pin(fd: int, path: Path) -> None:
    library.integer(f"pin {path}", library.lib.bpf_obj_pin(fd, os.fsencode(path)))


def _numbered(number: int, pin: Path) -> int:
    found = library.lib.bpf_prog_get_fd_by_id(number)
    if found == -errno.EPERM:
        raise HookError(
            f"{pin}: this pin is missing, and without it only CAP_SYS_ADMIN can look at the program in "
            "force; start once with that, or lift enforcement and start anew: kmodgate detach"
        )
    return library.integer(f"program {number}", found)


def kernel_functions(names: Iterable[str]) -> frozenset[str]:
    """Those of the names that the running kernel's BTF has as functions."""
    btf = library.pointer("kernel BTF", library.lib.btf__load_vmlinux_btf())
    try:
        return frozenset(
            name
            for name in names
            if library.lib.btf__find_by_name_kind(btf, name.encode(), BTF_KIND_FUNC) > 0
        )
    finally:
        library.lib.btf__free(btf)


# --- what the kernel offers ---------------------------------------------------------------
#
# Each asks the kernel by loading a program or creating a map of two instructions or one element.
# Raises HookError where that is not allowed at all.


def has_helper(helper: int) -> bool:
    """Whether the kernel has a helper (BPF_FUNC_*) that a raw tracepoint program may call."""
    probe = library.lib.libbpf_probe_bpf_helper
    return bool(library.integer("helper probe", probe(_PROG_TYPE_RAW_TRACEPOINT, helper, None)))


def has_map_type(kind: int) -> bool:
    """Whether the kernel has a type of map (BPF_MAP_TYPE_*)."""
    return bool(library.integer("map probe", library.lib.libbpf_probe_bpf_map_type(kind, None)))


def has_program_type(kind: int) -> bool:
    """Whether the kernel has a type of program (BPF_PROG_TYPE_*)."""
    return bool(library.integer("program probe", library.lib.libbpf_probe_bpf_prog_type(kind, None)))
