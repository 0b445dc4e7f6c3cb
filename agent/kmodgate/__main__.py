# SPDX-License-Identifier: Apache-2.0
"""``python -m kmodgate`` is ``kmodgate``."""

from kmodgate.cli import main

if __name__ == "__main__":
    main()
