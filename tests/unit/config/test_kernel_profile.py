# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from kmodgate.config import KernelProfileChoice, parse
from kmodgate.errors import ConfigError
from kmodgate.settings import profile_of_config
from kmodgate.signature import PROFILES


def test_its_words_are_the_profiles() -> None:
    assert [choice.value for choice in KernelProfileChoice] == ["running", *PROFILES]


def test_the_running_kernel_is_the_default() -> None:
    config = parse(b"kmodgate: {}", source="node.yaml")
    assert config.trust.kernel_profile is KernelProfileChoice.RUNNING
    assert profile_of_config(config).name not in PROFILES


def test_a_profile_is_chosen_by_name() -> None:
    config = parse(b'kmodgate: {trust: {kernelProfile: "6.1"}}', source="node.yaml")
    assert profile_of_config(config) is PROFILES["6.1"]


def test_an_unknown_profile_is_an_error_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"node.yaml:1: .*kernelProfile.*debian-12"):
        parse(b"kmodgate: {trust: {kernelProfile: debian-9}}", source="node.yaml")


def test_a_number_is_told_to_be_quoted() -> None:
    with pytest.raises(ConfigError, match="quote"):
        parse(b"kmodgate: {trust: {kernelProfile: 6.1}}", source="node.yaml")
