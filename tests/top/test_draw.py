"""A frame of ``joulemeter top``: it fits the screen, adds up, and tells quiet from blind."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from meter.top.draw import Size, frame
from meter.top.feed import Heard
from meter.top.series import Series
from meter.top.view import ORDERS, View
from tests.top.messages import message


def heard(**changes):
    said = message(**changes)
    series = Series()
    series.add(said["moments"], said["accounts"])
    return Heard(said, 100.0, series)


def lines(heard, view=None, size=None, now_s=100.0, colours=False):
    """The frame as a terminal of that size would show it."""
    size = size or Size()
    console = Console(
        width=size.width,
        height=size.height,
        file=io.StringIO(),
        force_terminal=colours,
        color_system="truecolor" if colours else None,
    )
    console.print(frame(heard, view or View(), size, now_s))
    return console.file.getvalue().removesuffix("\n").split("\n")


@pytest.mark.parametrize("size", [Size(), Size(40, 16), Size(100, 30), Size(250, 70)])
@pytest.mark.parametrize("running", [0, 3, 1000])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_frame_is_as_large_as_the_screen(size, running, devices):
    """Neither wider nor longer, whatever is shown; the footer is its last line."""
    shown = lines(heard(running=running, devices=devices), size=size)
    assert len(shown) == size.height
    assert max(map(len, shown)) <= size.width
    assert "quit" in shown[-1]


@pytest.mark.parametrize("limit_w", [700.0, None])
def test_a_device_without_a_limit_that_is_alone_has_no_bar(limit_w):
    """It would be full at every power, as if no more could be drawn."""
    told = heard()
    told.message["summary"]["devices"][0]["power_limit_w"] = limit_w
    (line,) = [line for line in lines(told) if line.strip().startswith(("GPU", "CPU"))]
    assert ("█" in line or "░" in line) == (limit_w is not None)


@pytest.mark.parametrize("unit", ["J", "kWh"])
@pytest.mark.parametrize("width", [80, 140])
def test_the_sum_can_be_added_up(unit, width):
    """Measured = attributed + idle + start-up + unattributed + pending, to the last digit."""
    text = " ".join(lines(heard(), View(unit=unit), Size(width, 24)))
    said = re.search(r"([\d,.]+) k?(?:J|Wh|mWh) measured = (.*?) ✓", text)
    terms = [float(n.replace(",", "")) for n in re.findall(r"[\d,]+\.\d+", said[2])]
    assert len(terms) == 5
    assert sum(terms) == pytest.approx(float(said[1].replace(",", "")), abs=1e-9)


def test_a_broken_sum_is_seen():
    """A cross, and how much is missing."""
    said = message()
    said["summary"]["conservation_error_j"] = 2e-3
    assert any("✗ residual 2.000 mJ" in line for line in lines(Heard(said, 100.0, Series())))


@pytest.mark.parametrize(
    ("changes", "later_s", "word"),
    [
        ({}, 0.0, "live"),
        ({"running": 0}, 0.0, "no traffic"),
        ({"running": 0, "engine_age_s": None}, 0.0, "no engine heard yet"),
        ({"running": 0, "power_age_s": 12.0}, 0.0, "METER BLIND: no energy reading for 12 s"),
        ({"devices": 8, "device_age_s": 9.0}, 0.0, "METER BLIND on device 7 for 9 s"),
        ({"power_age_s": None}, 0.0, "METER BLIND: no energy reading at all"),
        ({"engine_age_s": 60.0}, 0.0, "engine not heard for 60 s while 20 requests run"),
        ({}, 7.0, "connection lost: what you see is 7 s old"),
    ],
)
def test_quiet_is_not_blind(changes, later_s, word):
    """Each state has its own words."""
    assert word in lines(heard(**changes), now_s=100.0 + later_s)[1]


def test_the_end_is_said():
    """It is no lost connection."""
    known = heard()
    ended = Heard(known.message, known.at_s, known.series, ended=True)
    assert "the meter has ended" in lines(ended, now_s=200.0)[1]


def test_without_a_meter_the_reason_stands_there():
    """With what to do."""
    shown = " ".join(lines(Heard(trouble="no meter answers: start one")))
    assert "start one" in shown


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_shows_at_once(order):
    """Rows are sorted here too, before the meter's answer comes."""
    shown = "\n".join(lines(heard(running=5), View(order=order), Size(120, 40)))
    found = re.findall(r"chatcmpl-(\d)", shown)
    assert found == sorted(found, reverse=order != "newest")
    assert len(found) == 5


def test_the_filter_shows_at_once():
    """By tenant, in any case."""
    shown = "\n".join(lines(heard(running=10), View(match="TENANT-3"), Size(120, 40)))
    assert re.findall(r"chatcmpl-(\d)", shown) == ["8", "3"]
    none = "\n".join(lines(heard(), View(match="zzz")))
    assert "none matches" in none


def test_what_only_settles_is_not_said_to_run():
    """The table holds it, and so its count is of requests."""
    shown = lines(heard(running=3))
    (counts,) = [line for line in shown if "settling" in line and "waiting" in line]
    assert counts.strip().startswith("3 requests ")


@pytest.mark.parametrize(("unit", "word"), [("J", "J"), ("kWh", "mWh"), ("cost", "EUR")])
def test_units_change_the_rows(unit, word):
    """Joules, watt-hours, money."""
    shown = next(line for line in lines(heard(), View(unit=unit)) if "chatcmpl-19" in line)
    assert word in shown


def test_scrolling_stops_at_the_last_row():
    """There is always something to see."""
    shown = "\n".join(lines(heard(), View(scroll=10_000)))
    assert "chatcmpl-0" in shown


def test_help_names_every_key():
    """On a small screen, too."""
    shown = "\n".join(lines(heard(), View(help=True)))
    for key in ("s, S", "/", "u", "f, space", "?, h", "q, Ctrl-C"):
        assert key in shown


def test_the_graph_has_the_accounts_colours():
    """Power is stacked by account; what nobody saw is blank."""
    shown = lines(heard(), colours=True)[3:6]
    assert any("38;2;53;189;145" in line for line in shown)  # decode
    assert any("38;2;90;159;232" in line for line in shown)  # prefill
    assert not any("38;2;236;106;92" in line for line in shown)  # unattributed


def test_a_hole_in_time_stays_a_hole():
    """Between two moments that are far apart nothing is drawn."""
    series = Series()
    rows = [
        [t, t - 0.5, [10.0 * t], [10.0 * t, 0, 0, 0, 0, 0], 1, 0] for t in (1, 2, 3, 60, 61, 62)
    ]
    said = message()
    said["now_s"] = 63.0
    series.add(rows, said["accounts"])
    batch = lines(Heard(said, 100.0, series))[6]
    assert re.search(r"█ {20,}█", batch)


HOSTILE = "[bold]x[/nothing]\x1b[2J\x1b]0;t\x07\n\x9b31m\u202e"


def with_names(name, tenant):
    """A message in which others chose every name."""
    known = heard()
    summary, running = known.message["summary"], known.message["running"]
    for row in running["rows"]:
        row.update(id=name, model=name, tenant=tenant)
    summary["engines"] = [{"engine": name, "model": name, "devices": [name]}]
    summary["devices"][0].update(gpu_name=name, gpu=name)
    known.message["problems"] = [name]
    return known


@pytest.mark.parametrize("colours", [False, True])
def test_no_name_commands_the_terminal(colours):
    """No escape, no line end, no markup: what it is shows as text, and the frame holds."""
    plain = lines(heard(), colours=colours)
    shown = lines(with_names(HOSTILE, HOSTILE), size=Size(120, 24), colours=colours)
    assert len(shown) == len(plain) == 24
    text = "\n".join(shown)
    allowed = re.sub(r"\x1b\[[0-9;]*m", "", text) if colours else text
    assert allowed.replace("\n", "").isprintable()
    assert "[bold]x[/nothing]" in text
    typed = lines(heard(), View(typing=True, match="\x1b[2J"))
    assert "\x1b" not in "".join(typed)


def test_without_a_tenant_there_is_no_such_column():
    """vLLM's plugin names none; the help does not speak of one either."""
    wide = Size(120, 40)
    assert "tenant" in "\n".join(lines(heard(), size=wide))
    assert "tenant" in "\n".join(lines(heard(), View(help=True), size=wide))
    none = with_names("r", None)
    assert "tenant" not in "\n".join(lines(none, size=wide))
    assert "id or model" in "\n".join(lines(none, View(help=True), size=wide))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_the_legend_names_every_account(width):
    """As many lines as it takes; and every key stands in the last line from 60 columns on."""
    known = heard()
    names = ("prefill", "decode", "recompute", "idle", "startup", "unattributed", "pending")
    for name in names:
        known.message["summary"][f"{name}_j"] = known.message["summary"]["measured_j"] / 7
    view = View(order="newest", match="a-long-filter", unit="cost")
    shown = lines(known, view, Size(width, 24))
    assert all(any(f"■ {name} 14.3%" in line for line in shown) for name in names)
    if width >= 60:
        assert "…" not in shown[-1].replace("a-long-fi…", "")
        assert all(word in shown[-1] for word in ("quit", "newest", "cost", "freeze", "help"))


@pytest.mark.parametrize("key", ["measured_j", "idle_j", "conservation_error_j", "prefill_j"])
def test_an_unknown_figure_is_a_dash(key):
    """What the meter could not say is null; the rest is shown, and the sum is not called good."""
    known = heard()
    known.message["summary"][key] = None
    known.message["summary"]["per_token"] = [
        row | {"kwh_per_token": None} for row in known.message["summary"]["per_token"]
    ]
    for row in known.message["running"]["rows"][:3]:
        row.update(energy_j=None, prefill_j=None, age_s=None, cost=None)
    for order in ORDERS:
        shown = "\n".join(lines(known, View(order=order), Size(140, 40)))
        assert "chatcmpl-" in shown
    assert ("✓" in shown) == (key == "prefill_j")
