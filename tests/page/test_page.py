"""The live page in a real browser, fed by a real port: what it shows, and to whom."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import expect

from meter.export.live import moments_json
from meter.export.moments import ACCOUNTS
from tests.page.meter import Meter
from tests.top.test_lumps import BUSY_W, S, drawn_uj, told

pytestmark = pytest.mark.slow

WORDS = Path(__file__).parents[2] / "meter/export/page/words.js"
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True}


def numbers(text):
    return [float(found.replace(",", "")) for found in re.findall(r"[\d,]*\d\.\d+", text)]


def test_the_sum_stays_in_view_and_adds_up(show, meter):
    """A reader can add up what is shown, to the last digit, wherever the page is scrolled to."""
    page = show(meter)
    expect(page.locator("#sum .check")).to_contain_text("closes")
    measured, *parts = numbers(page.locator("#sum").inner_text())
    assert len(parts) == 5
    assert sum(parts) == pytest.approx(measured, abs=1e-9)
    for place in (0, 10_000):
        page.mouse.wheel(0, place)
        expect(page.locator("#sum")).to_be_in_viewport(ratio=1)


def test_the_figures_are_the_meters(show, meter):
    """Power by the counter, energy and tokens of the last minute, and where the joules went."""
    page = show(meter)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    # 336.5 W by the accounts; 320 of them attributed, over 1000 tokens a second.
    expect(page.locator("#power")).to_have_text(re.compile(r"^33\dW$"))
    expect(page.locator("#token")).to_have_text(re.compile(r"^3(19|20|21)mJ$"))
    expect(page.locator("#token_note")).to_contain_text("with idle")
    expect(page.locator("#cost")).to_have_text("–")
    expect(page.locator("#cost_note")).to_have_text("no price is configured")
    expect(page.locator("#power_note")).to_have_text("simulated limit 400 W")
    decode = page.locator("#accounts tr", has_text="decode")
    expect(decode).to_contain_text("kJ")
    expect(decode).to_contain_text(re.compile(r"7[56]\.\d %"))
    expect(page.locator("#subject")).to_have_text("m · Test card")


def test_requests_grow_and_open_their_receipts(show, meter):
    """Rows in order of energy; a finished one's receipt opens and closes by keyboard."""
    page = show(meter)
    first = page.locator("#running tr").first
    expect(first).to_contain_text("chatcmpl-19")
    before = first.locator("td").nth(5).inner_text()
    expect(first.locator("td").nth(5)).not_to_have_text(before)
    page.get_by_role("button", name="done-3").focus()
    page.keyboard.press("Enter")
    receipt = page.get_by_role("dialog", name="Receipt")
    expect(receipt).to_contain_text("20.000 J")
    expect(receipt).to_contain_text("400 mJ (2.0 %)")
    page.keyboard.press("Escape")
    expect(receipt).to_be_hidden()


def test_a_receipt_that_may_miss_joules_says_so(show, meter):
    """At least so much; why is in its row's title and in the receipt."""
    page = show(meter)
    cells = {
        i: page.locator("#finished tr", has_text=f"done-{i}").locator("td").nth(5) for i in (0, 1)
    }
    expect(cells[1]).to_have_text("≥ 20.00 J")
    expect(cells[1]).to_have_attribute("title", "joules may be missing: no meter was listening")
    expect(cells[0]).to_have_text("20.00 J")
    page.get_by_role("button", name="done-1").click()
    receipt = page.get_by_role("dialog", name="Receipt")
    expect(receipt).to_contain_text("≥ 20.000 J")
    expect(receipt).to_contain_text("no meter was listening")


def test_the_finished_are_shown_whole(show, meter):
    """All twelve rows stand in their frame: the last one is not cut, and nothing scrolls."""
    page = show(meter)
    row = page.locator("#finished tr").first
    expect(row).to_be_visible()
    # At once, before the page draws anew.
    whole = page.evaluate(
        """() => { const rows = document.getElementById("finished");
        const frame = rows.closest(".scroll");
        while (rows.children.length < 12) rows.append(rows.firstElementChild.cloneNode(true));
        return frame.scrollHeight <= frame.clientHeight; }"""
    )
    assert whole


def test_a_thousand_requests_stay_light(show):
    """All are counted and each has its cell; the rows are the first of the order, and so few that
    the page's size does not depend on how many run. Filter and order look at all of them."""
    meter = Meter(running_count=1000).serve()
    page = show(meter)
    expect(page.locator("#running_count")).to_have_text("1,000")
    expect(page.locator("#running tr")).to_have_count(50)
    expect(page.locator("#running_note")).to_contain_text("first 50 of 1,000")
    expect(page.locator("#cells")).to_have_attribute("aria-label", re.compile(r"^1,000 requests"))
    assert page.evaluate("document.querySelectorAll('*').length") < 2500
    page.get_by_label("Filter").fill("CHATCMPL-77")
    expect(page.locator("#running tr")).to_have_count(11)  # 77, and 770 to 779
    page.get_by_label("Filter").fill("")
    page.get_by_label("Sort by").select_option("prompt")
    expect(page.locator("#running tr").first).to_contain_text("chatcmpl-999")
    page.get_by_label("Sort by").select_option("newest")
    expect(page.locator("#running tr").first).to_contain_text("chatcmpl-0")
    meter.stop()


def test_no_traffic_is_not_blindness(show, meter):
    """An idle engine is quiet; a silent counter is an alarm, and so is a silent busy engine."""
    page = show(meter)
    status, alarm = page.locator("#status"), page.locator("#alarm")
    expect(status).to_have_attribute("data-state", "live")
    expect(alarm).to_be_hidden()
    meter.running_count = 0
    expect(status).to_have_attribute("data-state", "quiet")
    expect(status).to_contain_text("no traffic")
    expect(alarm).to_be_hidden()
    meter.power_age_s = 12.0
    expect(status).to_have_attribute("data-state", "blind")
    expect(alarm).to_contain_text("blind: no energy reading for 1")
    meter.power_age_s, meter.running_count, meter.engine_age_s = 0.0, 20, 60.0
    expect(alarm).to_contain_text("engine has not been heard for 6")
    meter.engine_age_s = 0.0
    expect(status).to_have_attribute("data-state", "live")
    expect(alarm).to_be_hidden()


def test_one_blind_eye_of_eight_is_seen(show):
    """A device that no reading comes from is named, though the others speak."""
    meter = Meter(devices=8).serve()
    page = show(meter)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    meter.device_age_s = 9.0
    expect(page.locator("#alarm")).to_contain_text("blind on device 7: no energy reading for")
    meter.device_age_s = 0.0
    expect(page.locator("#alarm")).to_be_hidden()
    meter.stop()


def test_a_lost_connection_is_said_and_taken_up_again(show):
    """What is seen is named old; when the meter is back, the page is live without being asked."""
    meter = Meter().serve()
    page = show(meter)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    port = meter.stop()
    expect(page.locator("#status")).to_have_attribute("data-state", "lost")
    expect(page.locator("#alarm")).to_contain_text("lost. What you see is")
    meter.serve(port)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    expect(page.locator("#alarm")).to_be_hidden()
    meter.stop()


class _BadGateway(BaseHTTPRequestHandler):
    """A proxy whose meter is away."""

    def do_GET(self):
        self.send_error(502)

    def log_message(self, *_):
        pass


def test_a_refusal_on_the_way_is_not_the_end(show):
    """A proxy may answer for a meter that restarts: the page goes on trying."""
    meter = Meter().serve()
    page = show(meter)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    port = meter.stop()
    with HTTPServer(("127.0.0.1", port), _BadGateway) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        with page.expect_response(lambda answer: answer.status == 502):
            pass
        expect(page.locator("#status")).to_have_attribute("data-state", "lost")
        proxy.shutdown()
        thread.join()
    meter.serve(port)
    expect(page.locator("#status")).to_have_attribute("data-state", "live")
    meter.stop()


def test_the_end_of_the_meter_is_no_lost_connection(show, meter):
    """It says so itself, and the last figures stay."""
    page = show(meter)
    expect(page.locator("#sum .check")).to_be_visible()
    meter.ended = True
    expect(page.locator("#alarm")).to_contain_text("meter has ended")
    expect(page.locator("#sum .check")).to_contain_text("closes")


def test_chinese_for_who_asks_for_it(show, meter):
    """By the browser's language, every word of the page."""
    page = show(meter, locale="zh-CN")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    expect(page.locator("#sum")).to_contain_text("实测")
    expect(page.locator("#status")).to_have_text("实时")
    for text in page.locator("h2, h3, th, .figures span, label").all_inner_texts():
        assert not re.search(r"[A-Za-z]{4,}", text.replace("token", "")), text
    german = show(meter, locale="de-DE")
    assert german.evaluate("document.documentElement.lang") == "en"


def test_both_languages_have_the_same_words():
    """With the same gaps to fill in."""
    english, chinese = WORDS.read_text("utf-8").split("const zh = {")
    pairs = re.compile(r'(\w+): "([^"]*)"')
    words, translated = dict(pairs.findall(english)), dict(pairs.findall(chinese))
    assert words.keys() == translated.keys()
    for key, text in words.items():
        assert set(re.findall(r"\{\d\}", text)) == set(re.findall(r"\{\d\}", translated[key])), key


CONTRAST = """() => {
  const probe = document.body.appendChild(document.createElement("p"));
  const light = name => {
    probe.style.color = `var(--${name})`;
    const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const text = ["ink", "soft", "accent"].flatMap(a => ["card", "paper"].map(b => [a, b, ratio(a, b), 4.5]));
  const shapes = ["prefill", "decode", "recompute", "unattributed"].map(a => [a, "card", ratio(a, "card"), 3]);
  return [...text, ["warn-ink", "warn", ratio("warn-ink", "warn"), 4.5], ...shapes];
}"""  # noqa: E501


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_can_be_read(show, meter, scheme):
    """As the system asks; text at 4.5 to 1, shapes at 3 to 1 (WCAG 2.2, AA)."""
    page = show(meter, color_scheme=scheme)
    for ink, paper, ratio, least in page.evaluate(CONTRAST):
        assert ratio >= least, f"{ink} on {paper}: {ratio:.2f}"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60


def test_a_phone_shows_all_of_it(show, meter):
    """360 pixels wide: nothing sticks out, the sum is in view, the tables keep the main figure."""
    page = show(meter, **PHONE)
    expect(page.locator("#running tr")).to_have_count(20)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("#sum")).to_be_in_viewport(ratio=1)
    expect(page.locator("#running tr").first.locator("td").nth(5)).to_be_visible()
    expect(page.locator("#running tr").first.locator("td").nth(3)).to_be_hidden()


def test_on_a_phone_names_show_what_tells_them_apart(show, meter):
    """Without the words that all of them begin with."""
    page = show(meter, **PHONE)
    name = page.locator("#running button").first
    expect(name).to_contain_text("chatcmpl-")  # there, though not seen
    assert not name.inner_text().startswith("chatcmpl-")
    assert name.inner_text().strip()


def test_who_cannot_see_or_point_gets_it_too(show, meter):
    """Landmarks, names for everything that can be pressed or is drawn; little is announced."""
    page = show(meter)
    for landmark in ("banner", "main", "contentinfo", "complementary", "navigation"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_text("joulemeter")
    expect(page.locator("#flow")).to_have_attribute("aria-label", re.compile("Power over .* W"))
    expect(page.locator("#batch")).to_have_attribute("aria-label", re.compile("Requests in flight"))
    named = page.evaluate(
        "[...document.querySelectorAll('button, select, input')]"
        ".every(e => e.textContent.trim() || e.labels?.length)"
    )
    assert named
    expect(page.locator("[role=status], [role=alert], [aria-live=assertive]")).to_have_count(2)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the figures")).to_be_focused()
    page.locator("#flow").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tip")).to_contain_text("measured")
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()


def test_it_stands_still_for_who_asks(show, meter):
    """No animation with reduced motion; a pause stops everything that moves, until resumed."""
    page = show(meter, reduced_motion="reduce")
    expect(page.locator("#sum .check")).to_be_visible()
    moving = "getComputedStyle(document.querySelector('#status'), '::before').animationName"
    assert page.evaluate(moving) == "none"
    page.get_by_role("button", name="Pause").click()
    before = page.locator("#sum").inner_text()
    heard = page.evaluate(
        "new Promise(r => { const s = new EventSource('v1/live');"
        "let n = 0; s.onmessage = () => { if (++n > 4) { s.close(); r(n); } } })"
    )
    assert heard == 5
    assert page.locator("#sum").inner_text() == before
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#sum")).not_to_have_text(before)


def test_watt_hours_instead_of_joules(show, meter):
    """All energies change their unit, and the sum still adds up."""
    page = show(meter)
    expect(page.locator("#sum .check")).to_be_visible()
    page.get_by_role("button", name="Wh").click()
    expect(page.locator("#sum")).to_contain_text("Wh")
    expect(page.locator("#running tr").first).to_contain_text("Wh")
    measured, *parts = numbers(page.locator("#sum").inner_text())
    assert sum(parts) == pytest.approx(measured, abs=1e-9)


def test_the_chart_is_drawn_by_account_and_by_device(show):
    """Its colours are on the canvas: those of the accounts, or others, one for each device."""
    meter = Meter(devices=4).serve()
    page = show(meter)
    has = """name => {
      const canvas = document.getElementById("flow"), pen = canvas.getContext("2d");
      const probe = document.createElement("canvas").getContext("2d");
      probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
      probe.fillRect(0, 0, 1, 1);
      const wanted = probe.getImageData(0, 0, 1, 1).data, all = pen.getImageData(0, 0, canvas.width, canvas.height).data;
      let n = 0;
      for (let i = 0; i < all.length; i += 4) if (wanted.every((v, k) => all[i + k] === v)) n++;
      return n > 200;
    }"""  # noqa: E501
    page.wait_for_function(f"{has.replace('name =>', '() => (name =>', 1)})('decode')")
    assert page.evaluate(has, "prefill")
    assert not page.evaluate(has, "unattributed")
    page.get_by_role("button", name="by device").click()
    expect(page.locator("#legend li")).to_have_count(4)
    page.wait_for_function(f"!({has.replace('name =>', 'name =>', 1)})('decode')")
    meter.stop()


class HostileMeter(Meter):
    """Whose clients and engine chose names that mean harm; and whose card's power is no number."""

    NAME = "<img src=x onerror=\"document.title='had'\"><script>document.title='had'</script>&amp;"

    def _request(self, i, now_ns):
        named = super()._request(i, now_ns)
        return named._replace(id=self.NAME + str(i), tenant=self.NAME, model=self.NAME)

    def _receipt(self, i):
        made = super()._receipt(i)
        names = {"model": self.NAME, "tenant": self.NAME, "reason": self.NAME, "missed": self.NAME}
        return replace(made, id=f"{self.NAME}{i}", requests=(f"{self.NAME}{i}",), **names)

    def _snapshot(self, t_ns):
        made = super()._snapshot(t_ns)
        device = made.devices[0]
        named = replace(device.device, name=self.NAME, note=self.NAME, index=self.NAME)
        device = replace(device, device=named, power_w=float("nan"), delay_s=float("inf"))
        engine = replace(made.engines[0], id=self.NAME, model=self.NAME)
        reasons = {self.NAME: 1.0}
        return replace(made, devices=(device,), engines=(engine,), unattributed=reasons)


def test_no_name_is_markup(show):
    """In tables, in a receipt, of a card, a model, a reason: it is shown as it is written."""
    meter = HostileMeter().serve()
    page = show(meter)
    expect(page.locator("#running tr").first).to_contain_text("<img src=x onerror=")
    page.locator("#finished button").first.click()
    receipt = page.get_by_role("dialog", name="Receipt")
    expect(receipt).to_contain_text("</script>&amp;")
    assert page.locator("main img[onerror], img[src=x], body script:not([src])").count() == 0
    assert "had" not in page.title()
    assert "NaN" not in page.locator("body").inner_text()
    meter.stop()


class NamelessMeter(Meter):
    """Whose requests name no tenant, as vLLM's do not."""

    def _request(self, i, now_ns):
        return super()._request(i, now_ns)._replace(tenant=None)

    def _receipt(self, i):
        return replace(super()._receipt(i), tenant=None)


def test_without_a_tenant_there_is_no_such_column(show, meter):
    """Nor a line in a receipt; with one there is."""
    page = show(meter)
    expect(page.locator("th.tenant").first).to_be_visible()
    nameless = NamelessMeter().serve()
    page = show(nameless)
    expect(page.locator("#running tr").first).to_contain_text("chatcmpl-")
    expect(page.locator("th.tenant").first).to_be_hidden()
    expect(page.locator("#running td.tenant").first).to_be_hidden()
    page.locator("#finished button").first.click()
    receipt = page.get_by_role("dialog", name="Receipt")
    expect(receipt).to_contain_text("model")
    expect(receipt).not_to_contain_text("tenant")
    nameless.stop()


class EndingMeter(Meter):
    """Whose engine does not know how its requests ended."""

    def _receipt(self, i):
        return replace(super()._receipt(i), reason="stop_or_abort")


def test_an_end_that_is_not_known_is_explained(show):
    """In the row's title, and in words in the receipt."""
    meter = EndingMeter().serve()
    page = show(meter)
    cell = page.locator("#finished tr").first.locator("td").nth(2)
    expect(cell).to_have_text("stop or abort")
    expect(cell).to_have_attribute("title", re.compile("stop string or the client"))
    page.locator("#finished button").first.click()
    receipt = page.get_by_role("dialog", name="Receipt")
    expect(receipt).to_contain_text("a stop string or the client ended it")
    meter.stop()


class Unmeasured(Meter):
    """Whose engine owns no device that was ever read."""

    def _request(self, i, now_ns):
        return super()._request(i, now_ns)._replace(measured=False)

    def _receipt(self, i):
        return replace(super()._receipt(i), quality=None)


def test_a_request_that_nobody_measured_has_dashes(show):
    """In its row, under way or finished, and in its receipt, with the reason: no zero anywhere."""
    meter = Unmeasured().serve()
    try:
        page = show(meter)
        for table in ("running", "finished"):
            cells = page.locator(f"#{table} tr").first.locator("td")
            for column in (5, 7, 8):  # energy, energy per token, cost
                expect(cells.nth(column)).to_have_text("–")
        page.locator("#finished tr button").first.click()
        receipt = page.locator("#receipt")
        expect(receipt).to_contain_text("no energy of its engine is read")
        for name in ("energy", "decode", "kWh", "cost", "quality"):
            expect(receipt.locator(f"dt:text-is('{name}') + dd")).to_have_text("–")
    finally:
        meter.stop()


@pytest.fixture(scope="module")
def lumps():
    """Moments of a run in which much settles at once, and their accounts, as the stream says."""
    return [moments_json(told()), list(ACCOUNTS)]


def test_no_more_power_is_drawn_on_the_chart_than_by_the_devices(show, meter, lumps):
    """Steps of seconds and a device that is read seldom make no peak, and lose no joule."""
    page = show(meter)
    peak_w, area_j, from_s, until_s = page.evaluate(
        """async ([moments, accounts]) => {
          const { Series } = await import("/page/chart.js"), series = new Series();
          series.add(moments, accounts);
          const shown = series.flows.map(f => [f.t, Object.values(f.watts).reduce((a, b) => a + b, 0)]);
          let area = 0;
          for (let i = 1; i < shown.length; i++) {
            area += (shown[i][1] + shown[i - 1][1]) / 2 * (shown[i][0] - shown[i - 1][0]);
          }
          return [Math.max(...shown.map(s => s[1])), area, shown[0][0], shown.at(-1)[0]];
        }""",  # noqa: E501
        lumps,
    )
    drawn_j = 2 * (drawn_uj(round(until_s * S)) - drawn_uj(round(from_s * S))) / 1e6
    assert peak_w < 2 * BUSY_W * 1.05
    assert area_j == pytest.approx(drawn_j, rel=0.03)


def test_a_sum_that_does_not_close_is_not_made_to(show, meter):
    """What is said to be measured is what was measured, not the sum of what is shown beside it."""
    said = show(meter).evaluate(
        'async () => (await import("/page/format.js")).summands(5996, [5376.9, 87.6])'
    )
    assert (said["total"], said["terms"]) == ("5,996.0", ["5,376.9", "87.6"])
