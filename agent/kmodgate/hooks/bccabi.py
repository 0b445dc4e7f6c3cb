# SPDX-License-Identifier: Apache-2.0
"""The records that only the BCC programs have. Twin: ``bpf/bcc/verdicts.h``."""

from __future__ import annotations

import ctypes

from . import abi


class Version(ctypes.Structure):
    """Twin: ``struct kmg_version``: a file as it was at one moment."""

    _fields_ = (
        ("inode", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("changed", ctypes.c_uint64),
        ("device", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class Question(ctypes.Structure):
    """Twin: ``struct kmg_bcc_question``: a question with the way to the file."""

    _fields_ = (
        ("question", abi.Question),
        ("path_length", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("path", ctypes.c_uint8 * abi.PATH_LEN),
    )
