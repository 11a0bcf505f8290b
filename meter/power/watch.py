"""What is odd about one device's counter: it stands still, goes back, jumps, or its power differs.

The core keeps what is odd out of the accounts by itself (``meter.attribution.intervals``); here it
is given words for the log and figures for the metrics. No clock and no log: readings in, notes out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from meter.model import Device, Quality, Reading
from meter.power.integral import BRIDGE_NS, PowerIntegral

#: As in ``meter.attribution.intervals``: what no board draws, what it may have drawn unseen by the
#: polls where it tells no limit, and the shortest time that this is asked of.
_POWER_W_MAX = 20_000.0
_UNSEEN_W = 2_000.0
_JUMP_NS_MIN = 200_000_000
#: A counter that does not move for so long, though more than a joule was drawn, is stuck.
_STILL_NS = 5_000_000_000
_STILL_UJ = 1_000_000
#: After so long, if the mean power was so high, it is stuck for good. Counters move ten times a
#: second, and steps wait 45 s for their joules: sooner would be rash, later would cost requests
#: theirs. NVML calls its power good to 5 W (5 % on newer boards): twice that is no noise.
_FOR_GOOD_NS = 30_000_000_000
_FOR_GOOD_W = 10.0
#: Counter and power are compared over such windows, where so much was drawn.
_WINDOW_NS = 30_000_000_000
_WINDOW_UJ = 200_000_000
_GAP_MAX = 0.10


class Oddity(NamedTuple):
    """Something to be said: the log's event, and its words."""

    event: str
    words: dict[str, Any]


class Watch:
    """Sees all readings of ``device`` in order.

    ``gap``: by how much the counter moved more (+) or less (−) than the integral of the instant
    power over the last whole half minute, as a share of the integral; ``None`` where that cannot
    be told (an estimate is made of its power, and a CPU's power of its counter). ``still_s``: for
    how long the counter has stood still though the device drew power; ``unseen_uj``: what was drawn
    since it moved last.
    """

    def __init__(self, device: Device) -> None:
        limit_w = device.power_limit_w
        self._limit_w = limit_w
        self._asks_power = not limit_w and device.boundary == "gpu"
        self._peak_w = self._peak_before_w = 0.0
        self._blind = self._blind_before = False
        self._compares = device.boundary == "gpu" and device.quality is not Quality.ESTIMATED
        self._integral = PowerIntegral()
        self._last: Reading | None = None
        self._moved_ns = 0
        self._moved_at_uj = 0
        self._start: tuple[int, int, int] | None = None
        self._disagrees = False
        self.gap: float | None = None
        self.still_s = 0.0
        self.unseen_uj = 0

    @property
    def stuck_for_good(self) -> bool:
        """Has it stood still for so long, and the device drawn so much, that it is to be replaced
        by the power?"""
        mean_w = self.unseen_uj / 1e6 / self.still_s if self.still_s else 0.0
        return self._compares and self.still_s * 1e9 >= _FOR_GOOD_NS and mean_w >= _FOR_GOOD_W

    def see(self, reading: Reading) -> list[Oddity]:
        """Take a reading; what there is to say about it."""
        if reading.energy_uj is None:
            return []
        before, self._last = self._last, reading
        self._see_power(reading, before)
        drawn_uj = self._integral.add(reading.t_ns, reading.power_w or 0.0)
        if before is None or before.energy_uj is None:
            self._begin(reading, drawn_uj)
            return []
        moved_uj = reading.energy_uj - before.energy_uj
        since_ns = reading.t_ns - self._moved_ns
        if moved_uj < 0 or self._impossible(moved_uj, since_ns):
            self._begin(reading, drawn_uj)
            event = "counter_went_back" if moved_uj < 0 else "counter_jumped"
            return [Oddity(event, {"moved_j": moved_uj / 1e6, "in_s": since_ns / 1e9})]
        if moved_uj:
            self._peak_w, self._peak_before_w = 0.0, self._peak_w
            self._blind, self._blind_before = False, self._blind
        if reading.power_w is None or reading.t_ns - before.t_ns > BRIDGE_NS:
            self._begin(reading, drawn_uj)
            return []
        return [*self._still(moved_uj, reading, drawn_uj), *self._compare(reading, drawn_uj)]

    def _begin(self, reading: Reading, drawn_uj: int) -> None:
        self._moved_ns, self._moved_at_uj, self.still_s = reading.t_ns, drawn_uj, 0.0
        self.unseen_uj = 0
        self._peak_w = self._peak_before_w = 0.0
        self._blind = self._blind_before = False
        self._see_power(reading, None)
        self._start = (reading.t_ns, reading.energy_uj or 0, drawn_uj)

    def _impossible(self, moved_uj: int, since_ns: int) -> bool:
        most_w, seen_w = _POWER_W_MAX, max(self._peak_w, self._peak_before_w)
        if self._limit_w:
            most_w = 3 * max(self._limit_w, seen_w)
        elif self._asks_power and not (self._blind or self._blind_before):
            most_w = min(most_w, 3 * seen_w + _UNSEEN_W)
        return moved_uj / 1e6 > most_w * max(since_ns, _JUMP_NS_MIN) / 1e9

    def _see_power(self, reading: Reading, before: Reading | None) -> None:
        """The highest power since the counter moved, and whether there was none at times."""
        self._peak_w = max(self._peak_w, reading.power_w or 0.0)
        unread = before is not None and reading.t_ns - before.t_ns > BRIDGE_NS
        self._blind = self._blind or unread or reading.power_w is None

    def _still(self, moved_uj: int, reading: Reading, drawn_uj: int) -> list[Oddity]:
        since_ns = reading.t_ns - self._moved_ns
        if moved_uj:
            was_s, self.still_s, self.unseen_uj = self.still_s, 0.0, 0
            self._moved_ns, self._moved_at_uj = reading.t_ns, drawn_uj
            return [Oddity("counter_moves_again", {"after_s": round(was_s, 1)})] if was_s else []
        self.unseen_uj = unseen_uj = drawn_uj - self._moved_at_uj
        if unseen_uj < _STILL_UJ:
            self._moved_ns = reading.t_ns  # it had nothing to show
        if since_ns < _STILL_NS or unseen_uj < _STILL_UJ:
            return []
        first, self.still_s = not self.still_s, since_ns / 1e9
        words = {"for_s": round(self.still_s, 1), "drawn_j": round(unseen_uj / 1e6, 1)}
        return [Oddity("counter_stuck", words)] if first else []

    def _compare(self, reading: Reading, drawn_uj: int) -> list[Oddity]:
        """Counter against integrated power, over whole windows."""
        assert self._start is not None
        start_ns, counter_uj, integral_uj = self._start
        if reading.t_ns - start_ns < _WINDOW_NS:
            return []
        self._start = (reading.t_ns, reading.energy_uj or 0, drawn_uj)
        power_uj = drawn_uj - integral_uj
        if power_uj < _WINDOW_UJ or not self._compares:
            return []
        self.gap = ((reading.energy_uj or 0) - counter_uj) / power_uj - 1
        before, self._disagrees = self._disagrees, abs(self.gap) > _GAP_MAX
        if self._disagrees == before:
            return []
        event = "counter_and_power_disagree" if self._disagrees else "counter_and_power_agree"
        return [Oddity(event, {"gap": round(self.gap, 3)})]
