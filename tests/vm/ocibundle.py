# SPDX-License-Identifier: Apache-2.0
"""From a pod as the chart renders it to what a container runtime is given: an OCI runtime spec.

It holds what containerd and CRI-O do for every container (masked and read-only paths, a sysfs that is
read-only, no devices but the harmless ones), and what the pod's securityContext says. Standard library
alone: it runs inside the guest.
"""

from __future__ import annotations

from typing import Any

# opencontainers/runtime-tools, containerd and CRI-O agree on these.
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_USUAL_MOUNTS = (
    ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "relatime", "ro"]),
)


def bundle(
    pod: dict[str, Any],
    container: dict[str, Any],
    image: dict[str, Any],
    *,
    volumes: dict[str, str],
    seccomp: dict[str, Any] | None,
    without: str | None = None,
) -> dict[str, Any]:
    """The runtime spec of one container of a pod.

    Args:
        pod: the pod's ``spec``.
        container: one of its containers.
        image: the image's config: ``Entrypoint``, ``Env``.
        volumes: directory of the node for each volume that is no hostPath.
        seccomp: the filter, or None for none.
        without: a capability to take away.
    """
    context = container["securityContext"]
    names = [f"CAP_{name}" for name in context["capabilities"].get("add", ()) if name != without]
    environment = [f"{item['name']}={item['value']}" for item in container.get("env", ()) if "value" in item]
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "hostname": "pod",
        "process": {
            "terminal": False,
            "cwd": "/",
            "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"]},
            "args": container.get("command", image["Entrypoint"]) + container.get("args", []),
            "env": [*image["Env"], *environment, "NODE_NAME=guest"],
            "noNewPrivileges": not context["allowPrivilegeEscalation"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1048576}],
            "oomScoreAdj": -997,
        },
        "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"]},
        "mounts": [
            {"destination": at, "type": kind, "source": source, "options": options}
            for at, kind, source, options in _USUAL_MOUNTS
        ],
        "linux": {
            # A network of its own is left out: nobody would route to it here.
            "namespaces": [{"type": kind} for kind in ("mount", "ipc", "uts", "cgroup")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READONLY),
            "rootfsPropagation": "rslave",
        },
    }
    if not pod.get("hostPID"):
        spec["linux"]["namespaces"].append({"type": "pid"})
    if seccomp is not None:
        spec["linux"]["seccomp"] = seccomp
    host = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    for mount in container["volumeMounts"]:
        spread = "rslave" if mount.get("mountPropagation") == "HostToContainer" else "rprivate"
        spec["mounts"].append(
            {
                "destination": mount["mountPath"],
                "type": "bind",
                "source": {**host, **volumes}[mount["name"]],
                "options": ["rbind", spread, "ro" if mount.get("readOnly") else "rw"],
            }
        )
    return spec


def seccomp_of(profile: dict[str, Any], capabilities: list[str], machine: str) -> dict[str, Any]:
    """A runtime's default profile (the format of Docker and CRI-O) for one container.

    Args:
        profile: the file's content.
        capabilities: what the container has, with ``CAP_``.
        machine: ``uname -m``.
    """
    words = {"x86_64": "amd64", "aarch64": "arm64"}
    archs = next(
        [entry["architecture"], *(entry["subArchitectures"] or ())]
        for entry in profile["archMap"]
        if entry["architecture"] == f"SCMP_ARCH_{machine.upper()}"
    )
    rules = []
    for rule in profile["syscalls"]:
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        here = words.get(machine, machine)
        if wanted.get("arches") and here not in wanted["arches"]:
            continue
        if here in (unwanted.get("arches") or ()):
            continue
        if not set(wanted.get("caps") or ()) <= set(capabilities):
            continue
        if set(unwanted.get("caps") or ()) & set(capabilities):
            continue
        kept = {"names": rule["names"], "action": rule["action"]}
        if rule.get("args"):
            kept["args"] = rule["args"]
        if rule.get("errnoRet") is not None:
            kept["errnoRet"] = rule["errnoRet"]
        rules.append(kept)
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": archs,
        "syscalls": rules,
    }
