"""What the keys do."""

import pytest

from meter.top.keys import split
from meter.top.view import ORDERS, UNITS, View, press


def after(*keys, view=None):
    view = view or View()
    for key in keys:
        view = press(view, key)
    return view


def test_s_goes_round_the_orders_and_back():
    """Forwards with s, backwards with S."""
    view = View()
    seen = [view.order]
    for _ in ORDERS:
        view = press(view, "s")
        seen.append(view.order)
    assert seen == [*ORDERS, ORDERS[0]]
    assert after("s", "S") == View()


def test_u_goes_round_the_units():
    """J, kWh, cost, J."""
    view, seen = View(), []
    for _ in UNITS:
        seen.append(view.unit)
        view = press(view, "u")
    assert (tuple(seen), view.unit) == (UNITS, "J")


def test_a_filter_is_typed_kept_or_dropped():
    """While it is typed, letters are letters and not commands."""
    typed = after("/", "q", "s", "é", "backspace", "1")
    assert (typed.typing, typed.match, typed.quit) == (True, "qs1", False)
    assert after("enter", view=typed).match == "qs1"
    assert not after("enter", view=typed).typing
    assert after("esc", view=typed) == View()
    assert after("enter", "esc", view=typed).match == ""


def test_freeze_help_and_quit():
    """Each is undone by itself, but for the last."""
    assert after("f").frozen and not after("f", " ").frozen
    assert after("?").help and not after("?", "h").help
    assert after("q").quit and after("/", "ctrl-c").quit


def test_scrolling_never_goes_above_the_top():
    """By lines, by pages, and to the top."""
    assert after("down", "j", "up", "k", "k").scroll == 0
    assert after("pgdn", "down").scroll == 11
    assert after("pgdn", "pgdn", "g").scroll == 0
    assert after("pgdn", "s").scroll == 0


@pytest.mark.parametrize("key", ["x", "left", "\x00"])
def test_other_keys_do_nothing(key):
    """Nor do they end anything."""
    assert press(View(), key) == View()


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"q", ["q"]),
        (b"ab", ["a", "b"]),
        (b"\x1b[A\x1b[B", ["up", "down"]),
        (b"\x1b[5~\x1b[6~", ["pgup", "pgdn"]),
        (b"\x1b", ["esc"]),
        (b"\x1b[1;5Cq", ["q"]),
        (b"\r\x7f\x03", ["enter", "backspace", "ctrl-c"]),
        ("é中".encode(), ["é", "中"]),
        (b"\xffq", ["q"]),
        (b"\x1b[", []),
    ],
)
def test_what_a_terminal_sends_becomes_keys(sent, keys):
    """Arrows, pages, UTF-8; what is not known is dropped."""
    assert list(split(sent)) == keys
