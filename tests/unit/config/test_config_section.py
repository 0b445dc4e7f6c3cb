# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kmodgate.config import ConfigProblems, parse
from kmodgate.config.schema import MAX_LABELS, MAX_PATHS, MAX_POOLS, Kmodgate, Pool, Trust, keys, places
from kmodgate.config.section import MissingKeyError, UnknownKeyError, WrongInsideError

MANY_LABELS = json.dumps({f"label{n}": "x" for n in range(MAX_LABELS + 1)})


def messages(text: str) -> list[str]:
    with pytest.raises(ConfigProblems) as caught:
        parse(text.encode(), source="f")
    return [problem.message for problem in caught.value.problems]


def test_a_key_that_is_not_given_is_none() -> None:
    trust = Trust.read({"kernelKeyrings": False})
    assert (trust.kernel_keyrings, trust.certificates) == (False, None)
    assert trust.given == {"kernelKeyrings": False}


def test_a_section_inherits_keys_and_shares_none() -> None:
    assert keys(Pool)[:2] == keys(Kmodgate)[:2] == ["mode", "failurePolicy"]
    assert "holdTimeout" not in keys(Pool)
    assert "name" not in keys(Kmodgate)


def test_everything_wrong_is_found_at_once_with_its_path() -> None:
    with pytest.raises(WrongInsideError) as caught:
        Kmodgate.read(
            {
                "trust": {"revoked": ["", "a", 3], "kernelKeyrings": 1},
                "x": 1,
                "nodePools": [{"matchLabels": {"a": "b"}}],
            }
        )
    findings = {path: type(error) for path, error in caught.value.findings}
    assert findings == {
        ("trust", "kernelKeyrings"): ValueError,
        ("trust", "revoked", 0): ValueError,
        ("trust", "revoked", 2): ValueError,
        ("nodePools", 0, "name"): MissingKeyError,
        ("x",): UnknownKeyError,
    }


@pytest.mark.parametrize("value", [0, 1, "true", "yes", [], {}])
def test_nothing_is_converted_to_a_boolean(value: object) -> None:
    with pytest.raises(WrongInsideError):
        Trust.read({"requireValidity": value})


def test_every_section_is_found_by_its_path() -> None:
    found = dict(places())
    assert found["kmodgate", "nodePools", "trust"] is Trust
    assert ("config", "linuxConfig", "nodeKernelModuleLoading") in found
    assert len(found) == 24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"trust: {{revoked: [{'a,' * (MAX_PATHS + 1)}]}}",
            f"kmodgate.trust.revoked: has more than {MAX_PATHS} entries; shorten it",
        ),
        (
            f"nodePools: [{'{},' * (MAX_POOLS + 1)}]",
            f"kmodgate.nodePools: has more than {MAX_POOLS} entries; shorten it",
        ),
        (
            f"nodePools: [{{name: a, nodeSelector: {MANY_LABELS}}}]",
            f"kmodgate.nodePools[0].nodeSelector: has more than {MAX_LABELS} labels; shorten it",
        ),
    ],
)
def test_lists_are_bounded(text: str, message: str) -> None:
    assert messages(f"kmodgate: {{{text}}}") == [message]


@pytest.mark.parametrize("name", ["''", "a/b", "-a", "'a\n\n'", "x" * 64])
def test_no_names(name: str) -> None:
    (message,) = messages(f"kmodgate: {{nodePools: [{{name: {name}, nodeSelector: {{a: b}}}}]}}")
    assert "is no name; use up to 63 letters" in message


def test_a_good_config_is_read_without_what_only_messages_need() -> None:
    script = (
        "import sys; from kmodgate.config import parse; parse(b'kmodgate: {}', source='f'); "
        "print(*sorted({'difflib', 'fractions', 'importlib.metadata'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
