# SPDX-License-Identifier: Apache-2.0
"""The composition root of ``kmodgate run``: wiring, signals, reload, shutdown order.

One loop in the main thread moves questions and events, beats the heart, probes, reloads.
Verification happens in the workers of ``answers``, output in threads of ``telemetry``, so
that neither a slow module nor a slow reader holds the loop up.

Start: config, node, certificates, HTTP (alive, not ready), programs loaded, policy set,
programs attached and pinned, those of an earlier agent taken away, probe, ready. Stop: no load
waits any more, last events told, programs left in force or detached (``onExit``), log closed.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

from .answers import Answerer, Asked, Trust
from .config import BackendChoice, OnExit
from .config.watch import ConfigWatcher, Debounce
from .errors import HookError, KmodgateError
from .gap import gap_before, note_detached
from .gap import now as since_boot
from .hooks.bpf import BpfBackend
from .hooks.choice import Choice, Features, choose
from .lookout import Lookout
from .loop import Timings, UnseenLoads, signals_on_a_socket, survive, wait_limit
from .model import Api, Mode, Policy
from .node import NodeFacts, NodePaths, read_facts
from .notify import notify
from .observe import Observer, is_routine
from .pinning import PinKeeper, PinState, pin_root
from .policy import compile_table
from .readiness import Readiness
from .safeguard.hardening import Hardening
from .settings import Settings, files_named, read_settings, refuse_on_rung
from .telemetry.collector import AgentMetrics
from .telemetry.events import EventLog
from .telemetry.http import TelemetryServer
from .telemetry.status import AgentStatus, Heartbeat, TrustAnchorValidity

log = logging.getLogger(__name__)

_TICK: Final = 1.0  # seconds between two heartbeats and probes
_LOOP_MAX_AGE: Final = 10.0


class Agent:
    """One running agent.

    Args:
        config_path: the node config, watched for changes.
        flag: the policy that a command line flag demands, or None.
        backend: what a command line option says instead of the config's ``backend``, or None.
        labels: the node's labels, or None when nobody told them.
        events: where the event log goes.
        log_all: tell routine loads too.
        started: seconds since the process began, for the start-up breakdown.
        paths: where the node's file systems are mounted.
    """

    def __init__(
        self,
        config_path: Path,
        *,
        events: IO[Any],
        flag: Policy | None = None,
        backend: BackendChoice | None = None,
        labels: Mapping[str, str] | None = None,
        log_all: bool = False,
        started: float = 0.0,
        paths: NodePaths | None = None,
    ) -> None:
        self._config_path = config_path
        self._flag = flag
        self._wanted = backend
        self._labels = labels
        self._events = events
        self._log_all = log_all
        self._paths = paths or NodePaths()
        self._status = AgentStatus()
        self._metrics = AgentMetrics(self._status)
        self._heartbeat = Heartbeat(_LOOP_MAX_AGE)
        self._readiness = Readiness(self._status, self._paths)
        self._stopping = False
        self._reload = Debounce()
        self._timings = Timings(started)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises KmodgateError when it cannot start."""
        with ExitStack() as stack:
            signals = stack.enter_context(signals_on_a_socket())
            watcher = stack.enter_context(ConfigWatcher([self._config_path]))
            with self._timings.timed("config"):
                facts = read_facts(self._paths)
                self._settings = self._read(facts)
            logging.getLogger("kmodgate").setLevel(self._settings.config.log_level.upper())
            with self._timings.timed("choice"):
                self._choice = self._choose(facts)
            watcher.watch(self._watched())
            with self._timings.timed("telemetry"):
                event_log = EventLog(self._events, node=os.environ.get("NODE_NAME"), log_all=self._log_all)
                stack.callback(event_log.close)
                self._metrics.attach_event_log(event_log)
                listen = self._settings.config.listen
                server = TelemetryServer(
                    listen.host,
                    listen.port,
                    registry=self._metrics.registry,
                    healthy=self._heartbeat.problem,
                    ready=lambda: self._readiness.problem,
                )
                server.start()
                stack.callback(server.stop)
            self._hardening = Hardening(self._metrics, paths=self._paths)
            stack.callback(self._hardening.stop, keep=True)
            backend = stack.enter_context(self._backend())
            # The server outlives the counters by a moment, however this ends.
            stack.callback(self._metrics.attach, None)
            with self._undone_if_it_fails(backend):
                self._start_enforcing(backend, facts, stack)
            self._announce(server.port)
            notify("READY=1")
            self._lookout = stack.enter_context(
                Lookout(facts, self._paths, self._status, event_log, self._answerer)
            )
            self._lookout.judge_by(self._settings)
            self._loop(backend, watcher, signals, event_log)
            self._stop(backend, event_log)

    def _read(self, facts: NodeFacts) -> Settings:
        return read_settings(self._config_path, self._flag, facts, self._labels, self._paths)

    def _watched(self) -> list[Path]:
        return [self._config_path, *self._settings.config.files]

    # --- start --------------------------------------------------------------------------

    def _choose(self, facts: NodeFacts) -> Choice:
        """The rung to stand on, which must be able to enforce the policy."""
        if os.geteuid() != 0:
            raise HookError("loading BPF programs needs root; run: sudo kmodgate run …")
        wanted = (self._wanted or self._settings.config.backend).rung
        choice = choose(Features.look(lsm_active=facts.has_bpf_lsm, paths=self._paths, wanted=wanted), wanted)
        for backend, lacks in choice.passed_over:
            log.warning("not on backend %s: %s", backend, "; ".join(lacks) or f"{wanted} was asked for")
        refuse_on_rung(self._settings, choice.backend)
        return choice

    def _backend(self) -> BpfBackend:
        self._hardening.register()
        pinned = self._settings.config.on_exit is OnExit.KEEP
        backend = self._choice.open(pinned=pinned, paths=self._paths)
        backend.load()
        return backend

    @contextmanager
    def _undone_if_it_fails(self, backend: BpfBackend) -> Iterator[None]:
        """A first start that fails leaves nothing in force; one after another agent leaves it on."""
        try:
            yield
        except BaseException:
            self._hardening.stop(keep=backend.adopted)
            if not backend.adopted:
                backend.detach()
                backend.forget()
            raise

    def _start_enforcing(self, backend: BpfBackend, facts: NodeFacts, stack: ExitStack) -> None:
        config = self._settings.config
        pin_root(backend, facts, self._paths)
        self._pinned_root = facts.pinned_root
        self._pins = PinKeeper(backend.superblocks, self._paths, self._pins_changed)
        stack.callback(self._pins.close)
        self._pins.set_digests(self._settings.verity_digests)
        self._pins.start()
        self._cpus = facts.online_cpus or 2
        self._configure(backend)
        backend.trust_is(self._settings.trust_number)
        self._answerer = Answerer(
            backend,
            self._trust(backend),
            config.max_module_size,
            proc=self._paths.proc,
            observe=self._metrics.observe_verify,
            count=self._metrics.count_question,
        )
        stack.callback(self._answerer.close)
        self._observer = Observer(
            self._answerer.report_for, node=os.environ.get("NODE_NAME"), proc=self._paths.proc
        )
        self._metrics.attach(backend)
        self._status.set_backend(backend.backend)
        self._publish(backend)
        backend.heartbeat()
        self._unseen = UnseenLoads(backend.loaded_unseen())
        backend.set_quiet(not self._log_all)
        backend.attach()
        gap = gap_before(adopted=backend.adopted, last_seen=backend.last_seen, at=since_boot())
        self._status.set_gap(enforcement=gap.enforcement, agent=gap.agent)
        if backend.adopted:
            log.info("took over from an earlier agent, last alive %.1f s ago: no gap", gap.agent)
        self._timings.parts |= backend.timings
        with self._timings.timed("hardening"):
            repin = backend.pin_links if backend.pinned else None
            self._hardening.start(config, facts, backend.program_fds(), repin)
        with self._timings.timed("probe"):
            self._probe(backend)
        if self._readiness.problem is not None:
            raise HookError(self._readiness.problem)

    def _pins_changed(self, state: PinState) -> None:
        self._status.set_pins(self._pinned_root, current=state.root_current, verity=state.verity)

    def _configure(self, backend: BpfBackend) -> None:
        config = self._settings.config
        backend.configure(
            hold_seconds=config.hold_timeout,
            max_size=config.max_module_size,
            wait_asleep=self._cpus == 1,
            wait_limit=wait_limit(self._cpus),
            sig_enforce=self._readiness.strictness.sig_enforce,
            lockdown=self._readiness.strictness.lockdown,
        )

    def _trust(self, backend: BpfBackend) -> Trust:
        """The anchors in force, for the answers from now on."""
        settings = self._settings
        required = settings.config.trust.require_validity
        now = time.time()
        ends = [
            moment.timestamp()
            for anchor in settings.trust.anchors
            for moment in (anchor.not_before, anchor.not_after)
            if required and moment.timestamp() > now
        ]
        self._trust_until = min(ends, default=math.inf)
        return Trust(settings.trust, backend.trust_generation, required, settings.profile)

    def _publish(self, backend: BpfBackend) -> None:
        """Put the policy in force, and say so."""
        generation = backend.set_policy(compile_table(self._settings.policy))
        self._observer.policy_changed(generation, self._settings.policy)
        self._status.set_policy(self._settings.policy)
        self._status.reload_succeeded(time.time())
        self._status.set_trust_anchors(
            TrustAnchorValidity(anchor.fingerprint, anchor.not_after)
            for anchor in self._settings.trust.anchors
        )

    def _announce(self, port: int) -> None:
        policy = self._settings.policy
        log.info(
            "ready: %s, mode %s, LoadPin %s, %d configured certificate(s), backend %s, metrics on port %d; "
            "start took %s",
            policy.policy,
            policy.mode,
            "on" if policy.load_pin else "off",
            len(self._settings.trust),
            self._choice.backend,
            port,
            self._timings,
        )

    # --- the loop -----------------------------------------------------------------------

    def _loop(
        self, backend: BpfBackend, watcher: ConfigWatcher, signals: socket.socket, event_log: EventLog
    ) -> None:
        with selectors.DefaultSelector() as selector:
            sources: list[Any] = [*backend.rings(), watcher, signals, *self._hardening.sources]
            for source in sources:
                selector.register(source, selectors.EVENT_READ, source)
            tick, behind = time.monotonic(), False
            while not self._stopping:
                now = time.monotonic()
                if now >= tick:
                    tick = now + _TICK
                    self._beat(backend)
                    behind = True  # of the records that woke nobody (bpf/tell.h)
                if behind:
                    # A batch in each turn, so that a storm keeps nobody from the heartbeat.
                    behind = False
                    with survive():
                        behind = self._tell(backend, event_log)
                due = self._reload.wait(now)
                wait = 0.0 if behind else min(tick - now, due if due is not None else _TICK)
                ready = selector.select(max(0.0, wait))
                for key, _ in ready:
                    # Whatever goes wrong with one load must not end enforcement for all.
                    with survive():
                        if key.data is backend.event_ring:
                            self._tell(backend, event_log)
                        elif key.data in self._hardening.sources:
                            key.data.receive()
                        elif key.data is watcher:
                            if watcher.drain():
                                self._reload.notice(time.monotonic())
                        elif key.data is signals:
                            self._signalled(signals.recv(64))
                        else:
                            self._ask(backend)
                if self._reload.due(time.monotonic()):
                    with survive():
                        also = self._reload_config(backend)
                        watcher.watch([*self._watched(), *also])

    def _beat(self, backend: BpfBackend) -> None:
        backend.heartbeat()
        self._heartbeat.beat()
        with survive():
            backend.settle()
            self._unseen.look(backend.loaded_unseen())
            self._probe(backend)
            # After the probe: what it says is what was in force until now.
            self._hardening.look(enforce=self._settings.policy.mode is Mode.ENFORCE)
            self._answerer.relieve()
            self._pins.relieve()
            self._lookout.look()
            if time.time() >= self._trust_until:
                log.warning("a certificate's validity begins or ends now: earlier answers are void")
                backend.forget_answers()
                self._answerer.set_trust(self._trust(backend))
                self._lookout.trust_changed()

    def _ask(self, backend: BpfBackend) -> None:
        for question in backend.questions():
            with survive():
                self._observer.asked(question.id, question.tgid, question.tid, question.start_time)
                call = (question.fd, question.address, question.length)
                asker = (question.tgid, question.tid)
                self._answerer.submit(Asked(question.id, Api(question.api), *asker, *call, question.place))

    def _tell(self, backend: BpfBackend, event_log: EventLog) -> bool:
        """Tell a batch of loads that ended; False when there was none."""
        loaded = some = False
        for record in backend.events():
            some = True
            loaded |= bool(record.loaded)
            with survive():
                if self._log_all or not is_routine(record):
                    event_log.write(self._observer.event(record))
        if loaded:
            with survive():
                self._lookout.look()
        return some

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._reload.notice(time.monotonic())
            elif number in (signal.SIGTERM, signal.SIGINT):
                log.info("%s: shutting down", signal.Signals(number).name)
                self._stopping = True

    def _probe(self, backend: BpfBackend) -> None:
        if self._readiness.strictness_changed():
            self._configure(backend)
        self._readiness.probe(backend, self._settings.policy)

    # --- reload and stop ----------------------------------------------------------------

    def _reload_config(self, backend: BpfBackend) -> list[Path]:
        """Use the changed config, or keep the last good one and say why.

        Returns:
            Files to watch beside those of the config in force: what a config that could not be
            used names, because it may only have to appear.
        """
        old = self._settings
        try:
            facts = read_facts(self._paths)
            new = self._read(facts)
            refuse_on_rung(new, self._choice.backend)
            self._apply(backend, old, new)
        except KmodgateError as error:
            self._settings = old
            self._status.reload_failed(str(error))
            log.error("config not reloaded, the last good one stays in force: %s", error)
            return files_named(self._config_path)
        log.info(
            "config reloaded: %s, mode %s, LoadPin %s, %d configured certificate(s)",
            new.policy.policy,
            new.policy.mode,
            "on" if new.policy.load_pin else "off",
            len(new.trust),
        )
        return []

    def _apply(self, backend: BpfBackend, old: Settings, new: Settings) -> None:
        if new.config.listen != old.config.listen:
            log.warning("listen address changed: it takes effect at the next start")
        if new.config.on_exit is OnExit.KEEP and not backend.pinned:
            log.warning("onExit keep: nothing is pinned; it takes effect at the next start")
        if new.config.backend != old.config.backend:
            log.warning("backend changed: it takes effect at the next start")
        self._hardening.reconfigured(new.config)
        self._settings = new
        logging.getLogger("kmodgate").setLevel(new.config.log_level.upper())
        self._configure(backend)
        self._answerer.max_size = new.config.max_module_size
        self._pins.set_digests(new.verity_digests)
        if new.trust_key != old.trust_key:
            backend.trust_is(new.trust_number)
            self._answerer.set_trust(self._trust(backend))
            self._lookout.trust_changed()
        self._publish(backend)
        self._probe(backend)
        self._lookout.judge_by(new)

    def _stop(self, backend: BpfBackend, event_log: EventLog) -> None:
        self._readiness.problem = "shutting down"
        notify("STOPPING=1")
        backend.stop_heartbeat()
        keep = self._settings.config.on_exit is OnExit.KEEP and backend.pinned
        self._hardening.stop(keep=keep)
        if keep:
            for record in backend.events():
                with survive():
                    event_log.write(self._observer.event(record))
            log.info(
                "stopped: enforcement goes on without the agent; `kmodgate detach` ends it, and what the "
                "agent would have to verify meets failurePolicy %s",
                self._settings.policy.failure_policy,
            )
            return
        backend.detach()
        self._status.set_enforcing(enforcing=False)
        for record in backend.drain():
            with survive():
                event_log.write(self._observer.event(record))
        backend.forget()
        note_detached()
        log.warning("detached: this node no longer enforces a module policy")
