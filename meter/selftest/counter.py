"""What a device's counter is like: its tick, its steps, its agreement with the power beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from meter.export.figures import quantity
from meter.model import DeviceState, Reading
from meter.selftest.look import Intervals, runs

_IDLE_S = 1.0
_BARE_NS = 300_000_000
_SWING = 0.05
_FEW = 5
_BUSY = 0.9
_STEADY = 4


class Counter(NamedTuple):
    """Seconds, joules, watts; ``None`` is not known.

    ``poll_s``: between two readings; ``edge_s``: doubt of a tick's time; ``step_j``: what the
    counter counts in; ``call_s``: how long one reading took; ``power_ratio``: joules of the counter
    over the integral of the power that was read beside it, where that was steady; ``bare_w``: the
    least steady power over 0.3 s before the first step (idle without a context, where the server
    was started under the meter); ``idle_w``: mean power where nothing ran for a second,
    ``idle_sd_w`` its spread; ``static_w``: the level that was learned.
    """

    refresh_s: float | None
    poll_s: float | None
    edge_s: float | None
    step_j: float | None
    tick_j: float | None
    call_s: float | None
    failed: int
    delay_s: float | None
    delay_sd_s: float | None
    smear_s: float | None
    power_ratio: float | None
    bare_w: float | None
    idle_w: float | None
    idle_sd_w: float | None
    static_w: float | None
    static_sd_w: float | None


def examine(state: DeviceState, readings: Sequence[Reading], intervals: Intervals) -> Counter:
    """``readings``: the device's own, in order."""
    good = [r for r in readings if r.energy_uj is not None]
    times_ns = np.array([r.t_ns for r in good], dtype=np.int64)
    moved_uj = np.diff(np.array([r.energy_uj for r in good], dtype=np.int64))
    idle_w, idle_sd_w = _idle(intervals)
    learned = "static_w" in state.coefficients and intervals.known.any()
    return Counter(
        refresh_s=state.refresh_s,
        poll_s=_median(np.diff(times_ns) / 1e9),
        edge_s=_median(intervals.jitter * intervals.seconds / 2**0.5),
        step_j=_step_j(moved_uj[moved_uj > 0]),
        tick_j=_median(intervals.energy_j),
        call_s=_median([r.latency_s for r in good if r.latency_s is not None]),
        failed=len(readings) - len(good),
        delay_s=state.delay_s,
        delay_sd_s=state.delay_sd_s,
        smear_s=state.smear_s,
        power_ratio=_power_ratio(good, intervals),
        bare_w=_bare_w(intervals),
        idle_w=idle_w,
        idle_sd_w=idle_sd_w,
        static_w=state.coefficients["static_w"] if learned else None,
        static_sd_w=state.coefficient_sd.get("static_w") if learned else None,
    )


def told(counter: Counter) -> list[tuple[str, str]]:
    """What it is like, in words, for a report."""
    rows: list[tuple[str, float | None, str]] = [
        ("it moves every", counter.refresh_s, "s"),
        ("in steps of", counter.step_j, "J"),
        ("later than what was drawn by", counter.delay_s, "s"),
        ("smeared over", counter.smear_s, "s"),
        ("one reading takes", counter.call_s, "s"),
        ("least idle before the first step", counter.bare_w, "W"),
        ("idle with the server on it", counter.idle_w, "W"),
    ]
    return [(name, quantity(value, unit, 3)) for name, value, unit in rows if value is not None]


def _median(values: Iterable[float] | np.ndarray) -> float | None:
    known = np.asarray(list(values), dtype=np.float64)
    return float(np.median(known)) if len(known) else None


def _step_j(moved_uj: np.ndarray) -> float | None:
    """All that the counter ever moved by is a multiple of it."""
    return float(np.gcd.reduce(moved_uj)) / 1e6 if len(moved_uj) else None


def _bare_w(intervals: Intervals) -> float | None:
    """Of stretches with a steady power in the time before the first step."""
    first = int(np.argmax(intervals.busy)) if intervals.busy.any() else len(intervals.busy)
    watts = intervals.energy_j[:first] / intervals.seconds[:first]
    least: float | None = None
    for start, start_ns in enumerate(intervals.start_ns[:first].tolist()):
        end = int(np.searchsorted(intervals.end_ns[:first], start_ns + _BARE_NS))
        if end >= first:
            break
        mean_w, swing_w = float(watts[start : end + 1].mean()), np.ptp(watts[start : end + 1])
        if swing_w <= _SWING * mean_w and (least is None or mean_w < least):
            least = mean_w
    return least


def _idle(intervals: Intervals) -> tuple[float | None, float | None]:
    """Mean and spread of the power while nothing ran, from a second after the last step on."""
    busy_ns = intervals.end_ns[intervals.busy]
    if not len(busy_ns):
        return None, None
    place = np.searchsorted(busy_ns, intervals.start_ns, side="right") - 1
    since_ns = intervals.start_ns - np.where(place >= 0, busy_ns[np.maximum(place, 0)], 0)
    still = ~intervals.busy & intervals.known & (place >= 0) & (since_ns > _IDLE_S * 1e9)
    if still.sum() < _FEW:
        return None, None
    watts = intervals.energy_j[still] / intervals.seconds[still]
    mean_w = intervals.energy_j[still].sum() / intervals.seconds[still].sum()
    return float(mean_w), float(np.std(watts))


def _power_ratio(readings: Sequence[Reading], intervals: Intervals) -> float | None:
    """Over stretches of four intervals and more that were busy throughout, or idle throughout.

    What the power field shows is a short mean once a tick: it meets a short load, or misses it.
    The first interval of a stretch is left out: the field may still show what was before.
    """
    powers = [(r.t_ns, r.power_w) for r in readings if r.power_w is not None]
    if not powers:
        return None
    times_ns, power_w = np.array([t for t, _ in powers]), np.array([w for _, w in powers])
    full = intervals.run_s > _BUSY * intervals.seconds
    counted_j = power_j = 0.0
    for chosen in (full, ~intervals.busy):
        for run in runs(chosen & intervals.known):
            low_ns, high_ns = intervals.end_ns[run[0]], intervals.end_ns[run[-1]]
            inside = (times_ns > low_ns) & (times_ns <= high_ns)
            if len(run) < _STEADY or not inside.any():
                continue
            counted_j += float(intervals.energy_j[run[1:]].sum())
            mean_w = float(power_w[inside].mean())
            power_j += mean_w * float(high_ns - low_ns) / 1e9
    return counted_j / power_j if power_j > 0 else None
