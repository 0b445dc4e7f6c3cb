# SPDX-License-Identifier: Apache-2.0
"""The agent's socket on the node, for root: ``kmodgate status`` and ``kmodgate events``.

``protocol`` says what goes over it, ``place`` where it lies, ``recent`` what is remembered.
``server`` is the agent's end, ``client`` the commands'. Nothing here decides anything, and
nothing a client does is waited for. docs/adr/0018 says why it is as it is.
"""
