# SPDX-License-Identifier: Apache-2.0
"""What is loaded now, the part from before the agent included, and what is known of it.

The list is looked at once a second and after each load: one read, and no more while it is
the same. What the kernel vouches for is known at once. For the rest the files are verified
by ``kmodgate.scan.inventory``, in a process of its own, idle in priority and bounded in
memory and time; a thread waits for it. Nothing here holds up a load or readiness, and
nothing here is enforcement: what is loaded stays loaded.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from .errors import NodeError
from .model import Signer
from .node import NodePaths, read_modules
from .node.paths import read_text
from .settings import Settings
from .telemetry.inventory import InventoryOutcome, LoadedModuleReport
from .telemetry.metrics import LoadedSignature

log = logging.getLogger(__name__)

# Out of the way before anything is imported: imports are a good part of what it does.
_SCRIPT: Final = """\
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
from kmodgate.scan.inventory import main
sys.exit(main())
"""
_COMMAND: Final = (sys.executable, "-P", "-c", _SCRIPT)
_TIMEOUT: Final = 900.0
# Between two runs of the process, however often modules come and go; longer after each failure.
_REST: Final = 30.0
_LONGEST_REST: Final = 3600.0
# What a long list tells is in the metric; the log names the first ones.
_TOLD: Final = 200

Counts = Mapping[LoadedSignature, int]


@dataclass(frozen=True, slots=True)
class Question:
    """What the modules are judged by.

    Attributes:
        request: for ``kmodgate.scan.inventory``.
        trust_digest: of the certificates and revocations that it names.
        vouches: the absence of taint E means that the kernel trusted a module, and that
            counts: CONFIG_MODULE_SIG, ``kernelKeyrings``, and nothing revoked.
    """

    request: bytes
    trust_digest: bytes
    vouches: bool

    @classmethod
    def of(cls, root: Path, settings: Settings, *, signatures_built: bool) -> Self:
        """From the settings in force.

        Args:
            root: the node's root directory.
            settings: the config, with its certificates.
            signatures_built: CONFIG_MODULE_SIG of the running kernel.
        """
        config = settings.config
        request = json.dumps(
            {
                "root": os.fspath(root),
                "certificates": [os.fspath(path) for path in config.trust.certificates],
                "revoked": [os.fspath(path) for path in config.trust.revoked],
                "revoked_certificates": [os.fspath(path) for path in config.trust.revoked_certificates],
                "kernel_keyrings": config.trust.kernel_keyrings,
                "require_validity": config.trust.require_validity,
                "max_size": config.max_module_size,
                "pinned_root_exempt": config.pinned_root_exempt,
            }
        ).encode()
        vouches = signatures_built and config.trust.kernel_keyrings and not settings.trust.revocations
        return cls(request, settings.trust_digest, vouches)


class EndedError(NodeError):
    """The process was ended by ``Process.kill``: nobody wants its answer any more."""


class Process:
    """Runs the process; one at a time."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._ended = False

    def __call__(self, request: bytes) -> bytes:
        """Ask it. Raises NodeError with its last words."""
        try:
            with subprocess.Popen(
                _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as running:
                self._running = running
                try:
                    out, err = running.communicate(request, timeout=_TIMEOUT)
                finally:
                    running.kill()
                    self._running = None
        except (OSError, subprocess.SubprocessError) as error:
            raise NodeError(f"the files of loaded modules were not verified: {error}") from error
        if running.returncode and self._ended:
            raise EndedError("the files of loaded modules were not verified: the agent ends")
        if running.returncode:
            words = err[-500:].decode("utf-8", "replace").strip() or f"status {running.returncode}"
            raise NodeError(f"the files of loaded modules were not verified: {words}")
        return out

    def kill(self) -> None:
        """End it, if it runs, for good."""
        self._ended = True
        running = self._running
        if running is not None:
            running.kill()


class Inventory:
    """The modules that are loaded, each with what is known of it.

    Args:
        paths: the running kernel's file systems.
        publish: given the number of modules by signature whenever it may have changed.
        tell: given each module, once, that ENFORCE would refuse or that nothing is known of.
        ask: answers a request; blocks (``Process``).
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        paths: NodePaths,
        *,
        publish: Callable[[Counts], None],
        tell: Callable[[LoadedModuleReport], None],
        ask: Callable[[bytes], bytes],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._publish = publish
        self._tell = tell
        self._ask = ask
        self._now = now
        self._lock = threading.Lock()
        self._text: str | None = None
        self._question: Question | None = None
        # By line of /proc/modules without what moves: name, size, address.
        self._modules: dict[tuple[str, ...], LoadedModuleReport] = {}
        self._told: set[tuple[str, ...]] = set()
        self._pending: set[tuple[str, ...]] = set()
        self._next = 0.0
        self._rest = _REST
        self._first = True
        self._thread: threading.Thread | None = None

    def judge_by(self, question: Question) -> None:
        """Judge by this from now on; what was found before is found again."""
        with self._lock:
            if question == self._question:
                return
            self._question = question
        self.redo()

    def redo(self) -> None:
        """Find everything again: other certificates count, or a validity began or ended."""
        with self._lock:
            if self._question is not None:
                self._question = replace(self._question)  # no answer on its way is for this one
            self._modules = {}
            self._pending = set()
            self._told = set()
            self._text = None
            self._next = 0.0

    def look(self) -> None:
        """See what has come and gone. Cheap; call it about once a second, on one thread.

        Raises:
            NodeError: ``/proc/modules`` makes no sense.
        """
        text = read_text(self._paths.proc / "modules")
        if text is not None and text != self._text:
            self._take(text)
            self._text = text
        self._send()

    def wait(self, timeout: float) -> None:
        """Until no process runs, or for so many seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _take(self, text: str) -> None:
        keys = {_key(line) for line in text.splitlines()}
        with self._lock:
            question = self._question
            if question is None:
                return
            new = keys - self._modules.keys()
            for key in self._modules.keys() - keys:
                del self._modules[key]
            self._told &= keys
            self._pending &= keys
        if new:
            names = {key[0] for key in new}
            fresh = {module.name: module for module in read_modules(self._paths) or ()}
            found = {
                key: _at_first(key[0], fresh[key[0]].taints, vouches=question.vouches)
                for key in new
                if key[0] in names & fresh.keys()
            }
            with self._lock:
                self._modules |= found
                self._pending |= {
                    key for key, module in found.items() if module.outcome is InventoryOutcome.UNKNOWN
                }
        self._count()

    def _count(self) -> None:
        with self._lock:
            counts = Counter(module.signature for module in self._modules.values())
        self._publish(counts)

    def _send(self) -> None:
        """Have the files of what is pending verified, unless somebody is at it or was just now."""
        with self._lock:
            question, pending = self._question, bool(self._pending)
            busy = self._thread is not None and self._thread.is_alive()
        if question is None or busy or not (pending or self._first) or self._now() < self._next:
            return
        self._next = self._now() + self._rest
        self._thread = threading.Thread(target=self._verify, args=(question,), name="inventory", daemon=True)
        self._thread.start()

    def _verify(self, question: Question) -> None:
        try:
            answer = [_decode(item) for item in json.loads(self._ask(question.request))["modules"]]
        except EndedError:
            return
        except (NodeError, ValueError, KeyError, TypeError) as error:
            log.error("%s", error)
            self._rest = min(2 * self._rest, _LONGEST_REST)
            self._next = self._now() + self._rest
            return
        self._rest = _REST
        by_name = {module.name: module for module in answer}
        told: list[LoadedModuleReport] = []
        with self._lock:
            if self._question is not question:
                return  # other certificates count now: all of it is found again
            for key, module in self._modules.items():
                found = by_name.get(key[0])
                if found is None or found.taints != module.taints:
                    continue  # it came, or went and came back, meanwhile
                self._modules[key] = found
                self._pending.discard(key)
                if found.outcome is not InventoryOutcome.ACCEPTED and key not in self._told:
                    self._told.add(key)
                    told.append(found)
            modules = list(self._modules.values())
            first, self._first = self._first, False
        self._count()
        if first or told:
            log.log(logging.WARNING if told else logging.INFO, "%s", summary(modules))
        for module in told[:_TOLD]:
            self._tell(module)
        if len(told) > _TOLD:
            log.warning("%d more such modules are not in the event log", len(told) - _TOLD)


def _key(line: str) -> tuple[str, ...]:
    """Name, size and address: what tells one load of a module from the next."""
    parts = line.split(" ")
    return (parts[0], *parts[1:2], *parts[5:6])


def _at_first(name: str, taints: str, *, vouches: bool) -> LoadedModuleReport:
    """What can be said of a module without its file."""
    if "E" not in taints and vouches:
        return LoadedModuleReport(
            name,
            taints,
            LoadedSignature.TRUSTED_SIGNATURE,
            InventoryOutcome.ACCEPTED,
            trusted_at_load=True,
        )
    return LoadedModuleReport(name, taints, LoadedSignature.NOT_VERIFIED, InventoryOutcome.UNKNOWN)


def _decode(item: Mapping[str, Any]) -> LoadedModuleReport:
    signer = item["signer"]
    report = LoadedModuleReport(**{**item, "signer": None})
    return replace(
        report,
        signature=LoadedSignature(item["signature"]),
        outcome=InventoryOutcome(item["outcome"]),
        signer=None if signer is None else Signer(**signer),
    )


def summary(modules: Sequence[LoadedModuleReport]) -> str:
    """The inventory in one line."""
    counts = Counter(module.signature for module in modules)
    outcomes = Counter(module.outcome for module in modules)
    by_kernel = sum(module.trusted_at_load is True for module in modules)
    same = sum(module.same_source is True for module in modules)
    found = ", ".join(
        f"{counts[signature]} {signature}" for signature in LoadedSignature if counts[signature]
    )
    return (
        f"{len(modules)} modules are loaded: {found or 'none'}; the kernel vouches for {by_kernel}, the file "
        f"on disk has the srcversion of {same}; ENFORCE_SIGNED_MODULES would have refused "
        f"{outcomes[InventoryOutcome.REFUSED]}; of {outcomes[InventoryOutcome.UNKNOWN]} it cannot be known"
    )
