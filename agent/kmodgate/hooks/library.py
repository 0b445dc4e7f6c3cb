# SPDX-License-Identifier: Apache-2.0
"""libbpf itself: opened at first use, its functions' types, its errors, and the kernel's info records.

What is made of it is in ``libbpf``.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Final

from kmodgate.errors import HookError

_MESSAGE_BYTES: Final = 1 << 20  # a verifier log can be long, and its end is what matters
_MESSAGE_TAIL: Final = 1500


class TestRunOpts(ctypes.Structure):
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


class ProgInfo(ctypes.Structure):
    """``struct bpf_prog_info`` (include/uapi/linux/bpf.h), what stands before and in it."""

    _fields_ = (
        ("_before", ctypes.c_uint8 * 192),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("_after", ctypes.c_uint32 * 3),
    )


class LinkInfo(ctypes.Structure):
    """``struct bpf_link_info`` (include/uapi/linux/bpf.h), what all kinds of links have."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("_after", ctypes.c_uint32),
    )


Sample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
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
        "bpf_prog_test_run_opts": (integer, (integer, ctypes.POINTER(TestRunOpts))),
        "bpf_obj_get_info_by_fd": (integer, (integer, pointer, ctypes.POINTER(u32))),
        "ring_buffer__new": (pointer, (integer, Sample, pointer, pointer)),
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


class Library:
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
        """The library, with its functions' types set. Raises HookError."""
        if self._lib is None:
            self._lib = _open_library()
            self._lib.libbpf_set_print(self._printer)
        return self._lib

    def fail(self, what: str, number: int) -> HookError:
        """The error for an errno, with what libbpf said last."""
        said, self._messages = "; ".join(self._messages), []
        name = errno.errorcode.get(number, str(number))
        return HookError(f"{what}: {os.strerror(number)} ({name})" + (f": {said}" if said else ""))

    def pointer(self, what: str, value: int | None) -> int:
        """A pointer that libbpf returned. Raises HookError for NULL."""
        if not value:
            raise self.fail(what, ctypes.get_errno())
        return value

    def integer(self, what: str, value: int) -> int:
        """A number that libbpf returned. Raises HookError for a negative one."""
        if value < 0:
            raise self.fail(what, -value)
        return value


library = Library()


def info(fd: int, into: ctypes.Structure, name: str) -> None:
    """Fill a ``struct bpf_*_info`` of the object behind a descriptor. Raises HookError."""
    size = ctypes.c_uint32(ctypes.sizeof(into))
    result = library.lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(into), ctypes.byref(size))
    library.integer(f"{name}: info", result)


def misses(fd: int, name: str) -> int:
    """``recursion_misses`` of the program behind a descriptor. Raises HookError."""
    found = ProgInfo()
    info(fd, found, f"program {name}")
    return int(found.recursion_misses)
