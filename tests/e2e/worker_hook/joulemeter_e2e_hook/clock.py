"""How long this CPU takes for a batch: learned by itself, step by step.

``seconds = f + p·tokens + q·pairs + d·decoding + c·context``, all coefficients positive: weighted
least squares over the steps seen so far (errors count relative to the step's length), solved by
coordinate descent, with a slow forgetting and a weak prior that carries the first steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from .cost import Part

_UNITS = (1.0, 100.0, 1e4, 1.0, 1e3)  # one of each feature, so that the sums stay near 1
_PRIOR = (0.04, 0.3, 0.02, 0.005, 0.005)  # seconds for one unit of each
_PRIOR_STEPS = 2.0
_MEMORY_STEPS = 600.0


@dataclass(frozen=True)
class Seconds:
    """A step's expected length, by the same terms as its joules."""

    fixed_s: float
    own_s: tuple[float, ...]

    @property
    def total_s(self) -> float:
        return self.fixed_s + sum(self.own_s)


class Clock:
    """A running least-squares model of the step time."""

    def __init__(self) -> None:
        self.coefficients = list(_PRIOR)
        size = len(_PRIOR)
        self._xx = [[0.0] * size for _ in range(size)]
        self._xy = [0.0] * size
        for i, prior in enumerate(_PRIOR):  # "each coefficient is its prior", as observations
            weight = _PRIOR_STEPS / prior**2 / size
            self._xx[i][i] += weight
            self._xy[i] += weight * prior

    def expect(self, parts: list[Part]) -> Seconds:
        """The expected length of a step, before it is run."""
        own = tuple(
            sum(c * x for c, x in zip(self.coefficients[1:], _features(part), strict=True))
            for part in parts
        )
        return Seconds(self.coefficients[0], own)

    def learn(self, parts: list[Part], expected_s: float, real_s: float) -> None:
        """Take in how long the step really took. A step that stalled counts for little."""
        x = [1.0, *(sum(column) for column in zip(*map(_features, parts), strict=True))]
        ratio = max(real_s / expected_s, expected_s / real_s)
        weight = min(1.0, (1.5 / ratio) ** 2) / expected_s**2
        keep = 1 - 1 / _MEMORY_STEPS
        for i, xi in enumerate(x):
            self._xy[i] = keep * self._xy[i] + weight * xi * real_s
            for j, xj in enumerate(x):
                self._xx[i][j] = keep * self._xx[i][j] + weight * xi * xj
        self._solve()

    def _solve(self) -> None:
        c = self.coefficients
        for _ in range(30):
            for i, row in enumerate(self._xx):
                rest = sum(row[j] * c[j] for j in range(len(c)) if j != i)
                c[i] = max(1e-3 * _PRIOR[i], (self._xy[i] - rest) / row[i])


def _features(part: Part) -> tuple[float, float, float, float]:
    if part.prefill:
        return part.tokens / _UNITS[1], part.pairs / _UNITS[2], 0.0, 0.0
    return 0.0, 0.0, 1.0, part.context / _UNITS[4]
