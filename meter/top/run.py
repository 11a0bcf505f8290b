"""The command: one look, JSON, or a screen that follows until the reader quits."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from rich.console import Console
from rich.live import Live

from meter.top.draw import Size, frame
from meter.top.feed import Feed, FeedError, Heard, Query, listen
from meter.top.keys import Keyboard
from meter.top.series import Series
from meter.top.view import View, press

_FRAME_S = 0.25
_ONCE_HEIGHT = 24


def top(url: str, view: View, once: bool, as_json: bool) -> int:
    """Show the meter at ``url``; returns the exit code: 1 where none answers."""
    try:
        if as_json:
            return _print_json(url, view, once)
        if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            return _print_once(url, view)
        _follow(url, view)
    except FeedError as error:
        print(f"joulemeter: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def _print_json(url: str, view: View, once: bool) -> int:
    """Each message on a line; with ``once`` the first that has figures."""
    for message in listen(url, Query(view.order, view.match)):
        if not once and message:
            print(json.dumps(message), flush=True)
        elif "summary" in message:
            print(json.dumps(message))
            return 0
    return 0 if not once else _ended()


def _print_once(url: str, view: View) -> int:
    """One frame, as plain as the output is."""
    console = Console(highlight=False)
    for message in listen(url, Query(view.order, view.match)):
        if "summary" not in message:
            continue
        series = Series()
        series.add(message["moments"], message["accounts"])
        heard = Heard(message, time.monotonic(), series)
        size = Size(console.width, max(_ONCE_HEIGHT, console.height - 1))
        console.print(frame(heard, view, size, time.monotonic()))
        return 0
    return _ended()


def _ended() -> int:
    print("joulemeter: the meter ended before it had a reading", file=sys.stderr)
    return 1


def _follow(url: str, view: View) -> None:
    """The screen. Keys are read here, messages come on the feed's thread."""
    console = Console(highlight=False)
    feed = Feed(url, Query(view.order, view.match))
    feed.start()
    frozen: Heard | None = None
    try:
        with (
            _quitting() as ended,
            Keyboard(sys.stdin.fileno()) as keyboard,
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while not (view.quit or ended):
                heard = feed.heard()
                shown = frozen if view.frozen and frozen is not None else heard
                size = Size(*console.size)
                live.update(frame(shown, view, size, _now_s(shown, frozen)), refresh=True)
                for key in keyboard.read(_FRAME_S):
                    view = press(view, key, max(1, size.height - 14))
                frozen = (frozen or heard) if view.frozen else None
                if not view.typing:
                    feed.ask(Query(view.order, view.match))
    finally:
        feed.stop()


def _now_s(shown: Heard, frozen: Heard | None) -> float:
    """What is frozen does not grow old."""
    return shown.at_s if frozen is not None and shown.at_s is not None else time.monotonic()


@contextmanager
def _quitting() -> Iterator[list[int]]:
    """Filled by SIGTERM or SIGHUP, so that the terminal is left in order."""
    ended: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        ended.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def view_of(order: str, match: str, unit: str) -> View:
    """The view that the command line asks for."""
    return replace(View(), order=order, match=match, unit=unit)
