# SPDX-License-Identifier: Apache-2.0
"""``kmodgate trust``: the trust anchors of a node, and those inside a kernel image."""

from __future__ import annotations

import click

from kmodgate.cli.trust_extract import extract_command
from kmodgate.cli.trust_list import list_command


@click.group("trust", short_help="List a node's trust anchors, or take a kernel's out of its image.")
def command() -> None:
    """List a node's trust anchors, or take a kernel's out of its image."""


command.add_command(list_command)
command.add_command(extract_command)
