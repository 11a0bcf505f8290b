"""Figures per token over trailing windows."""

import pytest
from export_samples import NS, key, make_snapshot

from meter.export.windows import Ring
from meter.model import Account, TokenKey
from meter.pricing import Costs, kwh


def figure(figures, **wanted):
    """The one figure with these labels."""
    found = [f for f in figures if all(getattr(f, k) == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def test_energy_per_token_is_of_the_window_alone():
    """What was before the window does not count."""
    ring = Ring(0)
    for second in range(200):
        scale = second if second <= 100 else 100 + (second - 100) * 3
        figures = ring.add(make_snapshot(float(second), float(scale)), Costs())
    minute = figure(figures, window="1m", token_type="output", idle="without")
    assert minute.kwh_per_token == pytest.approx(float(kwh(360.0 / 120.0)))
    doubled = make_snapshot(201.0, 400.0, tokens={TokenKey("0", "m", "output"): 47_700})
    minute = figure(ring.add(doubled, Costs()), window="1m", token_type="output", idle="without")
    hour = figure(ring.add(doubled, Costs()), window="1h", token_type="output", idle="without")
    assert hour.kwh_per_token == pytest.approx(float(kwh(360.0 * 400 / 47_700)))
    assert minute.kwh_per_token != pytest.approx(hour.kwh_per_token)


def test_the_window_starts_a_minute_before_the_watermark():
    """A change of pace shows in the minute at once and in the hour hardly."""
    ring = Ring(0)
    energy = tokens = 0.0
    for second in range(3700):
        energy += 10.0 if second < 3640 else 40.0
        tokens += 5
        snapshot = make_snapshot(
            float(second),
            accounts={key(Account.DECODE): energy},
            tokens={TokenKey("0", "m", "output"): int(tokens)},
        )
        figures = ring.add(snapshot, Costs())
    minute = figure(figures, window="1m", token_type="output", idle="with")
    hour = figure(figures, window="1h", token_type="output", idle="with")
    assert minute.kwh_per_token == pytest.approx(float(kwh(8.0)))
    assert hour.kwh_per_token == pytest.approx(float(kwh((59 * 2 + 8.0) / 60)), rel=0.01)


def test_idle_is_spread_over_the_tokens_only_where_asked():
    """``with`` has it, ``without`` has not."""
    ring = Ring(0)
    ring.add(make_snapshot(0.0, 0.0), Costs())
    figures = ring.add(make_snapshot(30.0), Costs())
    without = figure(figures, window="1m", token_type="total", idle="without")
    with_idle = figure(figures, window="1m", token_type="total", idle="with")
    assert without.kwh_per_token == pytest.approx(float(kwh(360.0 / 220)))
    assert with_idle.kwh_per_token == pytest.approx(float(kwh(440.0 / 220)))


def test_idle_of_an_engine_without_a_model_goes_to_its_models():
    """In proportion to what was attributed to them; all of it, once."""
    ring = Ring(0)
    accounts = {
        key(Account.DECODE, "0", "a"): 300.0,
        key(Account.DECODE, "0", "b"): 100.0,
        key(Account.IDLE, "0", ""): 80.0,
    }
    tokens = {TokenKey("0", "a", "output"): 10, TokenKey("0", "b", "output"): 10}
    ring.add(make_snapshot(0.0, accounts={}, tokens={}), Costs())
    figures = ring.add(make_snapshot(30.0, accounts=accounts, tokens=tokens), Costs())
    a = figure(figures, model="a", window="1m", token_type="output", idle="with")
    b = figure(figures, model="b", window="1m", token_type="output", idle="with")
    assert a.kwh_per_token == pytest.approx(float(kwh(360.0 / 10)))
    assert b.kwh_per_token == pytest.approx(float(kwh(120.0 / 10)))


def test_without_tokens_there_is_no_figure():
    """Absent, not infinite and not zero."""
    ring = Ring(0)
    ring.add(make_snapshot(10.0), Costs())
    for later in range(11, 75):
        ring.add(make_snapshot(float(later)), Costs())
    assert not [f for f in ring.add(make_snapshot(75.0), Costs()) if f.window == "1m"]
    assert Ring(0).add(make_snapshot(30.0, tokens={}), Costs()) == ()


def test_the_first_settled_moment_has_figures():
    """Of all since metering began."""
    figures = Ring(0).add(make_snapshot(5.0), Costs())
    minute = figure(figures, window="1m", token_type="output", idle="without")
    assert minute.kwh_per_token == pytest.approx(float(kwh(360.0 / 120.0)))


def test_nothing_is_shown_before_anything_is_settled():
    """A snapshot without a watermark has no window."""
    assert Ring(0).add(make_snapshot(settled_ns=None), Costs()) == ()


def test_the_ring_is_bounded():
    """However often it is fed; an hour is kept at one entry a quarter of a minute."""
    ring = Ring(0)
    for tenth in range(0, 72_000, 5):
        ring.add(make_snapshot(settled_ns=tenth * NS // 10), Costs())
    assert {window: len(past) for window, past in ring._pasts.items()} == {"1m": 61, "1h": 241}


def test_models_beyond_the_bound_are_one_figure():
    """Summed under their common label, not the last of them shown."""
    accounts = {key(Account.DECODE, "0", name): 100.0 for name in "abc"}
    tokens = {TokenKey("0", name, "output"): 10 for name in "abc"}
    ring = Ring(0, lambda model: model if model == "a" else "other")
    figures = ring.add(make_snapshot(30.0, accounts=accounts, tokens=tokens), Costs())
    other = figure(figures, model="other", window="1m", token_type="output", idle="with")
    assert other.kwh_per_token == pytest.approx(float(kwh(10.0)))
