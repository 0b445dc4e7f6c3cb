# SPDX-License-Identifier: Apache-2.0
"""``hardened: true``: the guard's life inside the agent, and what is told of it.

The programs are in ``bpf/guard.bpf.c``, their loading in ``hooks/guard.py``. Whether the node is
hardened is settled at the start of the agent: an edit of a file alone must lift nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .errors import HookError
from .hooks.guard import Guard
from .hooks.guardabi import Switch
from .node import NodeFacts, NodePaths
from .telemetry.collector import AgentMetrics
from .telemetry.metrics import GuardedSwitch
from .unlock import SOCKET, Answer, Request, TokenGate, UnlockSocket

log = logging.getLogger(__name__)

PINS: Final = Path("/sys/fs/bpf/kmodgate")

_SWITCHES: Final = {
    Switch.FTRACE: GuardedSwitch.FTRACE,
    Switch.UNMOUNT: GuardedSwitch.BPFFS,
    Switch.PINS: GuardedSwitch.PINS,
    Switch.OBJECTS: GuardedSwitch.BPF,
    Switch.PTRACE: GuardedSwitch.PTRACE,
}


class Hardening:
    """The guard of one agent.

    Args:
        metrics: is told what was denied, and whether the node is hardened.
        directory: where kmodgate's pins are.
        paths: where the node's file systems are mounted.
        unlock: the socket for ``kmodgate unlock``.
    """

    def __init__(
        self,
        metrics: AgentMetrics,
        *,
        directory: Path = PINS,
        paths: NodePaths | None = None,
        unlock: Path = SOCKET,
    ) -> None:
        self._metrics = metrics
        self._guard = Guard(directory, paths)
        self._unlock_path = unlock
        self._socket: UnlockSocket | None = None
        self._denied: dict[Switch, int] = {}
        self._own: dict[Switch, int] = {}
        self._was_lifted = False
        self._attached = False

    def register(self) -> None:
        """Before anything that an earlier agent's guard protects is touched. Raises HookError."""
        if self._guard.register_with_former():
            log.info("registered with the guard that an earlier agent left")

    def start(self, programs: Iterable[int], facts: NodeFacts, token: bytes | None) -> None:
        """Attach the guard and see that it denies.

        Args:
            programs: descriptors of the programs to protect.
            facts: of this node.
            token: SHA-256 of the one-time token; None for none.

        Raises:
            HookError: this node cannot be hardened.
        """
        if "bpf" not in (facts.lsms or ()):
            raise HookError(
                "hardened: BPF programs are no security module here; put bpf into lsm= on the kernel "
                "command line"
            )
        start = time.perf_counter()
        self._guard.attach(programs)
        self._attached = True
        let_in = self._guard.denies_others()
        if let_in is not None:
            raise HookError(f"hardened: the guard is attached, but let another process do this: {let_in}")
        self._own = {switch: denial.count for switch, denial in self._guard.denied().items()}
        self._denied = dict(self._own)
        self._gate = TokenGate(token, self._guard.used_token)
        self._socket = UnlockSocket(self._judge, self._unlock_path)
        self._metrics.attach_guard(self.counts)
        self._metrics.set_hardened(hardened=True)
        log.info(
            "hardened in %.0f ms: the off switches are open to this agent alone%s",
            (time.perf_counter() - start) * 1e3,
            "" if token else "; no hardenedToken is configured, so nothing lifts this while it runs",
        )

    @property
    def sources(self) -> tuple[UnlockSocket, ...]:
        """What the agent's loop waits for; ``receive`` is to be called then."""
        return () if self._socket is None else (self._socket,)

    def pin_missing(self) -> list[str]:
        """Pin anew what somebody has unpinned; the names."""
        return self._guard.pin_missing() if self._attached else []

    def look(self) -> None:
        """Tell what was denied since the last look."""
        if not self._attached:
            return
        for switch, denial in self._guard.denied().items():
            new = denial.count - self._denied[switch]
            if new > 0:
                log.critical(
                    "denied: %s, %d time(s); last by process %d (%r), user %d",
                    _MEANING[switch],
                    new,
                    denial.tgid,
                    denial.comm,
                    denial.uid,
                )
            self._denied[switch] = denial.count
        lifted = self._guard.lifted
        if self._was_lifted and not lifted:
            log.warning("the guard denies again")
        self._was_lifted = lifted
        self._metrics.set_hardened(hardened=not lifted)

    def counts(self) -> dict[GuardedSwitch, int]:
        """What others were denied since this agent started, by what they tried."""
        return {
            _SWITCHES[switch]: denial.count - self._own[switch]
            for switch, denial in self._guard.denied().items()
        }

    def _judge(self, request: Request) -> Answer:
        answer = self._gate.judge(request.token, time.monotonic())
        if answer is Answer.LIFTED:
            self._guard.burn(self._gate.used)
            self._guard.lift(request.seconds)
            self._was_lifted = True
            self._metrics.set_hardened(hardened=False)
            log.critical(
                "the one-time token was used: the guard denies nothing for %d s; put the hash of a new "
                "token into hardenedToken and restart the agent",
                request.seconds,
            )
        else:
            log.critical("an attempt to lift the guard was refused: %s", answer)
        return answer

    def stop(self, *, keep: bool) -> None:
        """End with the agent; ``keep`` leaves the guard in force."""
        self._metrics.attach_guard(None)
        self._metrics.set_hardened(hardened=False)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._attached and not keep:
            self._guard.remove()
        self._attached = False
        self._guard.close()


_MEANING: Final = {
    Switch.FTRACE: "a write to kernel.ftrace_enabled",
    Switch.UNMOUNT: "to unmount, move or mount over the BPF file system with the pins",
    Switch.PINS: "to remove or add a pin",
    Switch.OBJECTS: "to open a map, program or link of kmodgate's",
    Switch.PTRACE: "to attach to the agent or to open its memory",
}
