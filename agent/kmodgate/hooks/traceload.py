# SPDX-License-Identifier: Apache-2.0
"""A load as trace events tell it, and the record that every rung's loads are told in."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from kmodgate.model import Api

from . import abi
from .afterwards import Judgement, SeenLoad
from .lateanswers import Found
from .tracecaller import CalledFile, Caller


@dataclass(slots=True)
class Followed:
    """A caller that was seen while its call lasted, and the question about its bytes."""

    caller: Caller
    file: CalledFile | None
    question: int


@dataclass(slots=True)
class Load:
    """One call between its beginning and its verdict."""

    api: Api
    tid: int
    begin: int
    flags: int = 0
    length: int = 0
    followed: Followed | None = None
    end: int = 0
    result: int = 0
    got_in: bool = False
    taints: int | None = None
    module: bytes = b""


def event_of(load: Load, found: Found, seen: SeenLoad, judgement: Judgement, generation: int) -> abi.Event:
    """The record that every rung's loads are told in; what is not known is said with ``UNKNOWN`` and 0."""
    decision = judgement.decision
    event = abi.Event(
        time=load.begin,
        duration=load.end - load.begin,
        size=load.length,
        generation=generation & 0xFFFFFFFF,
        tid=load.tid,
        result=load.result,
        flags=load.flags,
        error=decision.errno,
        verdict=decision.verdict,
        reason=decision.reason,
        api=load.api,
        origin=abi.UNKNOWN if seen.origin is None else seen.origin,
        by=judgement.by,
        verification=judgement.verification,
        loaded=load.got_in,
    )
    _put(event.module, load.module)
    if found.verification is not None:
        event.has_digest = 1
        _put(event.digest, found.digest)
    if load.followed is not None:
        caller, file = load.followed.caller, load.followed.file
        event.tgid, event.parent, event.uid = caller.tgid, caller.parent, caller.uid
        event.start_time, event.question = caller.start_time, load.followed.question
        _put(event.comm, caller.comm)
        if file is not None and seen.origin is not None:
            _put_file(event, file, found)
    return event


def _put_file(event: abi.Event, file: CalledFile, found: Found) -> None:
    if len(file.path) < abi.PATH_LEN:
        event.path_length = len(file.path)
        _put(event.path, file.path)
    event.inode, event.size = found.inode, found.size
    if file.mount is not None:
        event.device = (file.mount.major << 20 | file.mount.minor) & 0xFFFFFFFF
        _put(event.fstype, file.mount.fs_type.encode("utf-8", "backslashreplace"))
    elif found.device is not None:
        event.device = (found.device[0] << 20 | found.device[1]) & 0xFFFFFFFF


def _put(target: ctypes.Array[ctypes.c_uint8], data: bytes) -> None:
    part = data[: ctypes.sizeof(target)]
    ctypes.memmove(target, part, len(part))
