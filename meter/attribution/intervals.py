"""From polls of a cumulative counter to intervals: from one change of the counter to the next.

A GPU's energy counter moves every ``refresh`` (100 ms on Hopper) while it is polled faster. The
poll that sees a change says only that the tick lies between it and the poll before; ``grid`` times
ticks that come regularly far better. A counter that moves at every poll (RAPL, an estimate) needs
no grid: its edges are its readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from meter.attribution.grid import NOT_TOLD, UNIFORM, Grid
from meter.model import Device, Reading

_CONTINUOUS_SHARE = 0.8
_MERGED_NS = 100_000_000
#: No board draws more, as far as is known; where the power limit is known, three times that. The
#: board's power, read at the same moments, is better evidence: it excuses more than a limit that
#: cannot be true; and where no limit is told it contradicts a leap, of three times the highest of
#: these and 2 kW (power is sampled, and may come late). Over a time without it nothing is.
_POWER_W_MAX = 20_000.0
_UNSEEN_W = 2_000.0
_BLIND_NS = 1_000_000_000
_JUMP_NS_MIN = 200_000_000
_SHIFT_NS_MIN = 200_000


@dataclass(frozen=True, slots=True)
class Interval:
    """``energy_uj`` moved on ``device`` between the edges. ``jitter_ns``: doubt of the edges."""

    device: str
    start_ns: int
    end_ns: int
    energy_uj: int
    jitter_ns: float


class _Change(NamedTuple):
    """The counter moved by ``moved_uj`` between two polls; ``number`` is the tick's."""

    number: int
    lower_ns: int
    upper_ns: int
    moved_uj: int


class Counter:
    """One device's counter: takes its readings in order of time, gives its intervals.

    ``moved_uj`` is all that the counter has moved since its first reading. The first changes are
    held back until the tick is known, so that the first intervals have true edges too; with
    ``hindsight`` all are. A reading below the one before is a reset (driver reload, GPU reset); one
    that no device could have drawn is a jump: nothing is known of the time between, so no interval
    covers it and nothing is invented. A counter that moves at every poll and whose ticks are not
    known to be exact gives intervals of at least 100 ms: in shorter ones the edges' doubt, up to a
    poll, would drown what moved.
    """

    def __init__(self, device: Device, hindsight: bool = False) -> None:
        self.device = device
        self.moved_uj = 0
        self.resets = 0
        self.jumps = 0
        self.first_ns: int | None = None
        self.last: Reading | None = None
        self._hindsight = hindsight
        self._edge_ns = 0
        self._edge_doubt_ns = 0.0
        self._begun = True
        self._last_uj = 0
        self._last_change_ns = 0
        self._polls = 0
        self._changes = 0
        self._grid = Grid(device.refresh_s)
        self._held: list[_Change] = []
        self._unclear: _Change | None = None
        self._shift_told_ns = 0.0
        self._peak_w = self._peak_before_w = 0.0
        self._blind = self._blind_before = False

    def become(self, device: Device) -> list[Interval]:
        """The same device is read in another way from now on; the intervals so far."""
        if device == self.device:
            return []
        closed = self.flush()
        self.device = device
        self._polls = self._changes = 0
        self._grid, self._shift_told_ns = Grid(device.refresh_s), 0.0
        return closed

    @property
    def refresh_s(self) -> float | None:
        """The counter's refresh as found (or known), ``None`` while unknown."""
        if self._continuous:
            return 0.0
        return self._grid.period_ns / 1e9 if self._grid.period_ns else None

    @property
    def _continuous(self) -> bool:
        """Does the counter move at every poll? Then each reading is exact at its time."""
        if self.device.refresh_s is not None:
            return self.device.refresh_s == 0
        return self._polls >= 10 and self._changes > _CONTINUOUS_SHARE * self._polls

    def add(self, reading: Reading) -> list[Interval] | None:
        """Take a reading; return the intervals it closes (``None``: the counter stands)."""
        if reading.energy_uj is None:
            return None
        before = self.last
        if before is None:
            self._begin(reading)
            return None
        if reading.t_ns <= before.t_ns:
            return None
        self.last = reading
        self._polls += 1
        self._see_power(reading, before)
        moved_uj = reading.energy_uj - self._last_uj
        if moved_uj == 0:
            return None
        if moved_uj < 0 or self._impossible(moved_uj, reading.t_ns):
            self.resets += moved_uj < 0
            self.jumps += moved_uj > 0
            closed = self.flush()
            self._begin(reading)
            return closed
        self._last_uj = reading.energy_uj
        self._last_change_ns = reading.t_ns
        self._peak_w, self._peak_before_w = 0.0, self._peak_w
        self._blind, self._blind_before = False, self._blind
        self._changes += 1
        self.moved_uj += moved_uj
        number = NOT_TOLD if self._continuous else self._grid.learn(before.t_ns, reading.t_ns)
        if self._unclear is not None:
            moved_uj += self._unclear.moved_uj
        if number is None:
            guess = self._grid.last_number + 1
            self._unclear = _Change(guess, before.t_ns, reading.t_ns, moved_uj)
            return []
        self._unclear = None
        self._held.append(_Change(number, before.t_ns, reading.t_ns, moved_uj))
        if self._hindsight or not (self._continuous or self._grid.certain):
            return []
        if self._merges and reading.t_ns - self._edge_ns < _MERGED_NS:
            return []
        return self.flush()

    def take_shift_s(self) -> float:
        """By how much all edges lie later than they did when this was last asked."""
        shift_ns = self._grid.shifted_ns - self._shift_told_ns
        if self._hindsight or abs(shift_ns) < _SHIFT_NS_MIN:
            return 0.0
        self._shift_told_ns = self._grid.shifted_ns
        return shift_ns / 1e9

    def begin_after(self, missed_uj: int) -> None:
        """So much moved before the first reading, while nobody watched: no interval covers it."""
        self.moved_uj += missed_uj

    def skip(self, reading: Reading) -> int:
        """Take a reading after a time that nobody watched; what the counter moved meanwhile, in
        microjoules: no interval covers it. To be called when nothing is held, as ``flush`` leaves
        it."""
        before, moved_uj = self.last, 0
        if reading.energy_uj is None or (before is not None and reading.t_ns <= before.t_ns):
            return 0
        self._see_power(reading, before)
        if before is not None:
            moved_uj = reading.energy_uj - self._last_uj
            if moved_uj < 0 or self._impossible(moved_uj, reading.t_ns):
                self.resets += moved_uj < 0
                self.jumps += moved_uj > 0
                moved_uj = 0
        self.moved_uj += moved_uj
        self._begin(reading)
        return moved_uj

    def flush(self) -> list[Interval]:
        """The intervals of all changes that are still held back."""
        if self._unclear is not None:
            self._held.append(self._unclear)
        held, self._held, self._unclear = self._held, [], None
        if not held:
            return []
        if self._continuous:
            changes = _merged(held, self._edge_ns) if self._merges else held
            doubt_ns = 0.25 / UNIFORM if self._merges else 0.0
            edges = [(c.upper_ns, doubt_ns * (c.upper_ns - c.lower_ns)) for c in changes]
        elif self._hindsight:
            changes = held
            edges = self._grid.in_hindsight([(c.number, c.lower_ns, c.upper_ns) for c in held])
        else:
            changes = held
            edges = [self._grid.edge_ns(c.number, c.lower_ns, c.upper_ns) for c in held]
        return [self._interval(*pair) for pair in zip(changes, edges, strict=True)]

    @property
    def _merges(self) -> bool:
        return self._continuous and self.device.refresh_s is None

    def _impossible(self, moved_uj: int, t_ns: int) -> bool:
        """More than any such device draws in the time since the last change?"""
        limit = self.device.power_limit_w
        seen_w = max(self._peak_w, self._peak_before_w)
        power_w_max = _POWER_W_MAX
        if limit:
            power_w_max = 3 * max(limit, seen_w)
        elif self.device.boundary == "gpu" and not (self._blind or self._blind_before):
            power_w_max = min(power_w_max, 3 * seen_w + _UNSEEN_W)
        since_ns = max(t_ns - self._last_change_ns, _JUMP_NS_MIN)
        return moved_uj / 1e6 > power_w_max * since_ns / 1e9

    def _see_power(self, reading: Reading, before: Reading | None = None) -> None:
        """The highest power since the last change, and whether there was none at times."""
        self._peak_w = max(self._peak_w, reading.power_w or 0.0)
        unread = before is not None and reading.t_ns - before.t_ns > _BLIND_NS
        self._blind = self._blind or unread or reading.power_w is None

    def _begin(self, reading: Reading) -> None:
        assert reading.energy_uj is not None
        self.last = reading
        self._last_uj = reading.energy_uj
        self._last_change_ns = reading.t_ns
        self._peak_w = self._peak_before_w = 0.0
        self._blind = self._blind_before = False
        self._see_power(reading)
        self._edge_ns, self._edge_doubt_ns, self._begun = reading.t_ns, 0.0, True
        if self.first_ns is None:
            self.first_ns = reading.t_ns

    def _interval(self, change: _Change, timed: tuple[int, float]) -> Interval:
        edge, doubt = max(timed[0], self._edge_ns + 1), timed[1]
        if self._begun and not self._continuous and self._grid.period_ns is not None:
            # The first reading shows the tick before it, which came up to a period earlier.
            self._edge_doubt_ns = self._grid.period_ns / UNIFORM
        self._begun = False
        interval = Interval(
            device=self.device.id,
            start_ns=self._edge_ns,
            end_ns=edge,
            energy_uj=change.moved_uj,
            jitter_ns=(doubt**2 + self._edge_doubt_ns**2) ** 0.5,
        )
        self._edge_ns, self._edge_doubt_ns = edge, doubt
        return interval


def _merged(changes: Sequence[_Change], edge_ns: int) -> list[_Change]:
    """Neighbouring changes joined into ones of at least 100 ms; what is left over joins too."""
    merged: list[_Change] = []
    moved_uj = 0
    for change in changes:
        moved_uj += change.moved_uj
        if change.upper_ns - edge_ns >= _MERGED_NS:
            merged.append(change._replace(moved_uj=moved_uj))
            edge_ns, moved_uj = change.upper_ns, 0
    if moved_uj:
        merged.append(changes[-1]._replace(moved_uj=moved_uj))
    return merged
