# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from kmodgate.config import (
    BackendChoice,
    ConfigProblems,
    ListenAddress,
    LoadPinSetting,
    LogLevel,
    NodeConfig,
    TrustConfig,
    parse,
)
from kmodgate.errors import ConfigError
from kmodgate.model import CgroupMode, FailurePolicy, Mode, NodeType, Policy

EXAMPLES = Path(__file__).parents[3] / "docs/examples"


def read(text: str) -> NodeConfig:
    return parse(textwrap.dedent(text).encode(), source="node.yaml", directory=Path("/etc/kmodgate"))


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.source == "node.yaml"
    return caught.value


def lines_of(text: str) -> dict[int | None, str]:
    error = refused(text)
    assert isinstance(error, ConfigProblems)
    assert str(error).split("\n") == [str(problem) for problem in error.problems]
    return {problem.line: problem.message for problem in error.problems}


def test_an_empty_mapping_means_all_defaults() -> None:
    config = read("kmodgate: {}")
    assert config == NodeConfig()
    assert config.policy is Policy.UNSPECIFIED
    assert config.warnings == ()
    assert config.origin("policy") == "default"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("section", ["linuxNodeConfig", "linuxConfig"])
@pytest.mark.parametrize("loading", ["kernelModuleLoading", "nodeKernelModuleLoading"])
def test_every_place_where_gke_writes_it(*, wrapped: bool, section: str, loading: str) -> None:
    text = f"{section}: {{{loading}: {{policy: ENFORCE_SIGNED_MODULES}}, cgroupMode: CGROUP_MODE_V2}}"
    config = read(f"config: {{{text}}}" if wrapped else text)
    assert (config.policy, config.cgroup_mode) == (Policy.ENFORCE, CgroupMode.V2)


def test_two_places_that_say_different_things_of_different_keys() -> None:
    config = read(
        """
        linuxConfig: {cgroupMode: CGROUP_MODE_V2}
        config: {linuxNodeConfig: {nodeKernelModuleLoading: {policy: ENFORCE_SIGNED_MODULES}}}
        """
    )
    assert (config.policy, config.cgroup_mode) == (Policy.ENFORCE, CgroupMode.V2)


def test_a_whole_node_pool_as_gcloud_describes_it() -> None:
    config = read(
        """
        autoscaling: {}
        config:
          diskSizeGb: 100
          effectiveCgroupMode: EFFECTIVE_CGROUP_MODE_V2
          labels: {team: storage}
          linuxNodeConfig:
            hugepages: {hugepageSize2m: 1024}
            nodeKernelModuleLoading:
              policy: ENFORCE_SIGNED_MODULES
            swapConfig: {enabled: true}
            sysctls:
              net.core.somaxconn: '2048'
            transparentHugepageDefrag: TRANSPARENT_HUGEPAGE_DEFRAG_NEVER
            transparentHugepageEnabled: TRANSPARENT_HUGEPAGE_ENABLED_ALWAYS
          machineType: e2-standard-4
          oauthScopes: [https://www.googleapis.com/auth/monitoring]
        etag: 9e0a5b54
        initialNodeCount: 3
        name: storage
        status: RUNNING
        version: 1.34.1-gke.100
        """
    )
    assert config.policy is Policy.ENFORCE
    assert config.origin("policy") == "node.yaml:10"


def test_a_node_system_config() -> None:
    config = read(
        """
        kubeletConfig: {cpuManagerPolicy: static}
        linuxConfig:
          sysctl: {net.core.somaxconn: '2048'}
          hugepageConfig: {hugepage_size2m: 1024}
          kernelModuleLoading: {policy: DO_NOT_ENFORCE_SIGNED_MODULES}
        """
    )
    assert config.policy is Policy.DO_NOT_ENFORCE


def test_the_same_policy_twice_is_one_policy() -> None:
    text = "linuxConfig: {kernelModuleLoading: {policy: %s}, nodeKernelModuleLoading: {policy: %s}}"
    words = "ENFORCE_SIGNED_MODULES", "DO_NOT_ENFORCE_SIGNED_MODULES"
    assert read(text % (words[0], words[0])).policy is Policy.ENFORCE
    assert "keep one of the two" in str(refused(text % words))


def test_all_keys_of_ours() -> None:
    config = read(
        """
        kmodgate:
          mode: audit
          failurePolicy: Ignore
          nodeType: TPU
          loadPin: "off"
          loadPinTrustedVerityDigests: digests
          pinnedRootExempt: true
          trust:
            kernelKeyrings: false
            certificates: [vendor.pem, /srv/site.der]
            requireValidity: true
            revoked: [revoked.txt]
          holdTimeout: 1s500ms
          maxModuleSize: 128MiB
          listen: "[::]:9000"
          logging: {level: debug}
          backend: bpf-lsm
        """
    )
    assert config == NodeConfig(
        mode=Mode.AUDIT,
        failure_policy=FailurePolicy.IGNORE,
        node_type=NodeType.TPU,
        load_pin=LoadPinSetting.OFF,
        load_pin_digests=Path("/etc/kmodgate/digests"),
        pinned_root_exempt=True,
        trust=TrustConfig(
            kernel_keyrings=False,
            certificates=(Path("/etc/kmodgate/vendor.pem"), Path("/srv/site.der")),
            require_validity=True,
            revoked=(Path("/etc/kmodgate/revoked.txt"),),
        ),
        hold_timeout_ns=1_500_000_000,
        max_module_size=128 << 20,
        listen=ListenAddress("::", 9000),
        log_level=LogLevel.DEBUG,
        backend=BackendChoice.BPF_LSM,
    )
    assert config.hold_timeout == 1.5
    assert str(config.listen) == "[::]:9000"
    assert config.origin("trust.revoked") == "node.yaml:13"
    assert config.origin("logging.level") == "node.yaml:17"
    assert len(config.warnings) == 5


@pytest.mark.parametrize(
    ("word", "meaning"),
    [("on", "on"), ("off", "off"), ("true", "on"), ("false", "off"), ("'on'", "on"), ("auto", "auto")],
)
def test_load_pin_survives_yaml_booleans(word: str, meaning: str) -> None:
    assert read(f"kmodgate: {{loadPin: {word}}}").load_pin == meaning


def test_unknown_keys_name_their_line_and_their_neighbour() -> None:
    found = lines_of(
        """\
        kmodgate:
          mod: audit
          certificates: [a.pem]
          policy: ENFORCE_SIGNED_MODULES
          qqq: 1
        linuxNodeConfig:
          sysctlz: {}
        nonsense: 1
        """
    )
    assert found[2] == "unknown key 'mod' in kmodgate; did you mean mode?"
    assert found[3] == "unknown key 'certificates' in kmodgate; it belongs under kmodgate.trust"
    assert (
        found[4] == "unknown key 'policy' in kmodgate; it belongs under linuxNodeConfig.kernelModuleLoading"
    )
    assert found[5].startswith("unknown key 'qqq' in kmodgate; allowed here: mode, failurePolicy")
    assert found[7] == "unknown key 'sysctlz' in linuxNodeConfig; did you mean sysctl?"
    assert found[8] == "unknown key 'nonsense'; allowed here: config, linuxNodeConfig, linuxConfig, kmodgate"


def test_wrong_types_and_words_say_what_to_write() -> None:
    found = lines_of(
        """\
        kmodgate:
          mode: enforced
          pinnedRootExempt: "yes"
          failurePolicy: fail
          nodeType: 3
          loadPin: maybe
          trust: [a.pem]
          holdTimeout: 6s
          maxModuleSize: big
          listen: localhost
          logging: {level:}
        linuxNodeConfig:
          kernelModuleLoading:
            policy: ENFORCE
        """
    )
    assert (
        found[2]
        == "kmodgate.mode: 'enforced' is not known, did you mean enforce?; write one of: enforce, audit"
    )
    assert found[3] == "kmodgate.pinnedRootExempt: must be true or false"
    assert found[4].endswith("did you mean Fail?; write one of: Fail, Ignore")
    assert found[5] == "kmodgate.nodeType: must be a word, not a number; write one of: CPU, TPU, GPU"
    assert found[6] == "kmodgate.loadPin: 'maybe' is not known; write one of: auto, on, off"
    assert found[7].startswith("kmodgate.trust: must hold keys of its own")
    assert "5s at most" in found[8]
    assert found[9].startswith("kmodgate.maxModuleSize: 'big' is no size")
    assert found[10].startswith("kmodgate.listen: 'localhost' is not host:port")
    assert found[11] == "kmodgate.logging.level: has no value; write one or remove the key"
    assert found[14].endswith(
        "write one of: POLICY_UNSPECIFIED, ENFORCE_SIGNED_MODULES, DO_NOT_ENFORCE_SIGNED_MODULES"
    )


@pytest.mark.parametrize(
    "text",
    [
        "kmodgate:",
        "linuxNodeConfig: {kernelModuleLoading: {policy: }}",
        "linuxNodeConfig:",
        "kmodgate: {holdTimeout: }",
    ],
)
def test_a_forgotten_value_is_not_a_default(text: str) -> None:
    assert "has no value; write one or remove the key" in str(refused(text))


@pytest.mark.parametrize("spelling", ["kernelModuleLoading", "nodeKernelModuleLoading"])
def test_enforcement_on_cgroup_v1_is_refused_with_gkes_reason(spelling: str) -> None:
    error = refused(
        f"linuxNodeConfig:\n  {spelling}: {{policy: ENFORCE_SIGNED_MODULES}}\n  cgroupMode: CGROUP_MODE_V1\n"
    )
    assert error.line == 3
    assert "kernel module signature enforcement requires cgroup v2" in error.message


def test_cgroup_v1_goes_with_every_other_policy() -> None:
    assert read("linuxNodeConfig: {cgroupMode: CGROUP_MODE_V1}").cgroup_mode is CgroupMode.V1


def test_an_empty_trust_set_under_enforce_is_refused() -> None:
    text = """\
        linuxConfig: {kernelModuleLoading: {policy: ENFORCE_SIGNED_MODULES}}
        kmodgate:
          trust: {kernelKeyrings: false, certificates: []}
        """
    error = refused(text)
    assert error.line == 3
    assert "trusts nothing" in error.message
    assert read(text.replace("[]", "[a.pem]")).trust.certificates == (Path("/etc/kmodgate/a.pem"),)
    assert read(text.replace("ENFORCE_", "DO_NOT_ENFORCE_")).trust.is_empty


def test_a_certificate_in_place_of_its_path() -> None:
    error = refused("kmodgate: {trust: {certificates: ['-----BEGIN CERTIFICATE-----']}}")
    assert "put the certificate into a file" in error.message


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_the_examples_are_good_configs(name: str) -> None:
    parse((EXAMPLES / name).read_bytes(), source=name)


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.yaml"))) >= 3
