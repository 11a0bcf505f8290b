"""What the keys change: a small immutable state, and what each key makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

ORDERS = ("energy", "token", "tokens", "prompt", "age", "newest")
UNITS = ("J", "kWh", "cost")
HELP = (
    ("s, S", "next, previous order of the requests"),
    ("/", "filter by {names}; Enter keeps it, Esc drops it"),
    ("u", "J, kWh or cost"),
    ("f, space", "freeze what is shown; the meter goes on"),
    ("↑ ↓, k j", "scroll; PgUp, PgDn by pages, g to the top"),
    ("?, h", "this help"),
    ("q, Ctrl-C", "quit"),
)


def help_lines(tenants: bool) -> list[tuple[str, str]]:
    """Keys and what they do. ``tenants``: whether any request names one."""
    names = "id, tenant or model" if tenants else "id or model"
    return [(keys, what.format(names=names)) for keys, what in HELP]


@dataclass(frozen=True, slots=True)
class View:
    """``typing``: the filter is being typed; ``quit``: the reader has had enough."""

    order: str = "energy"
    match: str = ""
    unit: str = "J"
    typing: bool = False
    frozen: bool = False
    help: bool = False
    scroll: int = 0
    quit: bool = False


def press(view: View, key: str, page: int = 10) -> View:
    """The view after a key; ``page``: rows that PgUp and PgDn move by. Unknown keys do nothing."""
    if key == "ctrl-c":
        return replace(view, quit=True)
    if view.typing:
        return _type(view, key)
    match key:
        case "q":
            return replace(view, quit=True)
        case "s" | "S":
            step = 1 if key == "s" else -1
            order = ORDERS[(ORDERS.index(view.order) + step) % len(ORDERS)]
            return replace(view, order=order, scroll=0)
        case "u":
            return replace(view, unit=UNITS[(UNITS.index(view.unit) + 1) % len(UNITS)])
        case "f" | " ":
            return replace(view, frozen=not view.frozen)
        case "?" | "h":
            return replace(view, help=not view.help)
        case "/":
            return replace(view, typing=True, help=False)
        case "esc":
            return replace(view, match="", help=False, scroll=0)
        case _:
            return _scroll(view, key, page)


def _type(view: View, key: str) -> View:
    if key == "enter":
        return replace(view, typing=False)
    if key == "esc":
        return replace(view, typing=False, match="", scroll=0)
    if key == "backspace":
        return replace(view, match=view.match[:-1], scroll=0)
    if len(key) == 1 and key.isprintable() and len(view.match) < 60:
        return replace(view, match=view.match + key, scroll=0)
    return view


def _scroll(view: View, key: str, page: int) -> View:
    steps = {"down": 1, "j": 1, "up": -1, "k": -1, "pgdn": page, "pgup": -page, "g": -view.scroll}
    return replace(view, scroll=max(0, view.scroll + steps.get(key, 0)))
