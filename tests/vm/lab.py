# SPDX-License-Identifier: Apache-2.0
"""What runs inside the guest: load modules by hand, run the agent, read what it says.

Used by the guest's tests and by the demo. Uses only the standard library, the system calls
themselves and, for the events, jsonschema, never kmodgate's own code: what it observes is what
any loader observes. Every line that an agent writes is checked against the schema of events.
"""

from __future__ import annotations

import ctypes
import errno
import http.client
import json
import os
import platform
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import kernels, schema

MODULES = Path(os.environ.get("KMODGATE_TEST_MODULES", "/share/modules"))
CERTS = Path(os.environ.get("KMODGATE_TEST_CERTS", "/share/certs"))
PORT = 9464

IGNORE_MODVERSIONS = 1
IGNORE_VERMAGIC = 2
COMPRESSED_FILE = 4

_LIBC = ctypes.CDLL(None, use_errno=True)
_FINIT, _INIT, _DELETE = {"x86_64": (313, 175, 176), "aarch64": (273, 105, 106)}[platform.machine()]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The outcome of one system call: errno name (``"ok"`` for success) and microseconds."""

    result: str
    micros: float

    @property
    def ok(self) -> bool:
        return self.result == "ok"


def _call(number: int, *arguments: Any) -> Loaded:
    start = time.perf_counter()
    result = _LIBC.syscall(number, *arguments)
    micros = (time.perf_counter() - start) * 1e6
    return Loaded("ok" if result == 0 else errno.errorcode[ctypes.get_errno()], micros)


def finit(path: Path | str, flags: int = 0, parameters: bytes = b"") -> Loaded:
    """``finit_module(2)`` on a path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return finit_fd(fd, flags, parameters)
    finally:
        os.close(fd)


def finit_fd(fd: int, flags: int = 0, parameters: bytes = b"") -> Loaded:
    """``finit_module(2)`` on a descriptor."""
    return _call(_FINIT, fd, parameters, flags)


def init(data: bytes, parameters: bytes = b"") -> Loaded:
    """``init_module(2)`` on bytes."""
    return _call(_INIT, data, ctypes.c_ulong(len(data)), parameters)


def unload(name: str) -> None:
    """``delete_module(2)``; a module that is not loaded is no error."""
    for _ in range(50):
        outcome = _call(_DELETE, name.encode(), os.O_NONBLOCK)
        if outcome.result in {"ok", "ENOENT"}:
            return
        time.sleep(0.05)
    raise RuntimeError(f"cannot unload {name}: {outcome.result}")


def is_loaded(name: str) -> bool:
    """Whether /proc/modules lists the module."""
    return any(line.split()[0] == name for line in Path("/proc/modules").read_text().splitlines())


def in_tree(name: str) -> Path:
    """The file of a module of the distribution's kernel, unpacked to /tmp if compressed."""
    root = Path("/lib/modules") / platform.release() / "kernel"
    (found,) = root.rglob(f"{name}.ko*")
    if found.suffix == ".ko":
        return found
    plain = Path("/tmp") / f"intree-{name}.ko"
    if not plain.exists():
        plain.write_bytes(subprocess.run(["xz", "-dc", found], check=True, capture_output=True).stdout)
    return plain


def laid_out(directory: Path, pattern: str = "*.ko*") -> Path:
    """The directory, made and filled with the test modules that the pattern names."""
    directory.mkdir(exist_ok=True)
    for module in MODULES.glob(pattern):
        (directory / module.name).write_bytes(module.read_bytes())
    return directory


def insmod(path: Path) -> tuple[int, str]:
    """``insmod``: exit status and what it printed to standard error."""
    done = subprocess.run(["insmod", path], check=False, capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def config(policy: str, **ours: Any) -> str:
    """A node config with the operator's certificates, where the rung can use them, as YAML (JSON is YAML).

    The hold time is eight times the default: an emulated CPU verifies a module in tens of
    milliseconds when the host is idle, and in many more when it is not.
    """
    operators = [str(CERTS / "operator.pem"), str(CERTS / "operator-ec.pem")]
    trust = {"certificates": operators} if "digests" in kernels.this().capabilities else {}
    document = {
        "linuxNodeConfig": {"kernelModuleLoading": {"policy": policy}},
        "kmodgate": {"trust": trust, "listen": f"127.0.0.1:{PORT}", "holdTimeout": "2s", **ours},
    }
    return json.dumps(document)


ENFORCE = "ENFORCE_SIGNED_MODULES"
DO_NOT_ENFORCE = "DO_NOT_ENFORCE_SIGNED_MODULES"


class Agent:
    """A running ``kmodgate run``, watched from outside."""

    def __init__(self, directory: Path, *, extra: tuple[str, ...] = ()) -> None:
        self.config_path = directory / "node.yaml"
        self._out = directory / "events.jsonl"
        self._err = directory / "agent.log"
        self._seen = 0
        self._checked = 0
        self._command = ["kmodgate", "run", "--config", str(self.config_path), *extra]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, text: str, *, wait: float = 120.0) -> None:
        """Write the config, start, wait until /readyz says yes. What was written before is kept."""
        self.config_path.write_text(text)
        with self._out.open("ab") as out, self._err.open("ab") as err:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=err)
        self.wait_for(lambda: get("/readyz")[0] == 200, "ready", wait)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        """Poll until the condition holds; the agent's log goes into the failure."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process is not None and self.process.poll() is not None and what == "ready":
                raise AssertionError(f"the agent ended with {self.process.returncode}:\n{self.log()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what} within {seconds} s; agent log:\n{self.log()}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """Standard error so far."""
        return self._err.read_text(errors="replace")

    def configure(self, text: str) -> None:
        """Replace the config as an editor does, and wait until the agent has taken it."""
        count = self.log().count("config reloaded")
        self.rewrite(text)
        self.wait_for(lambda: self.log().count("config reloaded") > count, "reload")

    def rewrite(self, text: str) -> None:
        """Replace the config, and do not wait."""
        fresh = self.config_path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.config_path)

    def events(self) -> list[dict[str, Any]]:
        """The module_load events so far."""
        # The last line may be half written.
        lines = self._out.read_text().rpartition("\n")[0].splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
        for record in records[self._checked :]:
            self._checked += 1
            schema.check(record)
        return [record for record in records if record["event"] == "module_load"]

    def mark(self) -> None:
        """Forget the events so far, those on their way too; ``next_event`` gives a later one."""
        seen = -1
        while seen != (seen := len(self.events())):
            time.sleep(0.4)
        self._seen = seen

    def next_event(self, seconds: float = 20.0) -> dict[str, Any]:
        """The first event after the last ``mark`` or ``next_event``."""
        self.wait_for(lambda: len(self.events()) > self._seen, "event", seconds)
        event = self.events()[self._seen]
        self._seen += 1
        return event

    def settled(self) -> float:
        """Records that the log wrote, left out or lost, once none is on its way any more."""
        seen, deadline = -1.0, time.monotonic() + 60
        while seen != (seen := self._records()):
            assert time.monotonic() < deadline, self.log()
            time.sleep(1)
        return seen

    def _records(self) -> float:
        samples = metrics()
        lost = sum(
            value
            for name, value in samples.items()
            if name.startswith("kmodgate_events_lost_total") and "question" not in name
        )
        left_out = sum(v for k, v in samples.items() if k.startswith("kmodgate_events_suppressed_total"))
        return len(self.events()) + lost + left_out

    def until_known(self, refused: Path) -> None:
        """Try to load a module that is refused until its digest is known: then no load of it waits.

        A busy emulated processor may take longer to verify it than a load may wait.
        """
        self.mark()

        def known() -> bool:
            assert not finit(refused).ok
            return self.next_event()["reason"] not in {"hold_timeout", "agent_unavailable"}

        self.wait_for(known, "answer")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)

    def resident_kib(self) -> int:
        """VmRSS of the agent in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]


@contextmanager
def running(directory: Path, text: str, *, log_all: bool = True) -> Iterator[Agent]:
    """An agent for the time of the block."""
    agent = Agent(directory, extra=("--log-all",) if log_all else ())
    try:
        agent.start(text)
        yield agent
    finally:
        if agent.process is not None:
            agent.stop()
            subprocess.run(["kmodgate", "detach"], check=True, capture_output=True)
            agent.events()  # the last ones are of the schema, too


def get(path: str) -> tuple[int, str]:
    """Status and body of a GET on the agent; status 0 when nobody listens, or nobody ends the answer."""
    try:
        try:
            answer = urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""


def metrics() -> dict[str, float]:
    """Every sample of /metrics, by its name with labels as exposed."""
    samples = {}
    for line in get("/metrics")[1].splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


def counted(samples: dict[str, float], **labels: str) -> float:
    """Sum of kmodgate_module_loads_total over the samples that carry these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        value
        for name, value in samples.items()
        if name.startswith("kmodgate_module_loads_total{") and all(label in name for label in wanted)
    )


@contextmanager
def overlay(directory: Path) -> Iterator[Path]:
    """An overlay mount on tmpfs, as a container's root is one."""
    for name in ("lower", "upper", "work", "merged"):
        (directory / name).mkdir(parents=True)
    merged = directory / "merged"
    options = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)


def flip_payload_byte(data: bytes) -> bytes:
    """The module with one byte of its payload changed, ELF header left alone."""
    place = len(data) // 3
    return data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :]
