# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from kmodgate.signature import LATEST, PROFILES, profile_for

DEBIAN_12 = {"CONFIG_CRYPTO_RSA": "y", "CONFIG_CRYPTO_SHA256": "y", "CONFIG_CRYPTO_SHA512": "m"}


def test_a_profile_knows_at_least_what_it_has() -> None:
    for name, profile in PROFILES.items():
        assert profile.name == name
        assert profile.keys <= profile.keys_known, name
        assert {"sha256", "sha384", "sha512"} <= profile.digests, name
        assert "rsa" in profile.keys, name
        assert 8192 not in profile.rsa_bits, name


def test_sha1_only_where_a_kernel_is_named() -> None:
    assert "sha1" not in LATEST.digests
    assert "sha1" in PROFILES["7.2"].digests


@pytest.mark.parametrize(
    ("release", "like"),
    [
        ("5.4.0", "5.10"),
        ("5.10.0-46-amd64", "5.10"),
        ("5.15.0-91-generic", "6.1"),
        ("6.1.0-56-amd64", "6.1"),
        ("6.6.12-talos", "6.1"),
        ("6.12.117+deb13-amd64", "6.12"),
        ("6.10.1", "6.12"),
        ("7.2.13+deb14-amd64", "7.2"),
        ("nonsense", "5.10"),
    ],
)
def test_parsers_follow_the_release(release: str, like: str) -> None:
    profile = profile_for(release, (), {})
    assert profile.name == release
    assert profile.digests_known == PROFILES[like].digests_known
    assert profile.keys_known == PROFILES[like].keys_known


def test_p521_came_with_6_10() -> None:
    assert "ecdsa-nist-p521" not in profile_for("6.9.7", (), {}).keys
    assert "ecdsa-nist-p521" in profile_for("6.10.0", (), {}).keys


def test_what_was_not_built_is_not_there() -> None:
    profile = profile_for("6.1.0-56-amd64", (), DEBIAN_12)
    assert profile.keys == PROFILES["debian-12"].keys
    assert "sha512" in profile.digests
    assert "sha1" not in profile.digests


def test_what_is_registered_is_there_whatever_the_configuration_says() -> None:
    profile = profile_for("6.1.0", {"ecdsa-nist-p256", "sha1"}, DEBIAN_12)
    assert "ecdsa-nist-p256" in profile.keys
    assert "sha1" in profile.digests


def test_attributes_beside_ml_dsa_need_the_build_option() -> None:
    option = "CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA"
    assert profile_for("7.2.1", (), {option: "y"}).mldsa_attributes
    assert not profile_for("7.2.1", (), {}).mldsa_attributes
    assert not profile_for("6.12", (), {option: "y"}).mldsa_attributes
