"""What the change form of steps means, spelled out request by request. For tests only.

Written from ``meter.model.Step`` alone, with a dict of everybody and no cleverness, so that it can
check what the plugin tells without sharing a line with the core.
"""

from __future__ import annotations

from collections.abc import Iterable

from meter.model import EngineEvent, Event, Phase, RequestClosed, Step, Work


class LostBaseError(AssertionError):
    """A step in change form whose predecessor is not known."""


def lives(events: Iterable[Event]) -> list[list[Event]]:
    """The events of each life of an engine: a life begins with its first hello."""
    found: list[list[Event]] = []
    epoch = None
    for event in events:
        if isinstance(event, EngineEvent) and event.event != "down" and event.epoch != epoch:
            epoch = event.epoch
            found.append([])
        found[-1].append(event)
    return found


def expand(events: Iterable[Event]) -> list[dict[str, Work]]:
    """Every step with all of its participants."""
    steps: list[dict[str, Work]] = []
    last: Step | None = None
    closed: set[str] = set()
    for event in events:
        if isinstance(event, RequestClosed):
            closed.add(event.request)
        if not isinstance(event, Step) or event.dummy:
            continue
        now: dict[str, Work] = {}
        if event.same:
            if last is None or event.seq != last.seq + 1 or event.epoch != last.epoch:
                raise LostBaseError(f"step {event.seq} has no base")
            for name, before in steps[-1].items():
                if before.phase is Phase.DECODE and name not in closed and name not in event.drop:
                    now[name] = Work(name, 1, before.context + 1, Phase.DECODE)
        for work in event.work:
            if event.same is False and work.request in now:
                raise AssertionError(f"{work.request} is named twice in step {event.seq}")
            now[work.request] = work
        steps.append(now)
        last = event
    return steps
