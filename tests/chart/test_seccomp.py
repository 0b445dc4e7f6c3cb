# SPDX-License-Identifier: Apache-2.0
"""docs/examples/seccomp.json: what made it, and what the running kernel does with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart import seccomp
from tests.chart.helm import CHART, PROJECT

FILE = PROJECT / "docs/examples/seccomp.json"
# The filter is loaded as runc does, by libseccomp; then each call is made with arguments that mean nothing.
PROGRAM = """
import ctypes, json, os, sys
library, kernel = ctypes.CDLL("libseccomp.so.2"), ctypes.CDLL(None, use_errno=True)
library.seccomp_init.restype = ctypes.c_void_p
class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]
OPS = {"SCMP_CMP_NE": 1, "SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
def action(rule, key):
    return 0x7FFF0000 if rule["action"] == "SCMP_ACT_ALLOW" else 0x00050000 | rule.get(key, 1)
number = lambda name: library.seccomp_syscall_resolve_name(name.encode())
profile, calls = json.loads(sys.argv[1]), [(name, number(name)) for name in sys.argv[2:]]
if profile:
    default = {"action": profile["defaultAction"], **profile}
    context = ctypes.c_void_p(library.seccomp_init(action(default, "defaultErrnoRet")))
    for rule in profile["syscalls"]:
        args = [Compare(a["index"], OPS[a["op"]], a["value"], a["valueTwo"]) for a in rule.get("args", ())]
        for name in rule["names"]:
            if number(name) >= 0 and action(rule, "errnoRet") != action(default, "defaultErrnoRet"):
                done = library.seccomp_rule_add_array(
                    context, action(rule, "errnoRet"), number(name), len(args), (Compare * len(args))(*args))
                assert done == 0, (name, done)
    assert library.seccomp_load(context) == 0
answers = {}
for name, one in calls:
    ctypes.set_errno(0)
    kernel.syscall(one, -1, -1, -1, -1, -1, -1)
    answers[name] = ctypes.get_errno()
print(json.dumps(answers))
"""
ALLOWED = (
    "bpf",
    "perf_event_open",
    "open_by_handle_at",
    "finit_module",
    "init_module",
    "memfd_create",
    "ptrace",
)
DENIED = {
    "kexec_load": 1,
    "setns": 38,
    "unshare": 38,
    "mount": 38,
    "chroot": 1,
    "clock_settime": 1,
    "umount2": 38,
    "pivot_root": 38,
}


def answers(profile: dict[str, Any] | None) -> dict[str, int]:
    """Error numbers of the calls, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(profile), *ALLOWED, *DENIED],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_the_kernel_lets_through_what_the_agent_needs_and_nothing_else() -> None:
    profile = json.loads(FILE.read_text())
    free, held = answers(None), answers(profile)
    assert {name: held[name] for name in ALLOWED} == {name: free[name] for name in ALLOWED}
    assert {name: held[name] for name in DENIED} == DENIED
    assert free["bpf"] != 38
    # And the profile without them would have refused the calls that it is there for.
    less = {**profile, "syscalls": profile["syscalls"][1:]}
    refused = answers(less)
    assert (refused["bpf"], refused["perf_event_open"]) == (38, 38)


@pytest.mark.skipif(not seccomp.SOURCE.exists(), reason=f"install {seccomp.PACKAGE} to compare")
def test_the_file_is_the_generated_one() -> None:
    assert FILE.read_text() == seccomp.text(), "run: make docs"


def test_it_is_made_for_the_charts_capabilities() -> None:
    helpers = (CHART / "templates/_helpers.tpl").read_text()
    for name in seccomp.CAPABILITIES:
        assert f'"{name}"' in helpers
    names = [name for rule in json.loads(FILE.read_text())["syscalls"] for name in rule["names"]]
    assert not {"mount", "unshare", "setns", "fsopen"} & set(names)


def test_the_page_names_the_file() -> None:
    page = (PROJECT / "docs/kubernetes.md").read_text()
    assert "examples/seccomp.json" in page
    values = yaml.safe_load(page.split("<!-- seccomp -->", 1)[1].split("```yaml\n", 1)[1].split("```", 1)[0])
    assert values["seccomp"] == {"type": "Localhost", "localhostProfile": "kmodgate.json"}
    assert Path(values["seccomp"]["localhostProfile"]).suffix == ".json"
