"""The page: alone in the world, safe, every verdict in it, and drawn as a browser draws it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from meter.selftest.findings import find
from meter.selftest.html import to_html
from meter.selftest.promises import promises
from tests.page.browser import launched
from tests.truth.scenarios import build

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
    """Each promise in a row, two plots inside the page's width, and nothing to scroll sideways."""
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.set_content(to_html(found, promises(found), MADE))
        assert page.locator(".promises tr").count() == len(promises(found))
        plots = page.locator("svg")
        assert plots.count() == 2
        for number in range(2):
            box = plots.nth(number).bounding_box()
            assert box and box["width"] > 500 and box["height"] > 100
        assert page.evaluate("document.documentElement.scrollWidth") <= 1000
        bars = page.locator("svg rect.count").evaluate_all(
            "all => all.map(one => +one.getAttribute('height'))"
        )
        assert len(bars) == 41 and max(bars) > 50 and min(bars) >= 0
