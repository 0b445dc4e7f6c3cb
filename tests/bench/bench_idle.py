# SPDX-License-Identifier: Apache-2.0
"""What an agent costs that has nothing to do: wake-ups, processor time, memory.

In a virtual machine that counts instructions: a second of processor time is 10⁹ of them.

Usage: ``PYTHONPATH=.:vm-images bench_idle.py [--kernel SUITE]`` (root; builds the machine)
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from vmtool import VmDied, VmToolError, artifacts
from vmtool.runner import Options, run, to_descriptor


def main() -> None:
    """Run the guest, print a table."""
    parser = argparse.ArgumentParser(description="Cost of an agent that has nothing to do.")
    parser.add_argument("--kernel", default="bookworm", help="Debian suite whose kernel boots")
    parser.add_argument("--seconds", type=int, default=120, help="how long to watch it")
    parser.add_argument("--loads", type=int, default=200, help="before that")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kmodgate-bench-") as name:
        share = Path(name)
        (share / "plan.json").write_text(json.dumps({"seconds": options.seconds, "loads": options.loads}))
        (share / "certs").mkdir()
        for certificate in ("operator.pem", "operator-ec.pem"):
            shutil.copy(artifacts.path("certs", options.kernel) / certificate, share / "certs")
        try:
            done = run(
                ["python3", "/src/tests/bench/guest/idle.py"],
                Options(suite=options.kernel, share=share, icount=True, timeout=900),
                stdout=to_descriptor(sys.stdout.fileno()),
                stderr=to_descriptor(sys.stderr.fileno()),
                env={"KMODGATE_TEST_CERTS": "/share/certs", "KMODGATE_TEST_MODULES": "/testmodules"},
            )
        except VmDied as error:
            sys.exit(f"the machine died: {error}\n{error.tail}")
        except VmToolError as error:
            sys.exit(str(error))
        if done.status:
            sys.exit(done.status)
        result = json.loads((share / "result.json").read_text())
    seconds, all_wakes = result["seconds"], result["wakes"]
    used = (result["busy"] - result["busy_without"]) * 60 / seconds
    print(f"An idle agent on Debian {options.kernel}, watched for {seconds:.0f} s\n\n| | |\n| --- | --- |")
    each = ", ".join(f"{count / seconds:.2f}" for count in reversed(all_wakes))
    print(f"| wake-ups per second, each thread | {each} |")
    print(f"| wake-ups per second | {sum(all_wakes) / seconds:.2f} |")
    print(f"| processor time per minute, at 10⁹ instructions a second | {used * 1e3:.0f} ms |")
    print(f"| resident, ready | {result['resident_kib'] / 1024:.1f} MiB |")
    print(f"| resident, after {options.loads} loads | {result['resident_after_kib'] / 1024:.1f} MiB |")


if __name__ == "__main__":
    main()
