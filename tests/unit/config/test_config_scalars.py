# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from kmodgate.config import scalars
from kmodgate.config.values import ListenAddress


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("250ms", 250_000_000),
        ("1s", 1_000_000_000),
        ("1.5s", 1_500_000_000),
        ("1s500ms", 1_500_000_000),
        ("5s", 5_000_000_000),
        ("100us", 100_000),
        ("100µs", 100_000),
        ("7ns", 7),
        ("0s", 0),
        ("0", 0),
        (0, 0),
    ],
)
def test_durations(text: object, nanoseconds: int) -> None:
    assert scalars.hold_timeout(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "-1s",
        "5.1s",
        "1h",
        "1 s",
        "s",
        "1s ",
        "\u0661s",
        "1m",
        True,
        False,
        None,
        1,
        0.5,
        [],
        "9" * 99 + "s",
    ],
)
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match="1s"):
        scalars.hold_timeout(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("64Mi", 64 << 20), ("1024KiB", 1 << 20), ("64 MiB", 64 << 20), (1 << 20, 1 << 20)],
)
def test_sizes(text: object, size: int) -> None:
    assert scalars.module_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "64", "64MB", "0", "257MiB", "1GiB", "-1MiB", "1.5MiB", True, None, 1.5]
)
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="64MiB"):
        scalars.module_size(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9464", "127.0.0.1", 9464),
        ("[::1]:80", "::1", 80),
        ("node-1.example:0", "node-1.example", 0),
        ("localhost:65535", "localhost", 65535),
    ],
)
def test_listen(text: str, host: str, port: int) -> None:
    address = scalars.listen(text)
    assert address == ListenAddress(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":9464",
        "9464",
        "::1:80",
        "[::1]",
        "[::g]:1",
        "a:65536",
        "1.2.3:1",
        "1.2.3.400:1",
        "-a:1",
        "a b:1",
        9464,
    ],
)
def test_no_listen_addresses(text: object) -> None:
    with pytest.raises(ValueError, match="write it like"):
        scalars.listen(text)


@pytest.mark.parametrize("key", ["gpu", "cloud.google.com/gke-accelerator", "a.b_c-D", "x" * 63])
def test_label_keys(key: str) -> None:
    assert scalars.label_key(key) == key


@pytest.mark.parametrize("key", ["", "/a", "a/", "A.com/x", "a b", "-a", "x" * 64, "a/b/c", f"{'a' * 254}/x"])
def test_no_label_keys(key: str) -> None:
    with pytest.raises(ValueError, match="label key"):
        scalars.label_key(key)


@pytest.mark.parametrize("value", [True, 1, None, "a b", "x" * 64, "-"])
def test_no_label_values(value: object) -> None:
    with pytest.raises(ValueError, match="label value"):
        scalars.label_value(value)


@pytest.mark.parametrize("value", ["", "a\0b", 3, None, "x" * 5000])
def test_no_paths(value: object) -> None:
    with pytest.raises(ValueError, match="path of a file"):
        scalars.path(value)


@pytest.mark.parametrize("text", ["/lib/modules/*/updates", "/opt/[a-z]?", "/x", "//x//"])
def test_directory_pattern(text: str) -> None:
    assert scalars.directory_pattern(text) == text


@pytest.mark.parametrize(
    "value", ["", "/", "//", "relative/dir", "/a/../b", "/a/**/b", "/a\0b", "/" + "a" * 5000, 7, None, ["/x"]]
)
def test_no_directory_pattern(value: object) -> None:
    with pytest.raises(ValueError, match="write it like"):
        scalars.directory_pattern(value)
