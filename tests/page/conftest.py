"""A browser for each module, a page for each test, and no error in it that nobody looks at."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.page.browser import launched
from tests.page.meter import Meter

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser():
    """One for the module, not the session: its event loop would be in other tests' way."""
    with launched() as browser:
        yield browser


@pytest.fixture
def meter():
    """A meter that serves."""
    meter = Meter().serve()
    yield meter
    meter.stop()


@pytest.fixture
def show(browser):
    """Opens the page of a meter as a browser of such a kind; fails where the page had errors."""
    contexts, errors = [], []

    def open_page(meter, **kind):
        kind = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", **kind}
        context = browser.new_context(**kind)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if is_error(said) else None)
        page.goto(meter.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def is_error(said):
    """A lost connection is a test's own doing."""
    return said.type == "error" and not {"ERR_", "502"} & set(re.findall(r"ERR_|502", said.text))
