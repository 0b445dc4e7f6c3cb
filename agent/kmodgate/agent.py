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
import selectors
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

from .answers import Answerer, Asked, Trust
from .cluster import Cluster
from .config import BackendChoice, OnExit
from .config.watch import ConfigWatcher, Debounce
from .errors import HookError, KmodgateError
from .gap import gap_before, note_detached
from .gap import now as since_boot
from .hooks import abi
from .hooks.heap import Relief
from .hooks.pins import counts_since
from .hooks.rung import RungBackend
from .lookout import Lookout
from .loop import Timings, UnseenLoads, signals_on_a_socket, survive, wait_limit
from .model import Api, Mode, Policy
from .node import NodeFacts, NodePaths, read_facts
from .notify import notify
from .observe import Observer, is_routine
from .outlets import Outlets
from .pinning import PinKeeper, PinState, pin_root
from .policy import compile_table
from .readiness import Readiness
from .report import report
from .safeguard.hardening import Hardening
from .settings import Settings, files_named, next_validity_change, read_settings
from .standing import Standing
from .telemetry.collector import AgentMetrics
from .telemetry.events import EventLog
from .telemetry.status import AgentStatus, Heartbeat, TrustAnchorValidity
from .webaccess import open_server

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
        self._reload, self._relief = Debounce(), Relief()
        self._timings = Timings(started)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises KmodgateError when it cannot start."""
        with ExitStack() as stack:
            signals = stack.enter_context(signals_on_a_socket())
            watcher = stack.enter_context(ConfigWatcher([self._config_path]))
            self._cluster = stack.enter_context(Cluster(self._labels, self._reload))
            with self._timings.timed("config"):
                facts = read_facts(self._paths)
                self._settings = self._read(facts)
            logging.getLogger("kmodgate").setLevel(self._settings.config.log_level.upper())
            with self._timings.timed("choice"):
                self._standing = Standing(facts, self._paths, self._wanted or self._settings.config.backend)
                self._standing.choose(self._settings)
            watcher.watch(self._watched())
            with self._timings.timed("telemetry"):
                outlets = Outlets(self._events, node=self._cluster.node, log_all=self._log_all)
                self._outlets, event_log = stack.enter_context(outlets), outlets.log
                self._metrics.attach_event_log(event_log, outlets.counts)
                self._metrics.attach_cluster(self._cluster)
                config = self._settings.config
                self._outlets.configure(config.event_sinks)
                server = open_server(
                    config.listen,
                    config.web_config,
                    metrics=self._metrics,
                    healthy=self._heartbeat.problem,
                    ready=lambda: self._readiness.problem,
                )
                server.start()
                self._port = server.port
                stack.callback(server.stop)
            while self._standing.step():
                self._readiness.terms, self._stopping = self._standing.terms, False
                with self._standing.going_back(self._not_reloaded), ExitStack() as rung:
                    self._stand(facts, rung, watcher, signals, outlets)

    def _stand(
        self,
        facts: NodeFacts,
        stack: ExitStack,
        watcher: ConfigWatcher,
        signals: socket.socket,
        outlets: Outlets,
    ) -> None:
        """Start on the chosen rung, and stand on it until a signal comes or it breaks."""
        self._hardening = Hardening(self._metrics, paths=self._paths)
        stack.callback(self._hardening.stop, keep=True)
        backend = stack.enter_context(self._backend())
        # The server outlives the counters by a moment, however this ends.
        stack.callback(self._metrics.attach, None)
        with self._undone_if_it_fails(backend):
            self._start_enforcing(backend, facts, stack)
        outlets.serve(lambda: report(self._settings, self._status, self._readiness, self._metrics, outlets))
        self._standing.arrived(self._settings)
        told = (self._settings.summary(), backend.backend, self._port, self._timings)
        log.info("ready: %s, backend %s, metrics on port %d; start took %s", *told)
        notify("READY=1")
        self._lookout = stack.enter_context(
            Lookout(facts, self._paths, self._status, outlets.log, self._answerer)
        )
        self._lookout.judge_by(self._settings)
        self._loop(backend, watcher, signals, outlets.log)
        if self._standing.broken:  # what it has in force can only refuse
            self._status.stepped_down()
        else:
            self._stop(backend, outlets.log)

    def _read(self, facts: NodeFacts) -> Settings:
        return read_settings(self._config_path, self._flag, facts, self._cluster.labels, self._paths)

    def _watched(self) -> list[Path]:
        return [self._config_path, *self._settings.config.files]

    # --- start --------------------------------------------------------------------------

    def _backend(self) -> RungBackend:
        self._hardening.register()
        pinned = self._settings.config.on_exit is OnExit.KEEP
        backend = self._standing.choice.open(pinned=pinned, paths=self._paths)
        backend.load()
        return backend

    @contextmanager
    def _undone_if_it_fails(self, backend: RungBackend) -> Iterator[None]:
        """A first start that fails leaves nothing in force; one after another agent leaves it on."""
        try:
            yield
        except BaseException:
            self._hardening.stop(keep=backend.adopted)
            if not backend.adopted:
                self._readiness.leave(backend.backend, keep=False)
                backend.detach()
                backend.forget()
            raise

    def _start_enforcing(self, backend: RungBackend, facts: NodeFacts, stack: ExitStack) -> None:
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
            self._answerer.report_for,
            node=self._cluster.node,
            proc=self._paths.proc,
            attributor=self._cluster.attributor(self._paths.proc),
        )
        self._metrics.attach(backend)
        self._status.set_backend(backend.backend)
        self._status.set_counts_since(counts_since(backend.backend))
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
            self._hardening.start(config, facts, backend, repin)
        with self._timings.timed("probe"):
            self._probe(backend)
        if self._readiness.problem is not None:
            raise HookError(self._readiness.problem)

    def _pins_changed(self, state: PinState) -> None:
        self._status.set_pins(self._pinned_root, current=state.root_current, verity=state.verity)

    def _configure(self, backend: RungBackend) -> None:
        config = self._settings.config
        self._status.set_hold_limit(config.hold_timeout)
        backend.configure(
            hold_seconds=config.hold_timeout,
            max_size=config.max_module_size,
            wait_asleep=self._cpus == 1,
            wait_limit=wait_limit(self._cpus),
            sig_enforce=self._readiness.strictness.sig_enforce,
            lockdown=self._readiness.strictness.lockdown,
        )

    def _trust(self, backend: RungBackend) -> Trust:
        """The anchors in force, for the answers from now on."""
        settings = self._settings
        self._trust_until = next_validity_change(settings, time.time())
        required = settings.config.trust.require_validity
        return Trust(settings.trust, backend.trust_generation, required, settings.profile)

    def _publish(self, backend: RungBackend) -> None:
        """Put the policy in force, and say so."""
        generation = backend.set_policy(compile_table(self._settings.policy))
        pool = self._settings.config.pool
        self._observer.policy_changed(generation, self._settings.policy, pool)
        self._status.set_policy(self._settings.policy, pool)
        self._cluster.in_force(self._settings)
        self._status.reload_succeeded(time.time())
        self._status.set_trust_anchors(
            TrustAnchorValidity(anchor.fingerprint, anchor.not_after)
            for anchor in self._settings.trust.anchors
        )

    # --- the loop -----------------------------------------------------------------------

    def _loop(
        self, backend: RungBackend, watcher: ConfigWatcher, signals: socket.socket, event_log: EventLog
    ) -> None:
        with selectors.DefaultSelector() as selector:
            receivers = (*self._hardening.sources, self._cluster)
            sources: list[Any] = [*backend.rings(), watcher, signals, *receivers]
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
                        behind = self._tell(backend.events(), event_log)
                due = self._reload.wait(now)
                wait = 0.0 if behind else min(tick - now, due if due is not None else _TICK)
                ready = selector.select(max(0.0, wait))
                for key, _ in ready:
                    # Whatever goes wrong with one load must not end enforcement for all.
                    with survive():
                        if key.data is backend.event_ring:
                            self._tell(backend.events(), event_log)
                        elif key.data in receivers:
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

    def _beat(self, backend: RungBackend) -> None:
        backend.heartbeat()
        self._heartbeat.beat()
        with survive():
            backend.settle()
            self._unseen.look(backend.loaded_unseen())
            self._probe(backend)
            # After the probe: what it says is what was in force until now.
            self._hardening.look(enforce=self._settings.policy.mode is Mode.ENFORCE)
            self._answerer.relieve()
            self._relief.look(self._outlets.log.last_number)
            self._pins.relieve()
            self._lookout.look()
            self._cluster.look(self._status.snapshot(), self._readiness.problem)
            # A lower rung, if this one has broken and another one will do.
            self._stopping |= self._standing.lower(self._settings, self._readiness.failures)
            if time.time() >= self._trust_until:
                log.warning("a certificate's validity begins or ends now: earlier answers are void")
                backend.forget_answers()
                self._answerer.set_trust(self._trust(backend))
                self._lookout.trust_changed()

    def _ask(self, backend: RungBackend) -> None:
        for question in backend.questions():
            with survive():
                self._observer.asked(question.id, question.tgid, question.tid, question.start_time)
                call = (question.fd, question.address, question.length)
                asker = (question.tgid, question.tid)
                self._answerer.submit(Asked(question.id, Api(question.api), *asker, *call, question.place))

    def _tell(self, records: Iterable[abi.Event], event_log: EventLog) -> bool:
        """Tell a batch of loads that ended; False when there was none."""
        loaded = some = False
        for record in records:
            some = True
            loaded |= bool(record.loaded)
            with survive():
                if self._log_all or not is_routine(record):
                    event = self._observer.event(record)
                    event_log.write(event)
                    self._cluster.tell(event)
        if loaded:
            with survive():
                self._lookout.look()
        return some

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._outlets.reopen()
                self._reload.notice(time.monotonic())
            elif number in (signal.SIGTERM, signal.SIGINT):
                log.info("%s: shutting down", signal.Signals(number).name)
                self._stopping = True

    def _probe(self, backend: RungBackend) -> None:
        self._readiness.probe(backend, self._settings.policy, self._configure)

    # --- reload and stop ----------------------------------------------------------------

    def _reload_config(self, backend: RungBackend) -> list[Path]:
        """Use the changed config, or keep the last good one and say why.

        Returns:
            Files to watch beside those of the config in force: what a config that could not be
            used names, because it may only have to appear.
        """
        old = self._settings
        try:
            facts = read_facts(self._paths)
            new = self._read(facts)
            if self._standing.reconsider(old, new):
                self._settings, self._stopping = new, True
                return []
            self._readiness.terms = self._standing.terms
            self._apply(backend, old, new)
        except KmodgateError as error:
            self._not_reloaded(old, error)
            return files_named(self._config_path)
        log.info("config reloaded: %s", new.summary())
        return []

    def _not_reloaded(self, old: Settings, error: KmodgateError) -> None:
        self._settings = old
        self._status.reload_failed(str(error))
        self._cluster.refused(error)
        log.error("config not reloaded, the last good one stays in force: %s", error)

    def _apply(self, backend: RungBackend, old: Settings, new: Settings) -> None:
        for what in old.left_for_next_start(new, pinned=backend.pinned):
            log.warning("%s: it takes effect at the next start", what)
        self._hardening.reconfigured(new.config)
        self._outlets.configure(new.config.event_sinks)
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

    def _stop(self, backend: RungBackend, event_log: EventLog) -> None:
        ends = self._standing.next is None  # else another rung takes over at once
        if ends:
            self._readiness.problem = "shutting down"
            notify("STOPPING=1")
        backend.stop_heartbeat()
        stays = ends and self._settings.config.on_exit is OnExit.KEEP
        self._hardening.stop(keep=stays and backend.pinned)
        if stays and backend.pinned:
            self._tell(backend.events(), event_log)
            log.info(
                "stopped: enforcement goes on without the agent; `kmodgate detach` ends it, and what the "
                "agent would have to verify meets failurePolicy %s",
                self._settings.policy.failure_policy,
            )
            return
        backend.detach()
        self._status.set_enforcing(enforcing=False)
        self._tell(backend.drain(), event_log)
        backend.forget()
        note_detached()
        log.warning("%s", self._readiness.leave(backend.backend, keep=stays))
