"""Recorded runs, bent: what a broken meter would have seen. None may pass for a good one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from meter.attribution import Attributor
from meter.attribution.coefficients import Coefficients
from meter.model import Event, Phase, Receipt, RequestClosed, Step, Work
from meter.trace import Trace


def full_steps(events: Iterable[Event]) -> Iterator[Event]:
    """The same events with every step in full form (one engine, one epoch; see ``model.Step``)."""
    decoding: dict[str, int] = {}
    for event in events:
        if isinstance(event, RequestClosed):
            decoding.pop(event.request, None)
        if not isinstance(event, Step):
            yield event
            continue
        implied = decoding if event.same else {}
        work = {r: Work(r, 1, ctx, Phase.DECODE) for r, ctx in implied.items()}
        for request in event.drop:
            work.pop(request, None)
        work |= {part.request: part for part in event.work}
        decoding = {
            r: part.context + part.tokens for r, part in work.items() if part.phase is Phase.DECODE
        }
        yield replace(event, work=tuple(work.values()), same=False, drop=())


def _bent(trace: Trace, bend: Callable[[Work], Work]) -> Trace:
    """The trace with each part of each step's work changed."""
    events = [
        replace(event, work=tuple(map(bend, event.work))) if isinstance(event, Step) else event
        for event in full_steps(trace.events)
    ]
    return replace(trace, events=events)


def swapped_phases(trace: Trace) -> Trace:
    """Prefill is called decode, and decode prefill."""
    swap = {Phase.PREFILL: Phase.DECODE, Phase.DECODE: Phase.PREFILL}
    return _bent(trace, lambda work: work._replace(phase=swap.get(work.phase, work.phase)))


def dropped_context(trace: Trace) -> Trace:
    """Nobody has anything behind them."""
    return _bent(trace, lambda work: work._replace(context=0))


def dropped_tokens(trace: Trace) -> Trace:
    """A prefill chunk counts as one token."""
    return _bent(trace, lambda work: work._replace(tokens=1))


def with_coefficients(
    trace: Trace, change: Callable[[Coefficients], Coefficients]
) -> list[Receipt]:
    """The receipts of a core whose coefficients are changed from what the whole trace teaches."""
    teacher = _fed(trace, Attributor(trace.devices, trace.engines, hindsight=True))
    fits = {
        device: replace(right, coefficients=tuple(map(change, right.coefficients)))
        for device, right in teacher.fits().items()
    }
    return _fed(trace, Attributor(trace.devices, trace.engines, fits)).drain()


def _fed(trace: Trace, core: Attributor) -> Attributor:
    for event in trace.events:
        core.feed(event)
    core.finish()
    return core
