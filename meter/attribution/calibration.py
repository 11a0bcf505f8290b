"""Learns, interval by interval, what work costs on one device and how late its counter shows it.

The intervals of the last minutes are kept as rows for the fit, and for the search of the counter's
window as the segments of work they came from. An interval that a stranger's load was found in does
not teach.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meter.attribution.coefficients import GENERIC, NAMES, Prior
from meter.attribution.curve import Array, Curve
from meter.attribution.delay import Seen, find_window
from meter.attribution.fit import (
    SIZE,
    Fit,
    Rows,
    beside_others,
    fit_rows,
    steps_of,
    unfitted,
    widened,
)
from meter.attribution.load import FEATURES, RUN_S
from meter.attribution.settle import Block

_WINDOW = 4096
_FIRST_FIT = 8
_CONVERGED = 30
_REFIT_EVERY_MAX = 256
_SEARCH_FIRST = 100
_SEARCH_EVERY_MAX = 3000
_SEARCHED = 1500
_SEARCHED_IN_HINDSIGHT = 6000


class Kind(NamedTuple):
    """What engines have to share to have coefficients in common; ``devices``: how many they use."""

    model: str
    devices: int


class Told(NamedTuple):
    """As in ``DeviceState``."""

    coefficients: dict[str, float]
    sd: dict[str, float]
    by_model: dict[str, dict[str, tuple[float, float]]]


class _Kept(NamedTuple):
    """A block's raw facts, its work clipped to its own time; seconds from ``origin_ns``."""

    origin_ns: int
    starts: Array
    ends: Array
    amounts: Array
    edges: Array
    energy_j: Array
    run_share: Array
    jitter_s: Array
    usable: NDArray[np.bool_]


class Calibration:
    """The intervals of one device and the fit to them, renewed as they come.

    The kinds of engines on the device have coefficients of their own, in the order in which they
    came. ``fixed`` replaces learning by a given fit; ``hindsight`` keeps everything and fits only
    when asked to (replay over a whole trace).
    """

    def __init__(
        self,
        fixed: Fit | None = None,
        hindsight: bool = False,
    ) -> None:
        self._priors: dict[Kind, Prior] = {}
        self.fit = fixed or unfitted([GENERIC])
        self._fixed = fixed is not None
        self._restored: Fit | None = None
        self._hindsight = hindsight
        self._rows = np.zeros((0, SIZE + 4))
        self._kept: deque[_Kept] = deque()
        self._kept_count = 0
        self._seen = 0
        self._busy = 0
        self._due = _FIRST_FIT
        self._search_due = _SEARCH_FIRST

    def place(self, kind: Kind) -> int:
        """Which of the fit's models an engine of this kind is."""
        known = list(self._priors)[: len(self.fit.coefficients)]
        return known.index(kind) if kind in known else 0

    def told(self) -> Told:
        """What was learned, by name."""
        fit = self.fit
        models = range(len(fit.coefficients))
        costs = [dict(zip(NAMES, fit.usual(model), strict=True)) for model in models]
        doubts = [dict(zip(NAMES, fit.sd(model), strict=True)) for model in models]
        if len(costs) == 1:
            return Told(costs[0], doubts[0], {})
        static, own = NAMES[0], NAMES[1:]
        by_model = {
            name: {key: (costs[place][key], doubts[place][key]) for key in own}
            for place, name in enumerate(self._names()[: len(costs)])
        }
        return Told({static: costs[0][static]}, {static: doubts[0][static]}, by_model)

    def _names(self) -> list[str]:
        """What the models are called: by how many devices too, where that tells them apart."""
        models = [kind.model for kind in self._priors]
        return [
            kind.model if models.count(kind.model) == 1 else f"{kind.model} ×{kind.devices}"
            for kind in self._priors
        ]

    def believe(self, priors: Mapping[Kind, Prior], shared: bool = False) -> None:
        """Take the priors of the kinds that are on the device now; ``shared``: by several engines.

        Where a kind has made room for another, what was learned is dropped. Where one comes beside
        others it is believed like an earlier life's, for work is seen in another form from now on.
        """
        if self._fixed:
            self._priors |= priors
            return
        if not priors:
            return
        new = [prior for kind, prior in priors.items() if kind not in self._priors]
        replaced = bool(new and self._priors.keys() - priors.keys())
        learned = not replaced and (self.fit.intervals > 0 or self._restored is not None)
        self._priors = dict(priors) if replaced else self._priors | dict(priors)
        if learned:
            fit = self.fit
            for prior in new:
                fit = widened(fit, prior)
        else:
            fit = replace(unfitted([*self._priors.values()]), window=self.fit.window)
        if shared:
            fit = beside_others(fit)
        if replaced or self._form(fit) != self._form(self.fit):
            self.forget()
            self._rows = np.zeros((0, len(fit.covariance) + 4))
            self._due, self._search_due = _FIRST_FIT, _SEARCH_FIRST
            self._restored = fit if learned else None
        self.fit = fit

    @staticmethod
    def _form(fit: Fit) -> tuple[int, bool]:
        """Rows that were taken for one form of a fit say nothing to another."""
        return len(fit.coefficients), fit.shared

    def restore(self, fit: Fit | None) -> None:
        """Begin where an earlier life ended, unless something was learned already.

        It does not count as converged: what is too low would make a stranger of all that is above
        it, which teaches nothing, and so it would never be put right.
        """
        if fit is None or self._fixed or len(fit.coefficients) != len(self.fit.coefficients):
            return
        if self.fit.intervals == 0:
            known = beside_others(fit) if self.fit.shared else fit
            self.fit = self._restored = replace(known, converged=False)

    def add(self, block: Block, closed: int, strange: NDArray[np.bool_]) -> None:
        """Learn from the first ``closed`` intervals of a block, but for the strange ones."""
        if self._fixed or not closed:
            return
        usable = block.teaches[:closed] & ~strange[:closed]
        self._keep(block, closed, usable)
        rows = np.column_stack(
            (
                block.features[:closed],
                block.energy_j[:closed],
                block.totals[:closed, RUN_S],
                block.run_share[:closed],
                block.jitter[:closed],
            )
        )[usable]
        self._seen += len(rows)
        self._busy += int((steps_of(rows[:, :-4]) > 1e-9).sum())
        self._rows = np.concatenate((self._rows, rows))
        if not self._hindsight:
            self._rows = self._rows[-_WINDOW:]
            self._renew_when_due()

    def shift(self, shift_s: float) -> None:
        """The counter's edges are timed later from now on: so much later it shows what was drawn.

        A grid knows its ticks' phase only as well as polls bound it; what is left is in the delay.
        """
        if self._fixed:
            return
        window = self.fit.window
        if window.doubt_s is not None:
            moved = window._replace(delay_s=window.delay_s + shift_s)
            self.fit = replace(self.fit, window=moved)
        self._kept = deque(kept._replace(edges=kept.edges + shift_s) for kept in self._kept)

    def forget(self) -> None:
        """Drop what was seen, but not what was learned from it."""
        self._rows = self._rows[:0]
        self._kept.clear()
        self._kept_count = self._seen = self._busy = 0

    def refit(self) -> None:
        """Fit what is held now."""
        if len(self._rows) >= _FIRST_FIT and self._busy:
            converged = self._busy >= _CONVERGED
            rows = Rows.of(self._rows)
            priors = [*self._priors.values()] or [GENERIC]
            before = self.fit
            self.fit = fit_rows(
                rows, priors, converged, before.window, self._restored, before.shared
            )

    def search(self) -> None:
        """Look for the counter's window anew, and fit with what is found."""
        if not self._kept or not self._busy:
            return
        most = _SEARCHED_IN_HINDSIGHT if self._hindsight else _SEARCHED
        seen = self._raw(most)
        window = find_window(seen, self.fit.window)
        if window[:2] != self.fit.window[:2]:
            everything = seen if self._kept_count <= most else self._raw(None)
            self._rows = everything.rows(window)
        self.fit = replace(self.fit, window=window)
        self.refit()

    def _renew_when_due(self) -> None:
        if self._seen >= self._search_due:
            self._search_due = min(2 * self._seen, self._seen + _SEARCH_EVERY_MAX)
            self._due = self._seen
            self.search()
        if self._seen >= self._due:
            self._due = self._seen + min(_REFIT_EVERY_MAX, max(4, self._seen // 6))
            self.refit()

    def _keep(self, block: Block, closed: int, usable: NDArray[np.bool_]) -> None:
        """Remember the raw facts of a block for the search."""
        late = block.fit.window.delay_s
        edges = block.edges[: closed + 1]
        starts, ends, amounts = block.segments
        first, last = np.maximum(starts, edges[0] - late), np.minimum(ends, edges[-1] - late)
        inside = last > first
        part = (last - first)[inside] / np.maximum(ends - starts, 1e-12)[inside]
        columns = [*range(FEATURES, amounts.shape[1]), RUN_S]
        self._kept.append(
            _Kept(
                block.load.origin_ns,
                first[inside],
                last[inside],
                amounts[inside][:, columns] * part[:, None],
                edges,
                block.energy_j[:closed],
                block.run_share[:closed],
                block.jitter_s[:closed],
                usable,
            )
        )
        self._kept_count += closed
        while not self._hindsight and self._kept_count - len(self._kept[0].energy_j) > _SEARCHED:
            self._kept_count -= len(self._kept.popleft().energy_j)

    def _raw(self, most: int | None) -> Seen:
        """The facts of the last ``most`` intervals (all: ``None``), on one time axis."""
        blocks: list[_Kept] = []
        count = 0
        for kept in reversed(self._kept):
            blocks.append(kept)
            count += len(kept.energy_j)
            if most is not None and count >= most:
                break
        blocks.reverse()
        shift = [(b.origin_ns - blocks[0].origin_ns) * 1e-9 for b in blocks]
        pairs = list(zip(blocks, shift, strict=True))
        usable = np.concatenate([b.usable for b in blocks])
        starts = np.concatenate([b.edges[:-1] + s for b, s in pairs])[usable]
        ends = np.concatenate([b.edges[1:] + s for b, s in pairs])[usable]
        edges, places = np.unique((starts, ends), return_inverse=True)
        first, last = places.reshape(2, -1)
        return Seen(
            Curve.of_segments(
                np.concatenate([b.starts + s for b, s in pairs]),
                np.concatenate([b.ends + s for b, s in pairs]),
                np.concatenate([b.amounts for b in blocks]),
            ),
            edges,
            first,
            last,
            np.concatenate([b.energy_j for b in blocks])[usable],
            np.concatenate([b.run_share for b in blocks])[usable],
            np.concatenate([b.jitter_s for b in blocks])[usable],
        )
