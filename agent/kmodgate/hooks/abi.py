# SPDX-License-Identifier: Apache-2.0
"""The records of ``bpf/kmodgate.h``, mirrored for ctypes.

Twin: ``bpf/kmodgate.h``. ``tests/bpf/test_abi.py`` compares size, offset and value of all of
this with the type information (BTF) of the compiled object. The enums are in ``model.py``.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

from kmodgate.model import Api, Verdict

ABI = 3
PATH_LEN = 512
NAME_LEN = 56
COMM_LEN = 16
FSTYPE_LEN = 16
DIGEST_LEN = 32
PINS = 64
UNKNOWN = 0xFF
"""An ``origin`` of which a rung that only watches knows nothing. No program writes it."""

TABLE_COPIES = 2
REASON_SLOTS = 64
BY_SLOTS = 4
COUNTERS = len(Verdict) * REASON_SLOTS * len(Api) * BY_SLOTS
HISTOGRAM_BUCKETS = 24
HISTOGRAM_ROW = HISTOGRAM_BUCKETS + 1


class Stat(IntEnum):
    """Position of a plain count in the ``stats`` map. Twin: ``enum kmg_stat``."""

    ATTEMPTS_FINIT = 0
    ATTEMPTS_INIT = 1
    UNDECIDED = 2
    REFUSED_EARLY = 3
    LOADED_UNSEEN = 4
    EVENTS_LOST = 5
    QUESTIONS_LOST = 6
    QUESTIONS = 7
    STORAGE_FAILED = 8
    READ_FAILED = 9
    PATH_FAILED = 10
    TABLE_RACED = 11
    ABANDONED = 12
    PROBE_FIRST_HOOK = 13
    PROBE_SIGNATURE = 14
    PROBE_EXIT = 15
    REDECIDED = 16
    PROBE_BYTES = 17
    QUESTION_IDS = 18
    FORMER_MISSES = 19
    WAITS_REFUSED = 20


class Histogram(IntEnum):
    """Row of the ``histograms`` map. Twin: ``enum kmg_histogram``."""

    HOLD = 0
    DECISION = 1


class Pin(ctypes.Structure):
    """Twin: ``struct kmg_pin``."""

    _fields_ = (
        ("superblock", ctypes.c_uint64),
        ("device", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class Decision(ctypes.Structure):
    """Twin: ``struct kmg_decision``."""

    _fields_ = (
        ("generation", ctypes.c_uint32),
        ("verdict", ctypes.c_uint8),
        ("reason", ctypes.c_uint8),
        ("error", ctypes.c_uint16),
    )


class Control(ctypes.Structure):
    """Twin: ``struct kmg_control``."""

    _fields_ = (
        ("generation", ctypes.c_uint64),
        ("trust_generation", ctypes.c_uint64),
        ("heartbeat", ctypes.c_uint64),
        ("heartbeat_max_age", ctypes.c_uint64),
        ("hold", ctypes.c_uint64),
        ("max_size", ctypes.c_uint64),
        ("probe", ctypes.c_uint64),
        ("root_superblock", ctypes.c_uint64),
        ("root_device", ctypes.c_uint32),
        ("wait_asleep", ctypes.c_uint32),
        ("sig_enforce", ctypes.c_uint32),
        ("kernel_refuses", ctypes.c_uint32),
        ("every_load", ctypes.c_uint32),
        ("wait_limit", ctypes.c_uint32),
        ("seen", ctypes.c_uint64),
        ("trust_key", ctypes.c_uint64),
        ("programs", ctypes.c_uint64),
        ("instance", ctypes.c_uint32),
        ("handover", ctypes.c_uint32),
        ("quiet", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class Question(ctypes.Structure):
    """Twin: ``struct kmg_question``.

    Attributes:
        place: the file's path from process 1's root, where the asker does not wait for the answer.
    """

    place: str = ""

    _fields_ = (
        ("id", ctypes.c_uint64),
        ("start_time", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("tgid", ctypes.c_uint32),
        ("tid", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("fd", ctypes.c_int32),
        ("api", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class Answer(ctypes.Structure):
    """Twin: ``struct kmg_answer``."""

    _fields_ = (
        ("trust_generation", ctypes.c_uint64),
        ("verification", ctypes.c_uint32),
        ("contents", ctypes.c_uint32),
    )


class File(ctypes.Structure):
    """Twin: ``struct kmg_file``."""

    _fields_ = (
        ("inode", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("device", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class Event(ctypes.Structure):
    """Twin: ``struct kmg_event``."""

    _fields_ = (
        ("time", ctypes.c_uint64),
        ("duration", ctypes.c_uint64),
        ("hold", ctypes.c_uint64),
        ("decision_time", ctypes.c_uint64),
        ("question", ctypes.c_uint64),
        ("start_time", ctypes.c_uint64),
        ("cgroup", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("generation", ctypes.c_uint32),
        ("tgid", ctypes.c_uint32),
        ("tid", ctypes.c_uint32),
        ("parent", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("result", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("error", ctypes.c_uint16),
        ("path_length", ctypes.c_uint16),
        ("verdict", ctypes.c_uint8),
        ("reason", ctypes.c_uint8),
        ("api", ctypes.c_uint8),
        ("origin", ctypes.c_uint8),
        ("by", ctypes.c_uint8),
        ("verification", ctypes.c_uint8),
        ("has_digest", ctypes.c_uint8),
        ("loaded", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 4),
        ("digest", ctypes.c_uint8 * DIGEST_LEN),
        ("comm", ctypes.c_uint8 * COMM_LEN),
        ("fstype", ctypes.c_uint8 * FSTYPE_LEN),
        ("module", ctypes.c_uint8 * NAME_LEN),
        ("path", ctypes.c_uint8 * PATH_LEN),
    )


class Introduction(ctypes.Structure):
    """Twin: ``struct kmg_introduction``."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("superblock", ctypes.c_uint64),
        ("task", ctypes.c_uint64),
    )


def text(field: ctypes.Array[ctypes.c_uint8]) -> bytes:
    """The bytes of a fixed character array before its first NUL."""
    return bytes(field).partition(b"\0")[0]
