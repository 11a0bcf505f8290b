"""The page: alone in the world, safe, every verdict in it, and drawn as a browser draws it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from meter.selftest import plots
from meter.selftest.bound import Decode
from meter.selftest.findings import find
from meter.selftest.html import to_html
from meter.selftest.promises import promises
from tests.page.browser import launched
from tests.truth.scenarios import build

pytestmark = pytest.mark.slow

MADE = datetime(2026, 11, 25, 16, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def found():
    return find(build("moderate-h100-1-facts", seconds=60.0).trace(), "a.jsonl")


def test_the_page_needs_nothing_else(found):
    """No script, no address but SVG's own; a model's name is text, whatever it holds."""
    page = to_html(replace(found, model="<script>x</script>"), promises(found), MADE)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"(?:src|href)=", page)
    assert "http" not in page


def test_it_is_drawn_whole(found):
    """Each promise in a row, three plots inside the page's width, nothing to scroll sideways."""
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.set_content(to_html(found, promises(found), MADE))
        assert page.locator(".promises tr").count() == len(promises(found))
        plots = page.locator("svg")
        assert plots.count() == 3
        for number in range(3):
            box = plots.nth(number).bounding_box()
            assert box and box["width"] > 500 and box["height"] > 100
        assert page.evaluate("document.documentElement.scrollWidth") <= 1000
        bars = page.locator("svg rect.count").evaluate_all(
            "all => all.map(one => +one.getAttribute('height'))"
        )
        assert len(bars) == 41 and max(bars) > 50 and min(bars) >= 0


def test_each_context_has_its_line_with_its_floor():
    """Three batches at about 200 tokens, one at 1,000: two lines, each with its bound beneath."""
    rows = [Decode(2.0**i, 200.0 + i, 1.0 / (i + 1), 0.1 / (i + 1), 9) for i in range(3)]
    short, long = plots.lines([*rows, Decode(1.0, 1000.0, 2.0, None, 9)])
    assert (short.label, long.label) == ("201 tokens", "1,000 tokens")
    assert [joules for _, joules in short.points] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert all(low < j for (_, low), (_, j) in zip(short.bound, short.points, strict=True))
    assert long.bound == []
    drawn = plots.by_batch([short, long], "a title", [(8, 0.5)])
    assert drawn.count('circle class="drawn"') == 4
    assert drawn.count('circle class="told"') == 1
    assert drawn.count("tokens</text>") == 2
