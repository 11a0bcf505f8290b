"""The report's page: whole, safe, alone in the world, and fit to print."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from meter.report.figures import Ask, Bin, Line, Meter, Report
from meter.report.html import to_html
from tests.page.browser import launched

pytestmark = pytest.mark.slow

MADE = datetime(2026, 11, 25, 16, 0, tzinfo=UTC)
VOID = {"meta", "link", "br"}


def make_report(**changes):
    """Two models on two cards over an hour, of which ten minutes were not seen."""
    watts = (60.0, 240.0, 0.0, 0.0, 115.0, 5.0)
    bins = [Bin(60.0 * i, 60.0 * (i + 1), watts, 5.0, 900.0) for i in range(60)]
    bins[20:30] = [Bin(b.start_s, b.end_s, None, None, None) for b in bins[20:30]]
    asks = [
        Ask(f"chatcmpl-{i}", "llama", "acme", 100, 20, 10.0 + i, 0.2, 3.0, 1e-5, "stop")
        for i in range(200)
    ]
    values = {
        "source": "trace.jsonl",
        "start_utc_s": 1_764_072_000.0,
        "seconds": 3600.0,
        "quality": "measured",
        "measured_j": 1_261_000.5,
        "accounts_j": dict(
            zip(
                ("prefill", "decode", "recompute", "startup", "idle", "unattributed"),
                (180_000.0, 720_000.0, 0.0, 1000.0, 345_000.0, 15_000.0),
                strict=True,
            )
        ),
        "pending_j": 0.5,
        "residual_j": 1e-10,
        "unattributed_by_reason": {"foreign_load": 15_000.0},
        "currency": "EUR",
        "cost_components": {"electricity": 0.13, "compute": 7.2},
        "others_cost": {"idle": 1.9},
        "prices": {"electricity": "0.30 EUR per kWh"},
        "models": (
            Line("llama", 3000, 10_000, 500, 2_000_000, 600_000.0, 3.0),
            Line("qwen", 1000, 5_000, 0, 1_000_000, 300_000.0, 2.4),
        ),
        "tenants": (Line("acme", 4000, 15_500, None, 3_000_000, 900_000.0, 5.4),),
        "timeline": tuple(bins),
        "meters": (
            Meter("H100", "GPU-0", "gpu", "measured", 630_500.0, 0.1, 0.06, 0.002,
                  (("static_w", 115.0, 1.0), ("c", 2.4e-5, None))),
            Meter("H100", "GPU-1", "gpu", "measured", 630_500.5),
        ),
        "asks": tuple(asks),
        "fidelity": "step",
        "notes": ("A note.",),
    }  # fmt: skip
    return Report(**(values | changes))


class Checker(HTMLParser):
    """That every element that opens is closed, and what each refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(report):
    """The words of the page."""
    html = to_html(report, MADE)
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert checker.references == []
    assert "url(" not in html and "@import" not in html and "<script" not in html
    return " ".join("".join(checker.text).split())


def test_one_file_that_needs_nothing():
    """No reference, no script; every element closed."""
    text = check(make_report())
    for word in ("2025-11-25 12:00:00 to 2025-11-25 13:00:00 UTC", "llama, qwen on 2 × H100"):
        assert word in text


def test_a_reader_can_add_up_the_sum():
    """To the last digit that is shown."""
    text = check(make_report())
    said = re.search(r"([\d,.]+) kJ measured = (.*?) ✓ to a microjoule", text)
    terms = [float(n.replace(",", "")) for n in re.findall(r"[\d,]+\.\d", said[2])]
    assert sum(terms) == pytest.approx(float(said[1].replace(",", "")), abs=1e-9)
    broken = check(make_report(residual_j=5000.0))
    assert "✗" in broken
    assert re.search(r"in no account ?5.000 kJ", broken)
    assert "in no account" not in text


def test_how_sure_is_said():
    """Quality, doubt, reasons, and what no doubt holds."""
    text = check(make_report(holes=("lost: 3 steps",)))
    assert "read from hardware counters" in text
    assert "a stranger on the device" in text
    assert "nine in ten" in text
    assert "instrument's own gain" in text
    assert "Lost: 3 steps." in text
    assert "60 ms ± 2 ms" in text
    assert "24.00 µJ" in text
    simulated = check(make_report(quality="simulated"))
    assert "no real joule was spent" in simulated
    assert "instrument's own gain" not in simulated


def cells(report):
    """The words of the page, those of neighbouring cells apart."""
    return " ".join(re.sub("<[^>]*>", " ", to_html(report, MADE)).split())


def test_a_guess_is_not_shown_as_learned():
    """A coefficient that its doubt exceeds is what learning began with."""
    guess = Meter(
        "CPU", "cpu", "host", "estimated", 9.0, coefficients=(("static_w", 115.0, 345.0),)
    )
    text = cells(make_report(meters=(guess,)))
    assert "static_w not learned –" in text
    assert "115" not in text.partition("What work costs")[2]


def test_a_counter_without_a_tick_does_not_move_every_0_s():
    """A CPU's has a new value at each reading."""
    cpu = Meter("CPU", "cpu", "host", "estimated", 9.0, refresh_s=0.0)
    text = cells(make_report(meters=(cpu,)))
    assert "counter moves every" in text
    assert "9.000 J reading not found" in text


def test_a_tenants_prompts_are_not_taken_for_computed_input():
    """Columns of different meaning have different names."""
    text = cells(make_report())
    assert "model requests input cached output" in text
    assert "tenant requests prompt output" in text
    assert "acme 4,000 15,500 3,000,000" in text


def test_without_a_price_no_cost_is_invented():
    """Dashes, and how to have costs."""
    text = check(make_report(cost_components={}, others_cost={}, prices={}))
    assert "No price was given" in text


def test_an_empty_window_is_a_page_too():
    """Nothing drawn, nobody served: no plot, no division by nothing."""
    nothing = make_report(measured_j=0.0, accounts_j={}, pending_j=0.0, models=(), tenants=(),
                          timeline=(), asks=(), meters=(), quality=None, start_utc_s=None,
                          unattributed_by_reason={}, cost_components={})  # fmt: skip
    assert "quality unknown" in check(nothing)


def test_names_are_text_and_never_markup():
    """A model, a tenant, a request or a file may be called anything."""
    evil = "<img src=x onerror=alert(1)>&\"'"
    line = Line(evil, 1, 1, 1, 1, 1.0, None)
    ask = Ask(evil, evil, evil, 1, 1, 1.0, 0.1, 1.0, None, evil)
    report = make_report(source=evil, models=(line,), tenants=(line,), asks=(ask,), holes=(evil,))
    report = replace(report, meters=(Meter(evil, evil, evil, evil, 1.0),), notes=(evil,))
    assert "<img" not in to_html(report, MADE)
    assert "onerror=alert(1)>" in check(report)


def test_without_a_tenant_the_page_speaks_of_none():
    """No table of them, and no column of dashes: vLLM's plugin names none."""
    report = make_report()
    assert "tenant" in to_html(report, MADE)
    asks = tuple(ask._replace(tenant=None) for ask in report.asks)
    assert "tenant" not in to_html(replace(report, tenants=(), asks=asks), MADE)


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen(browser, tmp_path, width, scheme):
    """Nothing sticks out, on a phone neither; no figure leaves its tile."""
    file = tmp_path / "report.html"
    file.write_text(to_html(make_report(), MADE), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    fits = "[...document.querySelectorAll('.figures b')].every(b => b.scrollWidth <= b.clientWidth)"
    assert page.evaluate(fits)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    page.close()


def test_it_prints(browser, tmp_path):
    """On few pages, on white paper even from a dark screen."""
    file = tmp_path / "report.html"
    file.write_text(to_html(make_report(), MADE), encoding="utf-8")
    page = browser.new_page(color_scheme="dark")
    page.goto(file.as_uri())
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF-")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 3
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.close()
