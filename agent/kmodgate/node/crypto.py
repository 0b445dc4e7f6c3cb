# SPDX-License-Identifier: Apache-2.0
"""The algorithms that the running kernel has registered, from ``/proc/crypto``.

What is not listed may still come with a module that is loaded at first use; what is listed
works now. Source: ``crypto/proc.c``.
"""

from __future__ import annotations

from .paths import NodePaths, read_text


def parse_crypto(text: str) -> frozenset[str]:
    """Names of all registered algorithms (``sha256``, ``pkcs1(rsa,sha512)``). Never raises.

    An algorithm that failed its self-test is no algorithm.
    """
    names = set()
    for block in text.split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in map(_split, block.split("\n"))}
        if fields.get("name") and fields.get("selftest", "passed") == "passed":
            names.add(fields["name"])
    return frozenset(names)


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def read_crypto(paths: NodePaths) -> frozenset[str] | None:
    """Names of the registered algorithms; None when ``/proc/crypto`` cannot be read or is empty."""
    text = read_text(paths.proc / "crypto")
    return None if text is None else parse_crypto(text) or None
