"""A real browser, and pages that are not the meter's own."""

import http.server
import threading

import pytest
from playwright.sync_api import sync_playwright

from tests import needs
from tests.page.meter import Meter

READ = """async url => {
  try { const answer = await fetch(url); return [answer.status, await answer.text()]; }
  catch (error) { return [0, String(error)]; }
}"""


class _Page(http.server.BaseHTTPRequestHandler):
    """An attacker's own server."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>a page</title>")

    def log_message(self, *words):
        """Silent."""


@pytest.fixture(scope="module")
def meter():
    meter = Meter().serve()
    yield meter
    meter.stop()


@pytest.fixture(scope="module")
def browser():
    """Where a name of the attacker's leads to this machine."""
    path, rules = needs.browser(), "MAP evil.example 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[f"--host-resolver-rules={rules}"]
        )
        yield browser
        browser.close()


@pytest.fixture
def elsewhere():
    """A page of another server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_rebound_name_reads_nothing(browser, meter):
    """The page and the meter are of one origin to the browser, by the name in the address."""
    page = browser.new_page()
    address = meter.url.replace("127.0.0.1", "evil.example")
    answer = page.goto(f"{address}/")
    assert answer.status == 421
    status, body = page.evaluate(READ, f"{address}/v1/receipts")
    assert status == 421
    assert "receipts" not in body.replace("allowed_hosts", "")
    page.close()


def test_a_page_of_another_server_reads_nothing(browser, meter, elsewhere):
    """Nor of another port of this machine."""
    page = browser.new_page()
    assert page.goto(elsewhere).status == 200
    status, _ = page.evaluate(READ, f"{meter.url}/v1/receipts")
    assert status == 0
    page.close()


def test_the_meters_own_page_reads(browser, meter):
    """By address and as localhost."""
    for url in (meter.url, meter.url.replace("127.0.0.1", "localhost")):
        page = browser.new_page()
        assert page.goto(f"{url}/livez").status == 200
        status, body = page.evaluate(READ, f"{url}/v1/receipts")
        assert status == 200
        assert '"receipts"' in body
        page.close()
