"""Finds the counter's window: how late it shows what was drawn, and how smeared.

For every candidate the work of the intervals is seen through that window and fitted; the window
whose fit leaves least is the counter's. Under steady load all windows fit alike: then the last one
stays, and its doubt is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from meter.attribution.curve import Array, Curve, Ints
from meter.attribution.fit import Window
from meter.attribution.median import median

_DELAYS_S = (-0.1, 0.3)
_DELAY_STEP_S = 0.02
_WIDTHS_S = (0.0, 0.03, 0.06, 0.09, 0.12, 0.16, 0.2)
#: Beyond it a smear is no counter's, but that of work whose like is averaged away.
_WIDTH_MAX_S = 0.3
_FINE_S = (0.005, 0.001)
_WIDTH_FINE_S = (0.01, 0.004)
_CLIP = 6.25
_GAIN_MIN = 9.0
_GAIN_SHARE_MIN = 0.1
_ROUNDS = 2
_FIT_ROUNDS = 8
_STILL = 0.01
_RIDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Seen:
    """Raw facts of many intervals: what a window is fitted to. Seconds from one origin.

    ``curve``: features and, last, seconds of running; ``edges``: of all intervals, each once;
    ``starts``, ``ends``, places in it, ``energy_j``, ``run_share``, ``jitter_s``: (n,).
    """

    curve: Curve
    edges: Array
    starts: Ints
    ends: Ints
    energy_j: Array
    run_share: Array
    jitter_s: Array

    def work(self, window: Window) -> Array:
        """Features and running seconds by interval, as seen through ``window``: (n, columns)."""
        until = self.curve.through(self.edges - window.delay_s, window.width_s)
        return np.asarray(until[self.ends] - until[self.starts])

    def rows(self, window: Window) -> Array:
        """The rows of ``fit.Rows`` as one array, as seen through ``window``."""
        work = self.work(window)
        work[:, 1:] = np.maximum(work[:, 1:], 0.0)
        jitter = self.jitter_s / (self.edges[self.ends] - self.edges[self.starts])
        return np.column_stack((work[:, :-1], self.energy_j, work[:, -1], self.run_share, jitter))


def find_window(seen: Seen, present: Window) -> Window:
    """The window that explains ``seen`` best; ``present`` where nothing does clearly better."""
    misfit = _Misfit(seen)
    misfit.calibrate(present)
    low, high = _DELAYS_S
    grid = np.arange(low, high + 1e-9, _DELAY_STEP_S)
    best = misfit.least([present, *(Window(float(d), 0.0) for d in grid)])
    best = misfit.descend(best, partial(_shifted, step_s=_DELAY_STEP_S))
    misfit.calibrate(best)
    best = misfit.least([best, *(Window(best.delay_s, w) for w in _WIDTHS_S)])
    for _ in range(_ROUNDS):
        for fine, wide in zip(_FINE_S, _WIDTH_FINE_S, strict=True):
            best = misfit.descend(best, partial(_shifted, step_s=fine))
            best = misfit.descend(best, partial(_widened, step_s=wide))
    misfit.calibrate(best)
    count = len(seen.energy_j)
    gain = misfit(present) - misfit(best)
    # A form that is wrong likes any smear a little: that there is a window at all must be plain.
    least = _GAIN_SHARE_MIN * misfit(present) if present[:2] == Window()[:2] else 0.0
    doubt_s = _doubt_s(misfit, best, count)
    if gain * count < _GAIN_MIN or gain < least or doubt_s is None:
        best, doubt_s = present, _doubt_s(misfit, present, count)
    return best._replace(doubt_s=doubt_s)


def _shifted(window: Window, step_s: float) -> list[Window]:
    low, high = _DELAYS_S
    delays = (window.delay_s - step_s, window.delay_s + step_s)
    return [window._replace(delay_s=d) for d in delays if low <= d <= high]


def _widened(window: Window, step_s: float) -> list[Window]:
    widths = (window.width_s - step_s, window.width_s + step_s)
    return [window._replace(width_s=w) for w in widths if 0 <= w <= _WIDTH_MAX_S]


def _doubt_s(misfit: _Misfit, best: Window, count: int) -> float | None:
    """From the curvature of the misfit: where χ² has grown by one. ``None`` where it is flat."""
    step = 0.01
    sides = [misfit(best._replace(delay_s=best.delay_s + s)) for s in (-step, step)]
    curvature = (sides[0] + sides[1] - 2 * misfit(best)) / step**2 / 2
    gain = curvature * step**2 * count
    return float((1.0 / (curvature * count)) ** 0.5) if gain > 1.0 else None


class _Misfit:
    """Mean clipped squared residual of a plain fit through a window; remembers what it saw."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._sigma: Array = np.ones(len(seen.energy_j))
        self._trust: Array = np.ones(len(seen.energy_j))
        self._known: dict[tuple[float, float], float] = {}

    def calibrate(self, window: Window) -> None:
        """Measure residuals in units of what they are under ``window``."""
        relative = np.sqrt(self._seen.run_share + 1e-4)
        residual, self._trust = self._residual(window)
        busy = self._seen.run_share > 1e-3
        residual = (np.abs(residual) / relative)[busy if busy.any() else ...]
        scale = max(1e-6, 1.4826 * median(residual))
        self._sigma = scale * relative
        self._known.clear()

    def __call__(self, window: Window) -> float:
        key = (round(window.delay_s, 6), round(window.width_s, 6))
        if key not in self._known:
            standard = np.square(self._residual(window)[0] / self._sigma)
            self._known[key] = float(np.minimum(standard, _CLIP).mean())
        return self._known[key]

    def least(self, windows: Iterable[Window]) -> Window:
        return min(windows, key=self)

    def descend(self, window: Window, near: Callable[[Window], Iterable[Window]]) -> Window:
        """Step to the better neighbour as long as there is one."""
        for _ in range(50):
            better = self.least([window, *near(window)])
            if better == window:
                break
            window = better
        return window

    def _residual(self, window: Window) -> tuple[Array, Array]:
        """Relative residuals of a fit without sign or prior, and the trust in each interval.

        Outliers are held down, beginning with those of the window that was calibrated with.
        """
        x, y = self._seen.work(window)[:, :-1], self._seen.energy_j
        size = np.maximum(y, 0.1 * median(y) + 1e-12)
        a = x / size[:, None] / self._sigma[:, None]
        b = y / size / self._sigma
        residual, trust, spread = b, self._trust, np.inf
        for _ in range(_FIT_ROUNDS):
            weighted = a * trust[:, None]
            hessian = weighted.T @ a
            diagonal = np.diag(hessian).copy()
            diagonal[diagonal <= 0] = 1.0
            scale = 1 / np.sqrt(diagonal)
            normal = hessian * np.outer(scale, scale) + _RIDGE * np.eye(len(scale))
            theta = np.linalg.solve(normal, scale * (weighted.T @ b)) * scale
            residual = b - a @ theta
            before, spread = spread, 1.4826 * median(np.abs(residual)) + 1e-12
            trust = 1.0 / np.maximum(1.0, np.square(residual / (3 * spread)))
            if abs(spread - before) < _STILL * spread:
                break
        return np.asarray(residual * self._sigma), trust
