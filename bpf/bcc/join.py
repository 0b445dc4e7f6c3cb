# SPDX-License-Identifier: Apache-2.0
"""Join the BCC programs and kmodgate's own headers into the one text that BCC compiles on a node.

BCC rewrites maps and their methods in the main file only, so what lies in headers has to stand
there. A name is looked up in bpf/bcc first, then in bpf: the kernel.h here stands for the other.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_INCLUDE = re.compile(r'#include "(?:\.\./)?([\w.]+)"')


def join(name: str, folders: tuple[Path, ...], seen: set[str]) -> list[str]:
    """The lines of one file, with what it includes in the place of the include, once."""
    if name in seen:
        return []
    seen.add(name)
    path = next(folder / name for folder in folders if (folder / name).exists())
    lines: list[str] = []
    for line in path.read_text().splitlines():
        match = _INCLUDE.fullmatch(line)
        lines.extend(join(match[1], folders, seen) if match else [line])
    return lines


def main() -> None:
    """Write the joined text to standard output."""
    here = Path(__file__).parent
    sys.stdout.write("\n".join(join("kmodgate.c", (here, here.parent), set())) + "\n")


if __name__ == "__main__":
    main()
