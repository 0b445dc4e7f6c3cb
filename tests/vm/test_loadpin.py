# SPDX-License-Identifier: Apache-2.0
"""kmodgate with LoadPin on, and the real LoadPin: the same loads, the same errno.

The real one is in a small kernel that is built from Debian's source (vm-images/loadpin-kernel.config),
which takes some minutes when the cache has none: `make test-loadpin`, not a part of `make test`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.vm.boot import alive, need_qemu
from vmtool import loadpinlab
from vmtool.lab import run_in_guest

from kmodgate.errors import ConfigError
from kmodgate.node.verity import HEADER, parse_trusted_digests

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

SUITE = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm")
PAGE = Path(__file__).parents[2] / "docs/loadpin.md"
GUEST = "/src/tests/vm/pinned_guest.py"

EXPLICIT = "kmodgate pins the root of process 1 when it starts, never what is read first"
# Case: what the real LoadPin answers, what kmodgate answers, why.
DIFFERENCES = {
    "elsewhere/tmpfs-first": ("ok", "EPERM", EXPLICIT),
    "elsewhere/root-after-it": ("EPERM", "ok", EXPLICIT),
    "elsewhere/tmpfs-again": ("ok", "EPERM", EXPLICIT),
}


def _ask(what: Callable[[], Any]) -> Any:
    need_qemu("test-loadpin")
    with alive():
        return what()


@pytest.fixture(scope="module")
def real() -> dict[str, str]:
    """The real LoadPin's answers, of two boots: what it pins is asked once in each."""
    return {**_ask(loadpinlab.ask), **_ask(lambda: loadpinlab.ask(("elsewhere",)))}


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guest with kmodgate brought back."""
    folder = tmp_path_factory.mktemp("share")

    def run() -> int:
        (folder / "disk").write_bytes(loadpinlab.disk(loadpinlab.modules_of_debian(SUITE))[0])
        (folder / "program").write_bytes(loadpinlab.program())
        command = ["python3", GUEST, "/share/disk", "/share/program", "/share"]
        return run_in_guest(command, suite=SUITE, share=folder, live=True, timeout=900)

    assert _ask(run) == 0
    return folder


@pytest.fixture(scope="module")
def ours(share: Path) -> dict[str, str]:
    return loadpinlab.read_cases((share / "cases.txt").read_bytes())


def test_every_errno_is_loadpins_or_differs_for_a_reason(real: dict[str, str], ours: dict[str, str]) -> None:
    assert ours.keys() == real.keys() - {"digests"}
    assert f"tries {len(ours)} loads" in PAGE.read_text()
    different = {name: (real[name], ours[name]) for name in ours if real[name] != ours[name]}
    assert different == {name: (theirs, own) for name, (theirs, own, _) in DIFFERENCES.items()}


def test_the_cases_tell_something(real: dict[str, str]) -> None:
    """The errno that security/loadpin/loadpin.c gives, by hand for the ones that matter most."""
    assert real["digests"] == "ok"
    assert real["before/memory"] == real["memory/good"] == "EPERM"
    assert real["first/garbage"] == "ENOEXEC"  # and pins
    assert (real["root/good"], real["root/changed"]) == ("ok", "EKEYREJECTED")
    assert real["tmpfs/good"] == real["tmpfs/changed"] == real["tmpfs/garbage"] == "EPERM"
    assert (real["tmpfs/unknown-flags"], real["tmpfs/open-for-writing"]) == ("EINVAL", "ETXTBSY")
    assert real["root/mounted-twice"] == real["root/bind"] == real["namespace/root"] == "ok"
    assert real["overlay/lower-on-the-root"] == real["loop/image-on-the-root"] == "EPERM"
    assert (real["verity/no-digest-trusted"], real["verity/trusted"]) == ("EPERM", "ok")
    assert real["verity/ignores-corruption"] == real["verity/digest-swapped"] == "EPERM"
    assert (real["gone/detached-but-open"], real["gone/mounted-again"]) == ("ok", "EPERM")
    assert (real["gone/verity-before"], real["gone/verity"]) == ("ok", "EPERM")


def test_the_agent_saw_the_root_go(share: Path, ours: dict[str, str]) -> None:
    assert ours
    told = json.loads((share / "pinned.json").read_text())
    assert told["before"]["kmodgate_pinned_root_current"] == 1
    assert told["after"]["kmodgate_pinned_root_current"] == 0
    status, said = told["ready"]
    assert status == 503
    assert "gone away" in said
    log = (share / "pinned-agent.log").read_text()
    assert "Traceback" not in log


def test_every_refusal_is_told_with_its_reason(share: Path, ours: dict[str, str]) -> None:
    assert ours
    events = json.loads((share / "pinned-events.json").read_text())
    refused = [event for event in events if event["verdict"] == "deny" and event["by"] == "kmodgate"]
    assert {event["reason"] for event in refused} == {"outside_pinned_root", "no_file"}
    assert {event["result"] for event in refused} == {"EPERM"}
    assert {event["reason"] for event in events if event["verdict"] == "allow"} == {"pinned_root"}


def test_the_page_lists_the_differences() -> None:
    text = PAGE.read_text()
    for name, (theirs, own, why) in DIFFERENCES.items():
        assert f"| `{name}` | {theirs} | {own} | {why} |" in text


DIGEST = bytes(range(32)).hex().encode()
OTHER = bytes(range(64)).hex().upper().encode()
# A list of digests, and whether LoadPin and kmodgate take it. One boot each: LoadPin reads one list only.
LISTS = {
    "one": (HEADER + b"\n" + DIGEST, True, True),
    "two, and white space at the end": (HEADER + b"\n" + DIGEST + b"\n" + OTHER + b"\n \t\r\n", True, True),
    "header only": (HEADER + b"\n", False, False),
    "no header": (DIGEST + b"\n", False, False),
    "white space before the header": (b"\n" + HEADER + b"\n" + DIGEST, False, False),
    "white space after the header": (HEADER + b" \n" + DIGEST, False, False),
    "a comment": (HEADER + b"\n# mine\n" + DIGEST, False, False),
    "a digit too few": (HEADER + b"\n" + DIGEST[:-1], False, False),
    "lines that end in CR LF": (HEADER + b"\n" + DIGEST + b"\r\n" + DIGEST, False, False),
    "4096 bytes": (HEADER + b"\n" + DIGEST + b"\n" * (4095 - len(HEADER) - len(DIGEST)), False, False),
    # LoadPin takes these; none of them is a list that somebody meant.
    "a blank line": (HEADER + b"\n\n" + DIGEST, True, False),
    "20 bytes, as SHA-1 has": (HEADER + b"\n" + DIGEST[:40], True, False),
    "a null byte": (HEADER + b"\n" + DIGEST + b"\0# junk", True, False),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_digests(name: str) -> None:
    data, theirs, own = LISTS[name]
    disk, _ = loadpinlab.disk(_ask(loadpinlab.modules_of_small), data)
    cases = _ask(lambda: loadpinlab.ask(("first", "digests"), image=disk))
    assert (cases["digests"] == "ok") is theirs
    try:
        accepted = bool(parse_trusted_digests(data, "file"))
    except ConfigError:
        accepted = False
    assert accepted is own
