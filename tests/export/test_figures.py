"""How figures are printed: one way, wherever they stand."""

import pytest

from meter.export.figures import (
    UNKNOWN,
    closes,
    count,
    duration,
    energy,
    many,
    money,
    number,
    percent,
    printable,
    quantity,
    sum_line,
    summands,
)


@pytest.mark.parametrize(
    ("energy_j", "said"),
    [
        (None, "–"),
        (0.0, "0 J"),
        (0.0123, "12.30 mJ"),
        (5.0, "5.000 J"),
        (999.96, "1.000 kJ"),
        (12_345.6, "12.35 kJ"),
        (-1500.0, "-1.500 kJ"),
        (3.6e9, "3.600 GJ"),
        (1e-9, "0.001000 µJ"),
    ],
)
def test_joules_have_four_digits_and_the_prefix_that_fits(energy_j, said):
    """Never in powers of ten."""
    assert energy(energy_j) == said


def test_kilowatt_hours_are_watt_hours_with_their_prefix():
    """3.6 MJ are 1 kWh."""
    assert energy(3.6e6, "kWh") == "1.000 kWh"
    assert energy(3.6, "kWh", 3) == "1.00 mWh"


def test_the_whole_part_is_always_shown():
    """However few digits are asked for."""
    assert number(123_456.0, 3) == "123,456"
    assert quantity(0.4567, "W", 2) == "457 mW"


def test_money_is_often_millionths():
    """And whole cents are not."""
    assert money(0.000131, "USD") == "131 µUSD"
    assert money(0.25, "EUR") == "0.250 EUR"
    assert money(0.0, "EUR") == "0 EUR"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1.23, "1.2 s"), (125.0, "2 min 5 s"), (9000.0, "2 h 30 min"), (864_000.0, "10.0 days")],
)
def test_a_time_is_as_long_as_it_is_read(seconds, said):
    """Seconds, minutes, hours, days."""
    assert duration(seconds) == said


def test_unknown_is_a_dash():
    """And a part of nothing is unknown."""
    assert {count(None), number(None), money(None, "USD"), duration(None)} == {UNKNOWN}
    assert percent(1.0, 0.0) == UNKNOWN


def test_the_sum_adds_up_as_it_is_written():
    """To the last digit shown, though each term alone would round otherwise."""
    total, terms, unit = summands(100.0, [33.333, 33.333, 33.334])
    assert (total, unit) == ("100.0", "J")
    assert sum(map(float, terms)) == pytest.approx(100.0, abs=1e-9)


@pytest.mark.parametrize("unit", ["J", "kWh"])
@pytest.mark.parametrize("total_j", [3e-7, 0.02, 0.9999, 1.0, 9.9996, 59.99, 99.96, 1e3, 1e6, 3e9])
def test_a_sum_of_any_size_is_short_and_adds_up(total_j, unit):
    """No unit in which a small sum has five digits before its point."""
    terms_j = [total_j / 3, total_j / 7, total_j * (1 - 1 / 3 - 1 / 7)]
    total, terms, _ = summands(total_j, terms_j, unit)
    values = [float(term.replace(",", "")) for term in terms]
    assert sum(values) == pytest.approx(float(total.replace(",", "")), abs=1e-9)
    assert total_j < 1e-3 or len(total) <= 10


def test_what_a_terminal_would_obey_is_not_printed():
    """Character by character, so that columns hold."""
    assert printable("a\x1b[2J\n\x9bb\u202e") == "a�[2J��b�"
    assert printable("Grüße 中文") == "Grüße 中文"


def test_the_line_names_the_quality_and_every_account():
    """In one unit; nothing is nothing, at any quality."""
    assert sum_line(12.5, {"attributed": 8.0, "idle": 4.5}, "simulated") == (
        "measured 12.50 J (simulated) = 8.00 attributed + 4.50 idle; residual 0.0e+00 J"
    )
    assert sum_line(60.0, {"idle": 60.0}, "estimated").startswith("measured 60.00 J (estimated)")
    assert sum_line(0.0605, {"idle": 0.0605}, None).startswith("measured 60.50 mJ ")
    assert sum_line(1.25, {"idle": 1.25}, None).startswith("measured 1.250 J ")
    assert sum_line(2e6, {"idle": 2e6}, None) == (
        "measured 2,000.0 kJ (quality unknown) = 2,000.0 idle; residual 0.0e+00 J"
    )
    assert sum_line(0.0, {"idle": 0.0}, "measured") == (
        "measured 0.0 J (measured) = 0.0 idle; residual 0.0e+00 J"
    )


def test_what_is_said_to_be_measured_is_what_was_measured():
    """Where joules are in no account the total is not the terms' sum, and the rest is said."""
    line = sum_line(5996.0, {"attributed": 5376.9, "idle": 87.6}, "measured")
    assert line == (
        "measured 5,996.0 J (measured) = 5,376.9 attributed + 87.6 idle; residual 5.3e+02 J"
    )
    total, terms, _ = summands(100.0, [120.0, 10.0])
    assert (total, terms) == ("100.0", ["120.0", "10.0"])


@pytest.mark.parametrize("measured_j", [1.0, 1e4, 1e10])
def test_a_sum_closes_to_a_microjoule_and_what_floats_round_to(measured_j):
    """After months of metering the last digits of a float are more than a microjoule."""
    assert closes(measured_j, measured_j * 1e-13)
    assert not closes(measured_j, max(2e-6, measured_j * 1e-9))


def test_one_is_no_plural():
    """``1 requests`` is nobody's English."""
    assert [many(n, "request") for n in (0, 1, 2000)] == [
        "0 requests",
        "1 request",
        "2,000 requests",
    ]
