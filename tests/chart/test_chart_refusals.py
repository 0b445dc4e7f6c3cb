# SPDX-License-Identifier: Apache-2.0
"""Values that cannot be meant are refused by every Helm, with a message that names them."""

from __future__ import annotations

import pytest
from tests.chart.helm import Helm, HelmError

POOL = '"nodeSelector":{"a":"b"}'


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ('policy="ENFORCE"', ["policy", "ENFORCE_SIGNED_MODULES"]),
        (
            'enableKernelModuleSignatureEnforcement="yes"',
            ["enableKernelModuleSignatureEnforcement", "boolean"],
        ),
        ('mode="dry-run"', ["mode", "audit"]),
        ('polcy="ENFORCE_SIGNED_MODULES"', ["polcy"]),
        ('trust.certificate=["a.pem"]', ["certificate"]),
        ('trust.certificates=["/etc/a.pem"]', ["trust", "certificates"]),
        ('files={"../x":"y"}', ["../x"]),
        ('nodePools=[{"name":"a"}]', ["nodePools", "nodeSelector"]),
        ('nodePools=[{"name":"a","nodeSelector":{}}]', ["nodePools", "nodeSelector"]),
        ('nodePools=[{"name":"a","nodeSelector":{"a":true}}]', ["nodePools", "nodeSelector"]),
        (f'nodePools=[{{"name":"a",{POOL},"holdTimeout":"1s"}}]', ["nodePools", "holdTimeout"]),
        ('holdTimeout="250"', ["holdTimeout"]),
        ('hardenedToken="secret"', ["hardenedToken"]),
        ("metrics.port=70000", ["metrics", "port"]),
        ("metrics.port=null", ["port"]),
        ('metrics.runbookBaseUrl="docs.example/runbooks"', ["runbookBaseUrl"]),
        ('metrics.runbookBaseUrl="https://docs.example/a\\"b"', ["runbookBaseUrl"]),
        ('image.digest="sha256:1"', ["digest"]),
        ('extraCapabilities=["CAP_BPF"]', ["extraCapabilities"]),
        ('extraCapabilities=["ALL"]', ["extraCapabilities"]),
        ("updateStrategy.maxUnavailable=0", ["maxUnavailable"]),
        ('updateStrategy.maxSurge="10%"', ["maxSurge"]),
        ('seccomp.type="Privileged"', ["seccomp", "RuntimeDefault"]),
        ("terminationGracePeriodSeconds=0", ["terminationGracePeriodSeconds"]),
    ],
)
def test_the_schema_refuses(helm: Helm, sets: str, said: list[str]) -> None:
    with pytest.raises(HelmError) as refused:
        helm.render(sets=(sets,))
    assert "values don't meet the specifications of the schema" in str(refused.value)
    for word in said:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (('trust.certificates=["a.pem"]',), 'trust.certificates names the file "a.pem"'),
        (('loadPinTrustedVerityDigests="d"',), 'loadPinTrustedVerityDigests names the file "d"'),
        (
            (f'nodePools=[{{"name":"a",{POOL},"trust":{{"revoked":["r"]}}}}]',),
            'nodePools (a).trust.revoked names the file "r"',
        ),
        (('cgroupMode="CGROUP_MODE_V1"',), "requires cgroup v2"),
        (
            (f'nodePools=[{{"name":"a",{POOL},"cgroupMode":"CGROUP_MODE_V1"}}]',),
            "node pool a: ENFORCE_SIGNED_MODULES",
        ),
        (("trust.kernelKeyrings=false",), "trusts nothing"),
        (
            (f'nodePools=[{{"name":"a",{POOL},"trust":{{"kernelKeyrings":false}}}}]',),
            "node pool a: ENFORCE_SIGNED_MODULES with trust.kernelKeyrings false",
        ),
        ((f'nodePools=[{{"name":"a",{POOL}}},{{"name":"a",{POOL}}}]',), 'the name "a" stands twice'),
        (('files={"a":"1"}', 'binaryFiles={"a":"MQ=="}'), "in files and in binaryFiles"),
        (('files={"config.yaml":"x"}',), "config.yaml is the name of the agent's own config"),
        (
            ("metrics.podMonitor.enabled=true", "metrics.serviceMonitor.enabled=true"),
            "would both scrape every pod",
        ),
        (("serviceAccount.create=false",), "name the account in serviceAccount.name"),
        (('seccomp.type="Localhost"',), "name the profile in seccomp.localhostProfile"),
        (('appArmor.type="Localhost"',), "name the profile in appArmor.localhostProfile"),
    ],
)
def test_what_does_not_go_together_is_refused(helm: Helm, sets: tuple[str, ...], said: str) -> None:
    with pytest.raises(HelmError) as refused:
        helm.render(sets=sets)
    assert said in str(refused.value)


def test_an_older_cluster_is_refused(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"requires kubeVersion: >=1\.25"):
        helm.render(kubernetes="1.24.0")


def test_a_pool_may_trust_its_own_keys_alone(newest: Helm) -> None:
    pool = f'{{"name":"a",{POOL},"trust":{{"kernelKeyrings":false,"certificates":["a.pem"]}}}}'
    assert newest.render(sets=('files={"a.pem":"x"}', f"nodePools=[{pool}]"))
