"""``make preview``: every board as Grafana's own components draw it, without a Grafana.

``python -m tests.grafana.preview DIRECTORY [--seconds N | --week] [--panels]``

A real Prometheus answers every panel's queries: over a run of the demo, or over the made-up week of
``tests.grafana.week``, where vLLM and DCGM stand beside the meter and things go wrong.
``grafana/preview`` draws the answers in headless Chromium. What it needs of npm is fetched into a
cache once; no test needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from rich.console import Console

from meter.demo.demo import Demo
from meter.demo.process import free_port
from meter.demo.stage import cache, simulated
from tests.grafana import fleet, week
from tests.grafana.promql import BOARDS, ROOT, filled, load, panels
from tests.grafana.server import Prometheus, serving
from tests.page.browser import launched
from tests.pictures import BYTES_MAX

SOURCE = ROOT / "grafana" / "preview"
# Tables draw only those rows that are in view.
WIDTH, HEIGHT = 1600, 2600
POINTS = 240
LOADERS = ("woff2=dataurl", "woff=dataurl", "svg=dataurl", "png=dataurl", "ttf=empty")


@dataclass(frozen=True, slots=True)
class Scene:
    """What is shown: from when to when (Unix seconds), and the shortest interval of a rate."""

    server: Prometheus
    start_s: float
    end_s: float
    rate_s: int

    def answers(self, board: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """By panel and query, what Prometheus says."""
        return {
            panel["id"]: {query["refId"]: self._ask(query) for query in panel["targets"]}
            for panel in panels(board)
        }

    def exemplars(self, board: dict[str, Any]) -> dict[int, Any]:
        """By panel, the dots of its distribution."""
        return {
            panel["id"]: [
                {"timestamp": float(dot["timestamp"]), "value": float(dot["value"])}
                for query in panel["targets"]
                for row in self.server.get(
                    "/api/v1/query_exemplars",
                    query=self._filled(query),
                    start=self.start_s,
                    end=self.end_s,
                )
                for dot in row["exemplars"]
            ]
            for panel in panels(board)
            if panel["type"] == "heatmap"
        }

    def _ask(self, query: dict[str, Any]) -> Any:
        expr = self._filled(query)
        if query["instant"]:
            return self.server.get("/api/v1/query", query=expr, time=self.end_s)["result"]
        span = {"start": self.start_s, "end": self.end_s, "step": self._step_s}
        return self.server.get("/api/v1/query_range", query=expr, **span)["result"]

    @property
    def _step_s(self) -> int:
        return max(1, round((self.end_s - self.start_s) / POINTS))

    def _filled(self, query: dict[str, Any]) -> str:
        shown_s = round(self.end_s - self.start_s)
        rate_s = max(self.rate_s, self._step_s)
        return filled(query["expr"], {"$__range": f"{shown_s}s", "$__rate_interval": f"{rate_s}s"})


@contextlib.contextmanager
def of_a_week(folder: Path) -> Iterator[Scene]:
    """A day and a half of it, in which a card meets its limit and a stranger comes by."""
    start_s = 1_760_313_600 - week.WEEK_S
    history = [(one.host, one.moments(start_s)) for one in week.FLEET]
    with serving(folder, fleet.openmetrics(history, week.TARIFF)) as server:
        day_s = start_s + 4 * week.DAY_S
        shown = (day_s + 4 * week.HOUR_S, day_s + 40 * week.HOUR_S)
        yield Scene(server, *shown, rate_s=4 * week.COARSE_S)


@contextlib.contextmanager
def of_a_run(folder: Path, seconds: float) -> Iterator[Scene]:
    """The demo, scraped each second."""
    page = free_port()
    targets = [{"targets": [f"127.0.0.1:{page}"]}]
    job = {"job_name": "demo", "scrape_interval": "1s", "static_configs": targets}
    with serving(folder, config=yaml.safe_dump({"scrape_configs": [job]})) as server:
        console = Console(file=io.StringIO(), width=120)
        stage = folder / "stage"
        stage.mkdir()
        demo = Demo(simulated(stage, free_port()), stage, console, threading.Event())
        begun_s = time.time()
        demo.run(seconds, page)
        ((_, points),) = server.range("joulemeter_build_info", begun_s, time.time(), 1)
        yield Scene(server, points[0][0], points[-1][0] - 2, rate_s=8)


def build() -> Path:
    """Bundle the page; returns its directory. Fetches npm's packages where they are not there."""
    directory = cache() / "preview"
    directory.mkdir(parents=True, exist_ok=True)
    wanted = (SOURCE / "package.json").read_text(encoding="utf-8")
    manifest = directory / "package.json"
    if not manifest.exists() or manifest.read_text(encoding="utf-8") != wanted:
        manifest.write_text(wanted, encoding="utf-8")
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            subprocess.run(install, cwd=directory, check=True)
        except BaseException:
            manifest.unlink()
            raise
    for path in SOURCE.glob("*.js*"):
        shutil.copy(path, directory / path.name)
    command = ["node_modules/.bin/esbuild", "board.jsx", "--bundle", "--minify"]
    command += ["--outfile=out/board.js", '--define:process.env.NODE_ENV="production"']
    command += [f"--loader:.{loader}" for loader in LOADERS] + ["--log-level=error"]
    subprocess.run(command, cwd=directory, check=True)
    page = '<!doctype html><link rel="stylesheet" href="board.css"><body style="margin:0">'
    page += '<div id="root"></div><script src="board.js"></script>'
    (directory / "out" / "index.html").write_text(page, encoding="utf-8")
    return directory / "out"


def draw(scene: Scene, pages: Path, out: Path, each_panel: bool) -> None:
    """Every board, and with ``each_panel`` every panel, as a picture in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with launched() as browser:
        for path in BOARDS:
            board = load(path)
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            said: list[str] = []
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.goto((pages / "index.html").as_uri())
            page.evaluate("given => window.show(given)", _given(scene, board))
            page.wait_for_function("window.shown === true", timeout=60_000)
            if said:
                raise SystemExit(f"{path.stem}: " + "\n".join(said))
            page.locator("#root > div").last.screenshot(path=out / f"{path.stem}.png")
            for panel in panels(board) if each_panel else ():
                name = re.sub(r"\W+", "-", panel["title"]).strip("-").lower()
                picture = out / f"{path.stem}-{panel['id']:02}-{name}.png"
                page.locator(f"#panel-{panel['id']}").screenshot(path=picture)
            page.close()


def _small(path: Path) -> Path:
    """The picture as WebP, as good as ``BYTES_MAX`` allows; that of the PNG is removed."""
    small = path.with_suffix(".webp")
    with Image.open(path) as picture:
        for quality in range(90, 10, -5):
            picture.convert("RGB").save(small, "webp", quality=quality, method=6)
            if small.stat().st_size < BYTES_MAX:
                break
    path.unlink()
    return small


def _given(scene: Scene, board: dict[str, Any]) -> dict[str, Any]:
    return {
        "board": json.loads(json.dumps(board)),
        "answers": {str(key): value for key, value in scene.answers(board).items()},
        "exemplars": {str(key): value for key, value in scene.exemplars(board).items()},
        "range": {"from": scene.start_s, "to": scene.end_s},
        "width": WIDTH,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the boards.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the demo")
    parser.add_argument("--week", action="store_true", help="a made-up week, not the demo")
    parser.add_argument("--panels", action="store_true", help="every panel too, one picture each")
    wanted = parser.parse_args()
    pages = build()
    with tempfile.TemporaryDirectory(prefix="joulemeter-preview-") as name:
        folder = Path(name)
        with of_a_week(folder) if wanted.week else of_a_run(folder, wanted.seconds) as scene:
            draw(scene, pages, wanted.out, wanted.panels)
    for path in sorted(wanted.out.glob("*.png")):
        small = _small(path)
        print(f"{small}  {small.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
