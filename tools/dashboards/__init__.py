# SPDX-License-Identifier: Apache-2.0
"""Makes the Grafana dashboards of helm/kmodgate/dashboards: ``python -m tools.dashboards``.

No I/O but in ``__main__``: ``fleet`` and ``node`` say what is on them, ``parts`` how Grafana wants
it said. The JSON is committed, and a test compares it with what these files make.
"""
