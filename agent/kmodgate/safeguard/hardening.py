# SPDX-License-Identifier: Apache-2.0
"""The off switches in the agent's life: the watchdog, and with ``hardened: true`` the guard.

The programs are in ``bpf/guard.bpf.c``, their loading in ``hooks/guard.py``. Whether the node is
hardened is settled at the start of the agent: an edit of a file alone must lift nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from kmodgate.config import NodeConfig
from kmodgate.errors import HookError
from kmodgate.hooks.guard import Guard
from kmodgate.hooks.guardabi import Switch
from kmodgate.node import NodeFacts, NodePaths
from kmodgate.telemetry.collector import AgentMetrics
from kmodgate.telemetry.metrics import GuardedSwitch

from .unlock import SOCKET, Answer, Request, TokenGate, UnlockSocket
from .watchdog import Watchdog

log = logging.getLogger(__name__)

PINS: Final = Path("/sys/fs/bpf/kmodgate")

_SWITCHES: Final = {
    Switch.FTRACE: GuardedSwitch.FTRACE,
    Switch.UNMOUNT: GuardedSwitch.BPFFS,
    Switch.PINS: GuardedSwitch.PINS,
    Switch.OBJECTS: GuardedSwitch.BPF,
    Switch.PTRACE: GuardedSwitch.PTRACE,
}


class Protected(Protocol):
    """Whose programs and attachments the guard protects: a rung's backend."""

    def program_fds(self) -> Iterable[int]:
        """Descriptors of its programs."""

    def link_fds(self) -> Iterable[int]:
        """Descriptors of their attachments."""


class Hardening:
    """Watchdog and guard of one agent.

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
        self._directory = directory
        self._paths = paths
        self._guard = Guard(directory, paths)
        self._unlock_path = unlock
        self._socket: UnlockSocket | None = None
        self._denied: dict[Switch, int] = {}
        self._own: dict[Switch, int] = {}
        self._was_lifted = False
        self._former = False
        self._attached = False
        self._running = False

    def register(self) -> None:
        """Before anything that an earlier agent's guard protects is touched. Raises HookError."""
        self._former = self._guard.register_with_former()
        if self._former:
            log.info("registered with the guard that an earlier agent left")

    def start(
        self,
        config: NodeConfig,
        facts: NodeFacts,
        programs: Protected,
        repin: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        """Begin to watch, and harden the node if the config says so.

        Args:
            config: what it says of hardening holds until the agent ends.
            facts: of this node.
            programs: what is to be protected.
            repin: pins anew what is missing of the programs' own pins, and names it; None
                when they have none.

        Raises:
            HookError: this node cannot be hardened.
        """
        self._repin = repin
        self._config = config
        if config.hardened:
            if "bpf" not in (facts.lsms or ()):
                raise HookError(
                    "hardened: BPF programs are no security module here; put bpf into lsm= on the kernel "
                    "command line"
                )
            self._harden(programs, config.hardened_token)
        elif self._former:
            self._guard.remove_former()
            log.warning("an earlier agent was hardened and this one is not: the guard is gone")
        self._watchdog = Watchdog(
            self._metrics.count_off_switch,
            pins=self._directory if self._attached or repin is not None else None,
            repin=self._pin_missing,
            paths=self._paths,
        )

    def _harden(self, programs: Protected, token: bytes | None) -> None:
        start = time.perf_counter()
        self._guard.attach(programs.program_fds(), programs.link_fds())
        try:
            self._try_it()
            self._own = {switch: denial.count for switch, denial in self._guard.denied().items()}
            self._denied = dict(self._own)
            self._gate = TokenGate(token, self._guard.used_token)
            self._socket = UnlockSocket(self._judge, self._unlock_path)
        except HookError:
            self._guard.remove()
            raise
        self._attached = True
        self._metrics.attach_guard(self.counts)
        self._metrics.set_hardened(hardened=True)
        log.info(
            "hardened in %.0f ms: the off switches are open to this agent alone%s",
            (time.perf_counter() - start) * 1e3,
            "" if token else "; no hardenedToken is configured, so nothing lifts this while it runs",
        )

    def _try_it(self) -> None:
        """Hardening is claimed because it was just seen to work."""
        let_in = self._guard.denies_others()
        if let_in is not None:
            raise HookError(f"hardened: the guard is attached, but another process could do this: {let_in}")

    def reconfigured(self, config: NodeConfig) -> None:
        """A new config is in force; hardening stays as it was at the start."""
        ours = (self._config.hardened, self._config.hardened_token)
        if (config.hardened, config.hardened_token) != ours:
            log.warning("hardened or hardenedToken changed: it takes effect at the next start")

    @property
    def sources(self) -> tuple[UnlockSocket, ...]:
        """What the agent's loop waits for; ``receive`` is to be called then."""
        return () if self._socket is None else (self._socket,)

    def _pin_missing(self) -> list[str]:
        missing = [] if self._repin is None else [*self._repin()]
        return missing + (self._guard.pin_missing() if self._attached else [])

    def look(self, *, enforce: bool) -> None:
        """Look at the off switches, and tell what was denied since the last look. Once a second.

        Args:
            enforce: the policy in force denies loads.
        """
        self._running = True
        self._watchdog.look(enforce=enforce)
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
        """End with the agent; ``keep`` leaves the guard in force.

        A start that failed leaves no guard where there was none before.
        """
        self._metrics.attach_guard(None)
        self._metrics.set_hardened(hardened=False)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._attached and not (keep and (self._running or self._former)):
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
