"""Runs the simulated demo for some two minutes and takes the pictures.

Not a test: what is seen depends on the moment. Look at the pictures before they are committed.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser
from rich.console import Console

from meter.config import load as load_settings
from meter.demo.load import Load
from meter.demo.process import Metered, answers, free_port, wait_until
from meter.demo.stage import simulated
from meter.pricing import Tariff
from meter.report import make
from meter.top.draw import Size, frame
from meter.top.feed import Heard, Query, listen
from meter.top.series import Series
from meter.top.view import View
from tests.page.browser import launched
from tests.pictures import BYTES_MAX, DIRECTORY

_FILL_S = 125.0  # what the charts show, and a little more
_BUSY = 30
_DESK = {"viewport": {"width": 1280, "height": 1090}, "device_scale_factor": 1.5}
_PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2}


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="joulemeter-pictures-") as name,
        launched() as browser,
    ):
        folder = Path(name)
        # Of no usual number: on a busy machine another meter may take that one meanwhile.
        stage = simulated(folder, free_port())
        metered = Metered.start(stage, folder, free_port())
        try:
            if not wait_until(lambda: answers(f"{stage.base_url}/health"), 60.0):
                raise SystemExit(metered.last_words())
            load = Load(stage.base_url, stage.model, stage.profile)
            load.start()
            print(f"the demo runs for {_FILL_S:.0f} s")
            time.sleep(_FILL_S)
            pages(browser, metered)
            terminal(browser, metered.url)
            load.end()
            load.wait(60.0)
        finally:
            metered.stop()
        report(browser, metered, folder)


def pages(browser: Browser, metered: Metered) -> None:
    """The page, light, dark and on a phone, each while the batch is large."""
    kinds = {
        "page-light": {**_DESK, "color_scheme": "light"},
        "page-dark": {**_DESK, "color_scheme": "dark"},
        "page-phone": {**_PHONE, "color_scheme": "dark"},
    }
    for name, kind in kinds.items():
        page = browser.new_page(locale="en-GB", **kind)
        page.goto(metered.url)
        page.wait_for_timeout(1500)
        wait_until(lambda: (metered.summary() or {}).get("requests_running", 0) > _BUSY, 60.0)
        page.wait_for_timeout(2500)  # until those are settled
        keep(page.screenshot(), name)
        page.close()


def terminal(browser: Browser, url: str) -> None:
    """``top`` on a terminal of 112 × 32 cells."""
    series = Series()
    for message in listen(url, Query()):
        if "summary" not in message:
            continue
        series.add(message["moments"], message["accounts"])
        if message["running"]["counts"]["decode"] > _BUSY:
            break
    size = Size(112, 32)
    console = Console(record=True, width=size.width, file=io.StringIO(), force_terminal=True)
    console.print(frame(Heard(message, time.monotonic(), series), View(), size, time.monotonic()))
    page = browser.new_page(viewport={"width": 1600, "height": 1200})
    page.set_content(f"<body style='margin:0'>{console.export_svg(title='joulemeter top')}")
    keep(page.locator("svg").first.screenshot(omit_background=True), "top", width=1600)
    page.close()


def report(browser: Browser, metered: Metered, folder: Path) -> None:
    """The top of a report of that run."""
    pricing = load_settings(folder / "demo.yaml", {}).pricing
    made = make.from_trace(metered.trace, Tariff(**pricing.model_dump()))
    make.write(made, folder / "report.html")
    kind = {"viewport": {"width": 1100, "height": 1300}, "device_scale_factor": 1.5}
    page = browser.new_page(color_scheme="light", **kind)
    page.goto((folder / "report.html").as_uri())
    keep(page.screenshot(), "report")
    page.close()


def keep(png: bytes, name: str, width: int | None = None) -> None:
    """As WebP, as good as fits into ``BYTES_MAX``."""
    image = Image.open(io.BytesIO(png))
    if width is not None:
        image = image.resize((width, round(image.height * width / image.width)))
    for quality in (92, 85, 75, 60):
        packed = io.BytesIO()
        image.save(packed, "webp", quality=quality, method=6)
        if packed.tell() < BYTES_MAX:
            break
    (DIRECTORY / f"{name}.webp").write_bytes(packed.getvalue())
    print(f"{name}.webp: {image.width} × {image.height}, {packed.tell() / 1000:.0f} kB")


main()
