# SPDX-License-Identifier: Apache-2.0
"""`kmodgate run`: its words, and what it says where this process may not do what it must."""

from __future__ import annotations

import errno
from pathlib import Path

import click
import pytest

from kmodgate.cli import run
from kmodgate.config import BackendChoice
from kmodgate.errors import ConfigError, HookError, KmodgateError, NodeError
from kmodgate.fsutil import FileReadError
from kmodgate.node import process


def test_every_backend_of_the_config_can_be_forced() -> None:
    (option,) = [item for item in run.command.params if item.name == "backend"]
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == {choice.value for choice in BackendChoice}


def lacking(monkeypatch: pytest.MonkeyPatch, *capabilities: process.Capability) -> None:
    has = frozenset(process.Capability) - {process.Capability.CAP_SYS_ADMIN, *capabilities}
    facts = process.ProcessFacts(has, locked_memory=-1, in_initial_pid_namespace=True)
    monkeypatch.setattr(process, "read_process", lambda _paths: facts)


DENIED = FileReadError("/proc/1/root/sys/module", "permission denied", "EACCES")


LOOKED_AT = PermissionError(errno.EACCES, "Permission denied", "/proc/1/root/sys/module")


@pytest.mark.parametrize("error", [HookError("map probe: EPERM"), NodeError("x"), DENIED, LOOKED_AT])
def test_a_capability_that_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    lacking(monkeypatch, process.Capability.CAP_BPF, process.Capability.CAP_SYS_PTRACE)
    with (
        pytest.raises(NodeError, match=r"lacks CAP_BPF, CAP_SYS_PTRACE,.*operations\.md") as caught,
        run._explained(),
    ):
        raise error
    assert str(caught.value).startswith(str(DENIED) if error is LOOKED_AT else str(error))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("bad", source=str(Path("node.yaml"))),
        FileReadError("operator.pem", "no such file or directory", "ENOENT"),
    ],
)
def test_what_no_capability_would_mend_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, error: KmodgateError
) -> None:
    lacking(monkeypatch, process.Capability.CAP_BPF)
    with pytest.raises(type(error)) as caught, run._explained():
        raise error
    assert caught.value is error


def test_with_all_of_them_the_error_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, process.Capability.CAP_NET_ADMIN)
    with pytest.raises(HookError, match=r"^map probe: EPERM$"), run._explained():
        raise HookError("map probe: EPERM")
