# SPDX-License-Identifier: Apache-2.0
"""The off switches: watched (``watchdog``), and with ``hardened: true`` denied (``hardening``)."""
