"""Power by account, where energy settles in lumps: it is shown over the time it was drawn in.

Steps of seconds settle seconds later, all at once, and one of two devices is read seldom. Neither
may make a peak that was never drawn, or lose a joule: on the page and in ``top`` (which follow the
same moments), and in a trace's report.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from meter.attribution import Attributor
from meter.export.live import moments_json
from meter.export.moments import ACCOUNTS, Moment, Moments
from meter.model import (
    Device,
    Engine,
    Event,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.pricing import Tariff
from meter.report.from_trace import from_trace
from meter.top.series import Series
from meter.trace import TraceWriter

S = 1_000_000_000
MS = 1_000_000
SECONDS = 60
BUSY_W, IDLE_W = 95.0, 20.0
GPUS = [Device(f"GPU-{i}", "card", Quality.SIMULATED, str(i), refresh_s=0.0) for i in range(2)]
ENGINE = Engine("0", ("GPU-0", "GPU-1"), "m")


def spans() -> list[tuple[int, int]]:
    """Steps of one to four seconds, now and then a rest after them."""
    found, now = [], S
    for length_ms, rest_ms in itertools.cycle([(2500, 0), (1000, 0), (4000, 3000), (1500, 200)]):
        if now + length_ms * MS > (SECONDS - 2) * S:
            return found
        found.append((now, now + length_ms * MS))
        now += (length_ms + rest_ms) * MS
    return found


def drawn_uj(t_ns: int) -> int:
    """What one device has drawn since the first second."""
    busy_ns = sum(max(0, min(t_ns, end) - start) for start, end in spans())
    return round((IDLE_W * (t_ns - S) + (BUSY_W - IDLE_W) * busy_ns) / 1000)


def events() -> list[Event]:
    """One request a step; the second device is read every five seconds alone."""
    found: list[Event] = []
    for seq, (start, end) in enumerate(spans()):
        name = f"r{seq}"
        found.append(RequestOpened("0", name, start))
        found.append(Step("0", 0, seq, start, end, (Work(name, 9, 0, Phase.PREFILL),)))
        found.append(RequestClosed("0", name, end, "stop"))
    for gpu, every_ms in zip(GPUS, (100, 5000), strict=True):
        times = range(S, SECONDS * S + 1, every_ms * MS)
        found += [Reading(gpu.id, t_ns, drawn_uj(t_ns)) for t_ns in times]
    return sorted(found, key=lambda e: e.t_ns)


def told(every_ns: int = 250 * MS) -> Sequence[Moment]:
    """The moments of a run, published as the writer does."""
    core, moments, due_ns = Attributor(GPUS, [ENGINE]), Moments(), 0
    kept: Sequence[Moment] = ()
    for event in events():
        core.feed(event)
        if event.t_ns >= due_ns:
            due_ns = event.t_ns + every_ns
            kept = moments.add(core.snapshot())
    core.finish()
    return kept


def test_moments_hold_what_was_drawn_until_their_time() -> None:
    """To a few per cent at any time, though steps and devices settle seconds apart."""
    checked = 0
    for moment in told():
        if moment.settled_ns is not None and moment.settled_ns > 10 * S:
            truth_j = 2 * drawn_uj(moment.settled_ns) / 1e6
            # A device that is read every five seconds is known by its mean in between.
            assert sum(moment.accounts_j) == pytest.approx(truth_j, abs=5 * (BUSY_W - IDLE_W) / 2)
            checked += 1
    assert checked > 50


def test_no_more_power_is_shown_than_was_drawn() -> None:
    """And the joules under the curve are those that were drawn."""
    series = Series()
    series.add(moments_json(told()), ACCOUNTS)
    shown = [(flow.t_s, sum(flow.watts)) for flow in series.flows]
    assert max(watts for _, watts in shown) < 2 * BUSY_W * 1.05
    area_j = sum(
        (one[1] + other[1]) / 2 * (other[0] - one[0]) for one, other in itertools.pairwise(shown)
    )
    first, last = (round(shown[i][0] * S) for i in (0, -1))
    assert area_j == pytest.approx(2 * (drawn_uj(last) - drawn_uj(first)) / 1e6, rel=0.03)


def test_a_reports_power_is_what_was_drawn(tmp_path: Path) -> None:
    """Bin by bin no more than was drawn, and over all bins the joules of the accounts."""
    trace = tmp_path / "lumps.jsonl"
    writer = TraceWriter(trace, tuple(GPUS), (ENGINE,))
    for event in events():
        writer.write(event)
    writer.close()
    report = from_trace(trace, Tariff("EUR"))
    bins = [b for b in report.timeline if b.watts is not None]
    assert max(sum(b.watts or ()) for b in bins) < 2 * BUSY_W * 1.05
    area_j = sum(sum(b.watts or ()) * (b.end_s - b.start_s) for b in bins)
    assert area_j == pytest.approx(report.measured_j, rel=0.02)
