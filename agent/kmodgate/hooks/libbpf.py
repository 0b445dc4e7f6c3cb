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
from typing import Any, Final

from kmodgate.errors import HookError

BTF_KIND_FUNC: Final = 12  # include/uapi/linux/btf.h
_MESSAGE_BYTES: Final = 1 << 20  # a verifier log can be long, and its end is what matters
_MESSAGE_TAIL: Final = 1500
_NO_PREVIOUS: Final = None
_M_ARENA_MAX: Final = -8  # malloc.h
_PROG_TYPE_RAW_TRACEPOINT: Final = 17  # include/uapi/linux/bpf.h


class _TestRunOpts(ctypes.Structure):
    """``struct bpf_test_run_opts`` (bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _ProgInfo(ctypes.Structure):
    """``struct bpf_prog_info`` (include/uapi/linux/bpf.h), what stands before and in it."""

    _fields_ = (
        ("_before", ctypes.c_uint8 * 192),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("_after", ctypes.c_uint32 * 3),
    )


class _LinkInfo(ctypes.Structure):
    """``struct bpf_link_info`` (include/uapi/linux/bpf.h), what all kinds of links have."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("_after", ctypes.c_uint32),
    )


_Sample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Print = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def _open_library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise HookError(
            f"libbpf.so.1 cannot be loaded ({error}); install it: apt-get install libbpf1"
        ) from error
    pointer, integer, text, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
    u64, u32 = ctypes.c_uint64, ctypes.c_uint32
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "libbpf_set_print": (pointer, (_Print,)),
        "bpf_object__open_mem": (pointer, (pointer, size, pointer)),
        "bpf_object__load": (integer, (pointer,)),
        "bpf_object__close": (None, (pointer,)),
        "bpf_object__next_program": (pointer, (pointer, pointer)),
        "bpf_object__find_map_by_name": (pointer, (pointer, text)),
        "bpf_program__name": (text, (pointer,)),
        "bpf_program__section_name": (text, (pointer,)),
        "bpf_program__set_autoload": (integer, (pointer, ctypes.c_bool)),
        "bpf_program__fd": (integer, (pointer,)),
        "bpf_program__attach": (pointer, (pointer,)),
        "bpf_link__destroy": (integer, (pointer,)),
        "bpf_link__fd": (integer, (pointer,)),
        "bpf_obj_pin": (integer, (integer, text)),
        "bpf_obj_get": (integer, (text,)),
        "bpf_prog_get_fd_by_id": (integer, (u32,)),
        "bpf_map__fd": (integer, (pointer,)),
        "bpf_map__name": (text, (pointer,)),
        "bpf_map__set_pin_path": (integer, (pointer, text)),
        "bpf_map__set_initial_value": (integer, (pointer, pointer, size)),
        "bpf_object__next_map": (pointer, (pointer, pointer)),
        "bpf_map_get_next_key": (integer, (integer, pointer, pointer)),
        "bpf_map_update_elem": (integer, (integer, pointer, pointer, u64)),
        "bpf_map_delete_elem": (integer, (integer, pointer)),
        "bpf_map_lookup_elem": (integer, (integer, pointer, pointer)),
        "bpf_prog_test_run_opts": (integer, (integer, ctypes.POINTER(_TestRunOpts))),
        "bpf_obj_get_info_by_fd": (integer, (integer, pointer, ctypes.POINTER(u32))),
        "ring_buffer__new": (pointer, (integer, _Sample, pointer, pointer)),
        "ring_buffer__consume": (integer, (pointer,)),
        "ring_buffer__epoll_fd": (integer, (pointer,)),
        "ring_buffer__free": (None, (pointer,)),
        "libbpf_probe_bpf_helper": (integer, (integer, integer, pointer)),
        "libbpf_probe_bpf_map_type": (integer, (integer, pointer)),
        "libbpf_probe_bpf_prog_type": (integer, (integer, pointer)),
        "btf__load_vmlinux_btf": (pointer, ()),
        "btf__find_by_name_kind": (ctypes.c_int32, (pointer, text, u32)),
        "btf__free": (None, (pointer,)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class _Library:
    """libbpf, opened at first use; keeps its last messages for error texts."""

    def __init__(self) -> None:
        self._lib: ctypes.CDLL | None = None
        self._messages: list[str] = []
        self._printer = _Print(self._print)
        self._format = ctypes.CDLL(None).vsnprintf
        self._format.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)

    def _print(self, level: int, template: int, arguments: int) -> int:
        if level == 0:  # LIBBPF_WARN
            buffer = ctypes.create_string_buffer(_MESSAGE_BYTES)
            self._format(buffer, len(buffer), template, arguments)
            message = buffer.value.decode("utf-8", "replace").strip()
            self._messages = [*self._messages[-7:], message[-_MESSAGE_TAIL:]]
        return 0

    @property
    def lib(self) -> ctypes.CDLL:
        if self._lib is None:
            self._lib = _open_library()
            self._lib.libbpf_set_print(self._printer)
        return self._lib

    def fail(self, what: str, number: int) -> HookError:
        said, self._messages = "; ".join(self._messages), []
        name = errno.errorcode.get(number, str(number))
        return HookError(f"{what}: {os.strerror(number)} ({name})" + (f": {said}" if said else ""))

    def pointer(self, what: str, value: int | None) -> int:
        if not value:
            raise self.fail(what, ctypes.get_errno())
        return value

    def integer(self, what: str, value: int) -> int:
        if value < 0:
            raise self.fail(what, -value)
        return value


_library = _Library()


def _info(fd: int, into: ctypes.Structure, name: str) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(into))
    result = _library.lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(into), ctypes.byref(size))
    _library.integer(f"{name}: info", result)


def _misses(fd: int, name: str) -> int:
    info = _ProgInfo()
    _info(fd, info, f"program {name}")
    return int(info.recursion_misses)


class Map:
    """One BPF map of a loaded object, by its file descriptor."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    def update(self, key: bytes, value: bytes) -> None:
        """Store one element (``BPF_ANY``). Raises HookError, for instance when it is full."""
        _library.integer(f"map {self.name}: update", _library.lib.bpf_map_update_elem(self.fd, key, value, 0))

    def delete(self, key: bytes) -> None:
        """Remove one element; one that is not there is no error."""
        result = _library.lib.bpf_map_delete_elem(self.fd, key)
        if result != -errno.ENOENT:
            _library.integer(f"map {self.name}: delete", result)

    def lookup(self, key: bytes, size: int) -> bytes | None:
        """The value of one element, ``size`` bytes as the map has them; None when it is not there."""
        value = ctypes.create_string_buffer(size)
        result = _library.lib.bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        _library.integer(f"map {self.name}: look-up", result)
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
        while _library.lib.bpf_map_get_next_key(self.fd, at, key) == 0:
            at = key
            if _library.lib.bpf_map_lookup_elem(self.fd, key, value) == 0:
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
        self._callback = _Sample(self._sample)
        self._ring: int | None = _library.pointer(
            f"ring buffer {ring.name}",
            _library.lib.ring_buffer__new(ring.fd, self._callback, None, None),
        )

    def _sample(self, _context: int, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        # A negative number stops libbpf after this record, which counts as consumed.
        return 0 if len(self._records) < self._BATCH else -errno.EAGAIN

    def fileno(self) -> int:
        """A descriptor that polls readable while records wait."""
        return int(_library.lib.ring_buffer__epoll_fd(self._ring))

    def read(self) -> list[bytes]:
        """Up to 64 records that are ready, oldest first. Never blocks."""
        result = _library.lib.ring_buffer__consume(self._ring)
        if result != -errno.EAGAIN:
            _library.integer("ring buffer", result)
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        """Release the consumer."""
        if self._ring is not None:
            _library.lib.ring_buffer__free(self._ring)
            self._ring = None


class Program:
    """One program of an object."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self.name = _library.lib.bpf_program__name(pointer).decode()
        self.section = _library.lib.bpf_program__section_name(pointer).decode()

    def skip(self) -> None:
        """Leave this program out when the object is loaded."""
        _library.integer(self.name, _library.lib.bpf_program__set_autoload(self._pointer, False))

    @property
    def fd(self) -> int:
        """File descriptor of the loaded program."""
        return _library.integer(self.name, _library.lib.bpf_program__fd(self._pointer))

    def attach(self) -> Link:
        """Attach where the section name says."""
        link = _library.lib.bpf_program__attach(self._pointer)
        return Link(_library.pointer(f"program {self.name}: attach to {self.section}", link), self)

    def test_run(self, context: ctypes.Structure | None = None) -> int:
        """Run a ``syscall`` program once in this thread's context; its return value.

        The context is read and written in place. Raises HookError when the kernel refuses.
        """
        opts = _TestRunOpts(sz=ctypes.sizeof(_TestRunOpts))
        if context is not None:
            opts.ctx_in = ctypes.addressof(context)
            opts.ctx_size_in = ctypes.sizeof(context)
        result = _library.lib.bpf_prog_test_run_opts(self.fd, ctypes.byref(opts))
        _library.integer(f"program {self.name}: run", result)
        return ctypes.c_int32(opts.retval).value

    def recursion_misses(self) -> int:
        """How often the kernel skipped this program (``bpf_prog_info``, since 5.12)."""
        return _misses(self.fd, self.name)


class Link:
    """An attachment; it ends with ``close`` or with the process."""

    def __init__(self, pointer: int, program: Program) -> None:
        self._pointer: int | None = pointer
        self._program = program

    def recursion_misses(self) -> int:
        """How often the kernel skipped the program."""
        return self._program.recursion_misses()

    def pin(self, path: Path) -> None:
        """Keep the attachment beyond this process, under a path on a BPF file system.

        Not by ``bpf_link__pin``: it refuses to pin again what somebody has unpinned.
        """
        handle = _library.integer(f"pin {path}", _library.lib.bpf_link__fd(self._pointer))
        _library.integer(f"pin {path}", _library.lib.bpf_obj_pin(handle, os.fsencode(path)))

    def close(self) -> None:
        """Detach, unless it is pinned."""
        if self._pointer is not None:
            _library.lib.bpf_link__destroy(self._pointer)
            self._pointer = None


class PinnedLink:
    """An attachment that an earlier process has pinned.

    Attributes:
        program_fd: descriptor of the program behind it, closed with it.
    """

    def __init__(self, path: Path) -> None:
        """Open it. Raises HookError."""
        self._name = path.name
        self._fd = _library.integer(f"open {path}", _library.lib.bpf_obj_get(os.fsencode(path)))
        link = _LinkInfo()
        _info(self._fd, link, self._name)
        self.program_fd: Final = _library.integer(
            self._name, _library.lib.bpf_prog_get_fd_by_id(link.prog_id)
        )

    def pin(self, path: Path) -> None:
        """Pin it once more."""
        _library.integer(f"pin {path}", _library.lib.bpf_obj_pin(self._fd, os.fsencode(path)))

    def recursion_misses(self) -> int:
        """How often the kernel skipped the program behind it."""
        return _misses(self.program_fd, self._name)

    def close(self) -> None:
        """Let go of it; it stays while it is pinned."""
        if self._fd >= 0:
            os.close(self.program_fd)
            os.close(self._fd)
            self._fd = -1


class Object:
    """A compiled BPF object: opened, loaded, closed.

    Args:
        data: the ELF file.
        wanted: keeps a program when it returns True for its section name; the others are
            not loaded. For programs whose target this kernel lacks.
    """

    def __init__(self, data: bytes, wanted: Callable[[str], bool] = lambda _section: True) -> None:
        self._data = data  # libbpf keeps pointers into it
        self._object: int | None = _library.pointer(
            "BPF object", _library.lib.bpf_object__open_mem(data, len(data), None)
        )
        self.programs: dict[str, Program] = {}
        pointer = _NO_PREVIOUS
        while pointer := _library.lib.bpf_object__next_program(self._object, pointer):
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
        while pointer := _library.lib.bpf_object__next_map(self._object, pointer):
            name = _library.lib.bpf_map__name(pointer).decode()
            if "." not in name:
                path = os.fsencode(directory / name)
                _library.integer(f"map {name}", _library.lib.bpf_map__set_pin_path(pointer, path))

    def set_constant(self, section: str, value: bytes) -> None:
        """Give a read-only section its contents, before ``load``. It must be as long."""
        pointer = _library.pointer(
            section, _library.lib.bpf_object__find_map_by_name(self._object, section.encode())
        )
        result = _library.lib.bpf_map__set_initial_value(pointer, value, len(value))
        _library.integer(f"constant {section}", result)

    def load(self) -> None:
        """Verify and load. Raises HookError with the verifier's last words."""
        _library.integer("BPF object: load", _library.lib.bpf_object__load(self._object))

    def map(self, name: str) -> Map:
        """A map by name."""
        pointer = _library.pointer(
            f"map {name}", _library.lib.bpf_object__find_map_by_name(self._object, name.encode())
        )
        return Map(name, _library.integer(name, _library.lib.bpf_map__fd(pointer)))

    def close(self) -> None:
        """Unload what nothing else holds."""
        if self._object is not None:
            _library.lib.bpf_object__close(self._object)
            self._object = None


def pinned_map(path: Path) -> Map:
    """The map that is pinned at a path; the caller closes its descriptor. Raises HookError."""
    return Map(path.name, _library.integer(f"open {path}", _library.lib.bpf_obj_get(os.fsencode(path))))


def give_memory_back() -> None:
    """Return to the system what parsing type information took from it (glibc only)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def few_arenas() -> None:
    """Let all threads share two malloc arenas; each would else keep megabytes (glibc only)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)


def kernel_functions(names: Iterable[str]) -> frozenset[str]:
    """Those of the names that the running kernel's BTF has as functions."""
    btf = _library.pointer("kernel BTF", _library.lib.btf__load_vmlinux_btf())
    try:
        return frozenset(
            name
            for name in names
            if _library.lib.btf__find_by_name_kind(btf, name.encode(), BTF_KIND_FUNC) > 0
        )
    finally:
        _library.lib.btf__free(btf)


# --- what the kernel offers ---------------------------------------------------------------
#
# Each asks the kernel by loading a program or creating a map of two instructions or one element.
# Raises HookError where that is not allowed at all.


def has_helper(helper: int) -> bool:
    """Whether the kernel has a helper (BPF_FUNC_*) that a raw tracepoint program may call."""
    probe = _library.lib.libbpf_probe_bpf_helper
    return bool(_library.integer("helper probe", probe(_PROG_TYPE_RAW_TRACEPOINT, helper, None)))


def has_map_type(kind: int) -> bool:
    """Whether the kernel has a type of map (BPF_MAP_TYPE_*)."""
    return bool(_library.integer("map probe", _library.lib.libbpf_probe_bpf_map_type(kind, None)))


def has_program_type(kind: int) -> bool:
    """Whether the kernel has a type of program (BPF_PROG_TYPE_*)."""
    return bool(_library.integer("program probe", _library.lib.libbpf_probe_bpf_prog_type(kind, None)))
