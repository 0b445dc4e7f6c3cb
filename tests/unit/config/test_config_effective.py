# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from kmodgate.config import NodeConfig, parse, resolve, to_effective_policy
from kmodgate.config.values import TrustConfig
from kmodgate.errors import ConfigError
from kmodgate.model import EffectivePolicy, FailurePolicy, Mode, NodeType, Policy

POOLS = b"""\
linuxNodeConfig: {kernelModuleLoading: {policy: ENFORCE_SIGNED_MODULES}}
kmodgate:
  trust: {certificates: [site.pem]}
  nodePools:
  - name: gpu
    nodeSelector: {accelerator: nvidia, zone: a}
    nodeType: GPU
    policy: DO_NOT_ENFORCE_SIGNED_MODULES
  - name: zone
    matchLabels: {zone: a}
    mode: audit
    loadPin: on
    trust: {kernelKeyrings: false}
"""


def read(text: bytes) -> NodeConfig:
    return parse(text, source="f", directory=Path("/c"))


@pytest.mark.parametrize("policy", [Policy.UNSPECIFIED, Policy.DO_NOT_ENFORCE])
@pytest.mark.parametrize(
    ("node_type", "on"), [(NodeType.CPU, True), (NodeType.TPU, True), (NodeType.GPU, False)]
)
def test_load_pin_follows_the_node_type(policy: Policy, node_type: NodeType, on: bool) -> None:
    config = NodeConfig(policy=policy, node_type=node_type)
    assert to_effective_policy(config) == EffectivePolicy(policy, Mode.ENFORCE, load_pin=on)


@pytest.mark.parametrize("node_type", list(NodeType))
def test_load_pin_by_name_wins(node_type: NodeType) -> None:
    text = b"kmodgate: {loadPin: %s, nodeType: %s}"
    on, off = (read(text % (word, node_type.encode())) for word in (b"on", b"off"))
    assert to_effective_policy(on).load_pin is True
    assert to_effective_policy(off).load_pin is False


def test_the_effective_policy_carries_the_rest() -> None:
    config = read(b"kmodgate: {mode: audit, failurePolicy: Ignore, pinnedRootExempt: true}")
    assert to_effective_policy(config) == EffectivePolicy(
        Policy.UNSPECIFIED,
        Mode.AUDIT,
        load_pin=True,
        pinned_root_exempt=True,
        failure_policy=FailurePolicy.IGNORE,
    )


def test_the_first_pool_that_matches_counts() -> None:
    config = read(POOLS)
    gpu = resolve(config, {"accelerator": "nvidia", "zone": "a", "other": "x"})
    assert (gpu.pool, gpu.policy, gpu.node_type) == ("gpu", Policy.DO_NOT_ENFORCE, NodeType.GPU)
    assert gpu.trust == config.trust
    assert gpu.origin("policy") == "f:8"

    zone = resolve(config, {"zone": "a"})
    assert (zone.pool, zone.policy, zone.mode) == ("zone", Policy.ENFORCE, Mode.AUDIT)
    # What the pool leaves out stays as it is, inside trust too.
    assert zone.trust == TrustConfig(kernel_keyrings=False, certificates=(Path("/c/site.pem"),))
    assert zone.origin("trust.certificates") == "f:3"


@pytest.mark.parametrize("labels", [{}, {"zone": "b"}, {"accelerator": "nvidia"}])
def test_no_pool_matches(labels: dict[str, str]) -> None:
    config = read(POOLS)
    assert resolve(config, labels) is config


@pytest.mark.parametrize(
    ("pools", "line", "words"),
    [
        (b"[{name: a, nodeSelector: {b: c}}, {name: a, nodeSelector: {b: d}}]", 1, "stands twice"),
        (b"[{name: a}]", 1, "needs nodeSelector"),
        (b"[{name: a, nodeSelector: {b: c}, matchLabels: {b: c}}]", 1, "only one of them"),
        (b"[{name: a, nodeSelector: {}}]", 1, "at least one label"),
        (b"[{name: a, nodeSelector: {b: true}}]", 1, "put it in quotes"),
        (b"[{name: a, nodeSelector: {b: c}, listen: 'x:1'}]", 1, "it belongs under kmodgate"),
        (b"[{name: 'a b', nodeSelector: {b: c}}]", 1, "is no name"),
        (b"[{nodeSelector: {b: c}}]", 1, "has no name"),
        (b"[3]", 1, "must hold keys"),
        (
            (
                b"\n  - {name: a, nodeSelector: {b: c}, policy: ENFORCE_SIGNED_MODULES,"
                b"\n     cgroupMode: CGROUP_MODE_V1}"
            ),
            3,
            "node pool a: ENFORCE_SIGNED_MODULES does not go with",
        ),
        (
            (
                b"\n  - {name: a, nodeSelector: {b: c}, trust: {kernelKeyrings: false},"
                b"\n     policy: ENFORCE_SIGNED_MODULES}"
            ),
            2,
            "node pool a: ENFORCE_SIGNED_MODULES with kernelKeyrings false",
        ),
    ],
)
def test_pools_that_cannot_be(pools: bytes, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(b"kmodgate:\n  nodePools: " + pools)
    assert caught.value.line == line + 1
    assert words in str(caught.value)


def test_a_flag_wins_over_file_and_pools() -> None:
    config = read(POOLS).with_policy(Policy.ENFORCE)
    assert config.origin("policy") == "flag"
    gpu = resolve(config, {"accelerator": "nvidia", "zone": "a"})
    assert (gpu.policy, gpu.pool, gpu.origin("policy")) == (Policy.ENFORCE, "gpu", "flag")


def test_a_flag_is_checked_like_the_file() -> None:
    with pytest.raises(ConfigError, match="requires cgroup v2"):
        read(b"linuxConfig: {cgroupMode: CGROUP_MODE_V1}").with_policy(Policy.ENFORCE)
    with pytest.raises(ConfigError, match=r"node pool a: .*trusts nothing"):
        read(
            b"kmodgate: {nodePools: [{name: a, nodeSelector: {b: c}, trust: {kernelKeyrings: false}}]}"
        ).with_policy(Policy.ENFORCE)


def test_configs_are_equal_when_they_mean_the_same() -> None:
    assert parse(b"\n\nkmodgate: {mode: enforce}", source="a") == parse(b"kmodgate: {}", source="b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"kmodgate: {mode: audit}", "nothing is denied"),
        (b"kmodgate: {pinnedRootExempt: true}", "has no effect"),
        (b"kmodgate: {loadPin: off, loadPinTrustedVerityDigests: d}", "has no effect unless LoadPin is on"),
        (b"kmodgate: {nodeType: GPU, loadPinTrustedVerityDigests: d}", "has no effect unless LoadPin is on"),
        (b"kmodgate: {failurePolicy: Ignore}", "are allowed"),
        (b"kmodgate: {trust: {requireValidity: true}}", "wrong clock"),
    ],
)
def test_warnings(text: bytes, words: str) -> None:
    (warning,) = read(text).warnings
    assert words in warning


def test_an_exempt_writable_root_is_warned_of_under_enforce() -> None:
    config = read(b"kmodgate: {pinnedRootExempt: true}").with_policy(Policy.ENFORCE)
    assert "can load any module" in config.warnings[0]


def test_trusted_digests_are_warned_of_where_nothing_depends_on_the_root() -> None:
    plain = read(b"kmodgate: {loadPinTrustedVerityDigests: d}")
    assert plain.warnings == ()
    (warning,) = plain.with_policy(Policy.ENFORCE).warnings
    assert "has no effect" in warning
    exempt = read(b"kmodgate: {loadPin: off, loadPinTrustedVerityDigests: d, pinnedRootExempt: true}")
    assert not [w for w in exempt.with_policy(Policy.ENFORCE).warnings if "Digests" in w]


def test_a_pool_has_digests_of_its_own() -> None:
    config = parse(
        b"kmodgate:\n  loadPinTrustedVerityDigests: all\n  nodePools:\n"
        b"    - {name: a, nodeSelector: {b: c}, loadPinTrustedVerityDigests: /own}\n",
        source="node.yaml",
        directory=Path("/etc"),
    )
    assert config.files == (Path("/etc/all"),)
    pool = resolve(config, {"b": "c"})
    assert pool.load_pin_digests == Path("/own")
    assert pool.origin("loadPinTrustedVerityDigests") == "node.yaml:4"
