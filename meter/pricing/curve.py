"""All settled energy over time, bounded in memory: it gives a request its part of the time."""

from __future__ import annotations

from bisect import bisect_right


class EnergyCurve:
    """Points ``(t_ns, energy_j)``, both never falling; between points it is a straight line.

    Of more than ``points`` the older half is thinned, so old times stay there, more coarsely.
    """

    def __init__(self, points: int = 16_384) -> None:
        self._points = points
        self._t_ns: list[int] = []
        self._energy_j: list[float] = []

    def add(self, t_ns: int, energy_j: float) -> None:
        """Append a point; one that is not later than the last is ignored."""
        if self._t_ns and t_ns <= self._t_ns[-1]:
            return
        self._t_ns.append(t_ns)
        self._energy_j.append(energy_j)
        if len(self._t_ns) > self._points:
            half = len(self._t_ns) // 2
            self._t_ns[:half] = self._t_ns[:half:2]
            self._energy_j[:half] = self._energy_j[:half:2]

    def copy(self) -> EnergyCurve:
        """As it is now, for others to read."""
        other = EnergyCurve(self._points)
        other._t_ns, other._energy_j = self._t_ns.copy(), self._energy_j.copy()
        return other

    def at(self, t_ns: int) -> float:
        """Energy (J) at a time; held constant outside the curve. Precondition: not empty."""
        i = bisect_right(self._t_ns, t_ns)
        if i == 0:
            return self._energy_j[0]
        if i == len(self._t_ns):
            return self._energy_j[-1]
        t0, t1 = self._t_ns[i - 1], self._t_ns[i]
        e0, e1 = self._energy_j[i - 1], self._energy_j[i]
        return e0 + (e1 - e0) * (t_ns - t0) / (t1 - t0)

    def own_time_ns(self, energy_j: float, from_ns: int, to_ns: int | None) -> float | None:
        """The part of ``from_ns .. to_ns`` that ``energy_j`` is of all energy in it.

        ``to_ns`` of ``None`` is now. Never more than the time itself; ``None`` where the curve
        does not reach into that time or nothing was drawn in it.
        """
        if not self._t_ns:
            return None
        start_ns = max(from_ns, self._t_ns[0])
        end_ns = min(to_ns, self._t_ns[-1]) if to_ns is not None else self._t_ns[-1]
        if end_ns <= start_ns:
            return None
        all_j = self.at(end_ns) - self.at(start_ns)
        if all_j <= 0:
            return None
        return (end_ns - start_ns) * min(1.0, energy_j / all_j)
