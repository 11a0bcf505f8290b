"""What was drawn until each device's settled watermark, by account: for charts over time.

The accounts take a pass's joules when all of the pass is settled: with long steps that is seconds
after the first of them were drawn, and then all at once. A chart has to show them when they were
drawn. So here what is booked on passes that are not settled counts already, in the phases in which
it would settle now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from meter.attribution import passes
from meter.attribution.curve import Array
from meter.attribution.engine import EngineState
from meter.attribution.load import experts_awake
from meter.attribution.passes import PassTable
from meter.model import Account

_PHASES = (Account.PREFILL, Account.RECOMPUTE, Account.DECODE)


class Drawn:
    """Sums by device: idle and start-up as intervals close, the phases as passes settle."""

    def __init__(self) -> None:
        self._outside: defaultdict[tuple[str, Account], float] = defaultdict(float)
        self._phases: defaultdict[str, Array] = defaultdict(lambda: np.zeros(len(_PHASES)))

    def outside(self, device: str, account: Account, energy_j: float) -> None:
        """Joules of an interval that no pass pays."""
        self._outside[device, account] += energy_j

    def settle(self, table: PassTable, count: int, experts: Array) -> None:
        """The first ``count`` passes of a table are settled; ``experts``: the share awake."""
        shares = _shares(table, count, experts)
        for device, joules in table.by_device(count):
            self._phases[device] += joules @ shares

    def until(
        self, settled_j: Mapping[str, float], waves: Iterable[list[EngineState]]
    ) -> dict[str, dict[Account, float]]:
        """By device; ``settled_j``: all that it has settled. What is in no other account is
        unattributed."""
        waiting: defaultdict[str, Array] = defaultdict(lambda: np.zeros(len(_PHASES)))
        for wave in waves:
            for engine in wave:
                table = engine.table
                count = len(table.rows)
                if not count:
                    continue
                awake = experts_awake(engine, passes.tokens(table.rows))
                shares = _shares(table, count, awake)
                # What a dummy step took is its wave's; it will be shared when it settles.
                shares[table.rows[:, passes.DUMMY] > 0, 2] = float(len(wave) > 1)
                for device, joules in table.by_device(count):
                    waiting[device] += joules @ shares
        return {id: self._of(id, joules, waiting[id]) for id, joules in settled_j.items()}

    def _of(self, device: str, settled_j: float, waiting: Array) -> dict[Account, float]:
        phases = (self._phases[device] + waiting).tolist()
        drawn_j = dict(zip(_PHASES, phases, strict=True))
        for account in (Account.IDLE, Account.STARTUP):
            drawn_j[account] = self._outside[device, account]
        return {**drawn_j, Account.UNATTRIBUTED: settled_j - sum(drawn_j.values())}


def _shares(table: PassTable, count: int, experts: Array) -> Array:
    """Each phase's share in what is booked on each pass (count × 3); zero where nobody pays."""
    rows, booked = table.rows[:count], table.booked[:count]
    common_j = (booked[:, passes.STEP_J] + booked[:, passes.GAP_J]) / np.maximum(
        passes.heads(rows), 1
    )
    expert_j = booked[:, passes.EXPERT_J] * experts / np.maximum(passes.tokens(rows), 1)
    token_j, pair_j = booked[:, passes.PREFILL_J] + expert_j, booked[:, passes.PAIR_J]
    joules = np.empty((count, len(_PHASES)))
    for column, first in enumerate((passes.P_HEADS, passes.R_HEADS)):
        heads, tokens, pairs = rows[:, first : first + 3].T
        joules[:, column] = common_j * heads + token_j * tokens + pair_j * pairs
    heads, tokens, context = rows[:, passes.D_HEADS : passes.EMITTED].T
    joules[:, 2] = common_j * heads + (booked[:, passes.DECODE_J] + expert_j) * tokens
    joules[:, 2] += booked[:, passes.CONTEXT_J] * context
    joules[rows[:, passes.DUMMY] > 0] = 0.0
    whole = joules.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(joules, whole, out=np.zeros_like(joules), where=whole > 0))
