# SPDX-License-Identifier: Apache-2.0
"""Module files of every kind, for comparing kmodgate with real kernels.

Keys and certificates are made when the cases are; nothing secret and nothing binary is kept.
``cases.py`` has the cases that somebody thought of, ``mutations.py`` those that nobody did,
``mldsa.py`` what Linux 7.x alone knows.
"""
