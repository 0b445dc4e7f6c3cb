# SPDX-License-Identifier: Apache-2.0
"""``kmodgate describe``: the node's policy as ``gcloud container node-pools describe`` prints it.

It reads the config and nothing else: no root, no kernel, no running agent.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from kmodgate.cli.options import examples, parse_labels
from kmodgate.config import EventSinks, NodeConfig, load, load_pin, resolve
from kmodgate.config.values import DEFAULT, LoadPinSetting
from kmodgate.model import Policy


@click.command(
    name="describe",
    epilog=examples(
        (
            "kmodgate describe --config node.yaml",
            "The policy in force, and the line that each value comes from.",
        ),
        ("kmodgate describe --config node.yaml --node-label pool=gpu", "… on the nodes of a pool."),
        (
            'kubectl exec POD -- kmodgate describe --config /etc/kmodgate/config.yaml --node "$NODE"',
            "… on a node of the cluster, by its labels there.",
        ),
    ),
)
@click.option(
    "--config",
    "path",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="The node config (YAML).",
)
@click.option(
    "--node-label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parse_labels,
    help="A label of the node, to pick its node pool. May be repeated.",
)
@click.option(
    "--node",
    metavar="NAME",
    help="Take the labels of this node from the API server; in a pod with NODE_NAME its own node's.",
)
@click.option(
    "--enable-kernel-module-signature-enforcement/--no-enable-kernel-module-signature-enforcement",
    "enforce",
    default=None,
    help="Override the policy, as the same flag of `kmodgate run` does.",
)
@click.option(
    "--output",
    type=click.Choice(["text", "json", "yaml"]),
    default="text",
    show_default=True,
    help="text is YAML, as gcloud prints it.",
)
def command(path: Path, labels: dict[str, str], node: str | None, enforce: bool | None, output: str) -> int:
    """Print the node's policy in the shape of the GKE API.

    Under `kmodgate:` stand the settings in force, and where each came from: a line of the
    file, a flag, or the default.
    """
    config = load(path)
    if enforce is not None:
        config = config.with_policy(Policy.ENFORCE if enforce else Policy.DO_NOT_ENFORCE)
    where = "--node-label"
    if node is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        node = os.environ.get("NODE_NAME")
    if node is not None and not labels and config.node_pools:
        from kmodgate.gap import STATE
        from kmodgate.kube.nodelabels import look_up_labels

        found, where = look_up_labels(node, STATE)
        labels = dict(found)
    document = describe(resolve(config, labels), where)
    if output == "json":
        click.echo(json.dumps(document, indent=2))
    else:
        yaml.safe_dump(document, sys.stdout, sort_keys=False, allow_unicode=True, width=1000)
    return 0


def describe(config: NodeConfig, labelled_by: str = "--node-label") -> dict[str, Any]:
    """A config that ``resolve`` gave, as plain data in GKE's shape.

    Args:
        config: the config.
        labelled_by: where the labels came from that picked its node pool.
    """
    ours: dict[str, Any] = {
        "mode": config.mode.value,
        "failurePolicy": config.failure_policy.value,
        "nodeType": config.node_type.value,
        "loadPin": (LoadPinSetting.ON if load_pin(config) else LoadPinSetting.OFF).value,
        "loadPinTrustedVerityDigests": None
        if config.load_pin_digests is None
        else str(config.load_pin_digests),
        # GKE's words for ENFORCE: LoadPin is enabled but configured to exclude modules.
        "loadPinExcludesModules": config.policy is Policy.ENFORCE,
        "pinnedRootExempt": config.pinned_root_exempt,
        "trust": {
            "kernelKeyrings": config.trust.kernel_keyrings,
            "certificates": [str(path) for path in config.trust.certificates],
            "requireValidity": config.trust.require_validity,
            "revoked": [str(path) for path in config.trust.revoked],
            "revokedCertificates": [str(path) for path in config.trust.revoked_certificates],
            "kernelProfile": config.trust.kernel_profile.value,
        },
        "holdTimeout": f"{config.hold_timeout_ns / 1_000_000:g}ms",
        "maxModuleSize": f"{config.max_module_size / (1 << 20):g}MiB",
        "preverify": (
            ["/lib/modules/$(uname -r)/updates"] if config.preverify is None else list(config.preverify)
        ),
        "listen": str(config.listen),
        "logging": {"level": config.log_level.value},
        "eventSinks": _event_sinks(config.event_sinks),
        "backend": config.backend.value,
        "onExit": config.on_exit.value,
        "kubernetes": {"events": config.kubernetes_events, "nodeCondition": config.kubernetes_condition},
        "cannotEnforce": config.cannot_enforce.value,
    }
    if config.pool is not None:
        ours["nodePool"] = config.pool
    ours["sources"] = _sources(config)
    chosen = next((pool for pool in config.node_pools if pool.name == config.pool), None)
    if chosen is not None:
        labels = ", ".join(f"{key}={value}" for key, value in chosen.match_labels)
        ours["sources"]["nodePool"] = f"{config.source}:{chosen.line}, for {labels} ({labelled_by})"
    if config.warnings:
        ours["warnings"] = list(config.warnings)
    return {
        "config": {
            "linuxNodeConfig": {
                "cgroupMode": config.cgroup_mode.value,
                "kernelModuleLoading": {"policy": config.policy.value},
            }
        },
        "kmodgate": ours,
    }


def _event_sinks(sinks: EventSinks) -> dict[str, Any]:
    """Those beside stdout; how to prove who we are is not shown, only where it stands."""
    shown: dict[str, Any] = {}
    if (file := sinks.file) is not None:
        size = f"{file.max_size / (1 << 20):g}MiB"
        shown["file"] = {"path": str(file.path), "maxSize": size, "maxFiles": file.max_files}
    if (otlp := sinks.otlp) is not None:
        shown["otlp"] = {
            "endpoint": otlp.endpoint,
            "caCertificate": None if otlp.ca_certificate is None else str(otlp.ca_certificate),
            "clientCertificate": None if otlp.client_certificate is None else str(otlp.client_certificate),
            "clientKey": None if otlp.client_key is None else str(otlp.client_key),
            "bearerTokenFile": None if otlp.bearer_token_file is None else str(otlp.bearer_token_file),
            "timeout": f"{otlp.timeout:g}s",
        }
    return shown


_KEYS = (
    "policy",
    "cgroupMode",
    "mode",
    "failurePolicy",
    "nodeType",
    "loadPin",
    "loadPinTrustedVerityDigests",
    "pinnedRootExempt",
    "trust.kernelKeyrings",
    "trust.certificates",
    "trust.requireValidity",
    "trust.revoked",
    "trust.revokedCertificates",
    "trust.kernelProfile",
    "holdTimeout",
    "maxModuleSize",
    "preverify",
    "listen",
    "logging.level",
    "backend",
    "kubernetes.events",
    "kubernetes.nodeCondition",
)


def _sources(config: NodeConfig) -> dict[str, str]:
    """Where each value came from."""
    sources = {key: config.origin(key) for key in _KEYS}
    if config.load_pin is LoadPinSetting.AUTO:
        sources["loadPin"] = f"{DEFAULT} for nodeType {config.node_type}"
    return sources
