# SPDX-License-Identifier: Apache-2.0
"""Makes docs/examples/seccomp.json: ``python -m tests.chart.seccomp > docs/examples/seccomp.json``.

It is the default profile of containers/common, from Debian's package, as a runtime would apply it to the
chart's pod, with two calls more: ``bpf`` and ``perf_event_open``, which older profiles tie to ``SYS_ADMIN``;
and without mounts and namespaces, which containerd's profile ties to it as well and this one does not.
The conditions are resolved, because containerd takes a profile of the kubelet's as it stands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tests.vm.ocibundle import seccomp_of

SOURCE: Final = Path("/usr/share/containers/seccomp.json")
PACKAGE: Final = "golang-github-containers-common"
CAPABILITIES: Final = ("BPF", "PERFMON", "SYS_MODULE", "SYS_PTRACE", "DAC_READ_SEARCH", "NET_ADMIN")
"""Those of the chart, hardened nodes included."""
MACHINES: Final = ("x86_64", "aarch64")
_CALLS: Final = ("bpf", "perf_event_open")
_NOT: Final = {
    *("mount", "mount_setattr", "move_mount", "open_tree", "pivot_root", "umount", "umount2"),
    *("fsconfig", "fsmount", "fsopen", "fspick", "setns", "unshare"),
}


def profile() -> dict[str, Any]:
    """The whole file. Calls that a machine does not have are nothing to its runtime."""
    source = json.loads(SOURCE.read_text())
    given = [f"CAP_{name}" for name in CAPABILITIES]
    made = [seccomp_of(source, given, machine) for machine in MACHINES]
    first = made[0]
    allowed: list[dict[str, Any]] = [{"names": list(_CALLS), "action": "SCMP_ACT_ALLOW"}]
    for rule in [rule for each in made for rule in each["syscalls"]]:
        names = [name for name in rule["names"] if name not in _NOT.union(_CALLS)]
        kept = {**rule, "names": names}
        if names and kept not in allowed:
            allowed.append(kept)
    # Without a list of architectures there is the machine's own alone; the agent needs no other.
    return {
        "defaultAction": first["defaultAction"],
        "defaultErrnoRet": first["defaultErrnoRet"],
        "syscalls": allowed,
    }


def text() -> str:
    """One line for each rule."""
    made = profile()
    rules = ",\n".join(f"    {json.dumps(rule)}" for rule in made.pop("syscalls"))
    head = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in made.items())
    return f'{{\n{head},\n  "syscalls": [\n{rules}\n  ]\n}}\n'


if __name__ == "__main__":
    print(text(), end="")
