# SPDX-License-Identifier: Apache-2.0
"""What ``ENFORCE_SIGNED_MODULES`` would refuse, over many nodes: counts and details brought together.

Counts come from Prometheus, which has every refusal and no name. Names of modules, signers and
pods come from event logs, which may lack what a flood left out. ``report`` is pure and says of
each pool what is known; docs/adr/0017 says why it takes both.
"""
