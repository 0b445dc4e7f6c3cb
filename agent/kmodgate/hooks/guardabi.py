# SPDX-License-Identifier: Apache-2.0
"""The records of ``bpf/guard.h``, mirrored for ctypes.

Twin: ``bpf/guard.h``. ``tests/bpf/test_guard_abi.py`` compares the two.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

COMM_LEN = 16
DIGEST_LEN = 32
OBJECTS = 1024


class Switch(IntEnum):
    """What the guard denies. Twin: ``enum kmg_switch``."""

    FTRACE = 0
    UNMOUNT = 1
    PINS = 2
    OBJECTS = 3
    PTRACE = 4


class ObjectKind(IntEnum):
    """What a protected number is the number of. Twin: ``enum kmg_object``."""

    MAP = 0
    PROGRAM = 1
    LINK = 2
    REGISTER = 3


class Control(ctypes.Structure):
    """Twin: ``struct kmg_guard_control``."""

    _fields_ = (
        ("used", ctypes.c_uint8 * DIGEST_LEN),
        ("leader", ctypes.c_uint64),
        ("start_time", ctypes.c_uint64),
        ("superblock", ctypes.c_uint64),
        ("mount", ctypes.c_uint64),
        ("directory", ctypes.c_uint64),
        ("lifted_until", ctypes.c_uint64),
        ("device", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class Denied(ctypes.Structure):
    """Twin: ``struct kmg_guard_denied``."""

    _fields_ = (
        ("count", ctypes.c_uint64),
        ("tgid", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("comm", ctypes.c_uint8 * COMM_LEN),
    )


class Candidate(ctypes.Structure):
    """Twin: ``struct kmg_guard_candidate``."""

    _fields_ = (("fd", ctypes.c_uint32), ("padding", ctypes.c_uint32))
