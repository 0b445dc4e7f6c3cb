# SPDX-License-Identifier: Apache-2.0
"""Draws the dashboards as docs/pictures has them: synthetic fleet, real Prometheus, headless Chromium.

Grafana's own components (``@grafana/ui``) draw the committed JSON; ``render/render.tsx`` says what they lack.

Usage: ``python -m tests.dashboards.pictures FOLDER MINUTES``, with the packages of render/package.json in
FOLDER. The fleet is watched for so many minutes first.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

from tests.monitoring import fleet
from tests.monitoring.conftest import prometheus
from tests.rules.parts import ROOT
from tools.dashboards.__main__ import FOLDER

HERE = Path(__file__).parent / "render"
PICTURES = ROOT / "docs/pictures"
NODE = "synthetic-gpu-003"
WIDTH = 1592
HEIGHTS = {"kmodgate-fleet": 1160, "kmodgate-node": 1530}
PAGE = (
    '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="render.css">'
    '<body style="background:#f4f5f5;margin:0"><div id="root"></div><script src="render.js"></script>'
)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Log nothing."""


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The folder on loopback; its port."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bundle(packages: Path, page: Path) -> None:
    """One script of the renderer and all that it needs."""
    shutil.copy(HERE / "render.tsx", packages)
    kinds = [f"--loader:.{kind}=dataurl" for kind in ("svg", "woff2", "ttf", "png")]
    subprocess.run(
        [
            *("node_modules/.bin/esbuild", "render.tsx", "--bundle", f"--outfile={page / 'render.js'}"),
            *("--format=iife", "--jsx=automatic", "--minify", "--log-level=error", *kinds),
            *('--define:process.env.NODE_ENV="production"', "--define:global=window"),
        ],
        cwd=packages,
        check=True,
    )
    (page / "index.html").write_text(PAGE)
    for path in FOLDER.glob("*.json"):
        shutil.copy(path, page)


def draw(name: str, url: str) -> None:
    """One picture. Whatever the page writes to its console is a failure."""
    done = subprocess.run(
        [
            *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(
                f"--window-size={WIDTH},{HEIGHTS[name]}",
                "--virtual-time-budget=60000",
                "--enable-logging=stderr",
            ),
            *(f"--screenshot={PICTURES / f'{name}.png'}", url),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    if said:
        sys.exit("\n".join(said))


def main() -> None:
    """Watch the fleet, then draw."""
    packages, minutes = Path(sys.argv[1]), int(sys.argv[2])
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch)
        bundle(packages, page)
        with fleet.running(page / "events.json") as (targets, kube):
            rules = str(ROOT / "helm/kmodgate/rules/*.yaml")
            config = fleet.scrape_config(targets, kube, interval="15s", rules=rules, alertmanager=None)
            with prometheus(page, config) as server, served(page) as port:
                time.sleep(minutes * 60)
                for name in HEIGHTS:
                    parameters = {
                        "dashboard": f"{name}.json",
                        "prometheus": f"http://127.0.0.1:{server.port}",
                        "minutes": str(minutes),
                        "node": NODE,
                    }
                    draw(name, f"http://127.0.0.1:{port}/index.html?{urlencode(parameters)}")


if __name__ == "__main__":
    main()
