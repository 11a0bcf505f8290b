"""Chromium for the tests: Debian's, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests import needs


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser, for as long as the block lasts."""
    path = needs.browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()
