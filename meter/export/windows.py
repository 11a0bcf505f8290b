"""Energy and cost per token over trailing windows, from a ring of past totals.

The windows end at the settled watermark, not at the moment of the scrape, so that energy and tokens
in a window belong together. Idle energy of an engine that names no model is spread over the
engine's models in proportion to what was attributed to them in the window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from meter.model import Account, Snapshot
from meter.pricing import Costs, kwh

NS = 1_000_000_000
# How long each window is, and how finely its past is kept (s).
WINDOWS_S = {"1m": (60, 1), "1h": (3600, 15)}
_ATTRIBUTED = (Account.PREFILL, Account.DECODE, Account.RECOMPUTE)


class Totals(NamedTuple):
    """Running sums of one model on one engine: joules, tokens, money."""

    attributed_j: float = 0.0
    idle_j: float = 0.0
    output_tokens: float = 0.0
    total_tokens: float = 0.0
    attributed_cost: float = 0.0
    idle_cost: float = 0.0

    def plus(self, other: Totals) -> Totals:
        return Totals(*(mine + yours for mine, yours in zip(self, other, strict=True)))

    def minus(self, other: Totals) -> Totals:
        return Totals(*(mine - yours for mine, yours in zip(self, other, strict=True)))


_ZERO = Totals()
ByModel = Mapping[tuple[str, str], Totals]


class WindowFigure(NamedTuple):
    """One display figure; ``cost_per_million_tokens`` is ``None`` where no price is known."""

    model: str
    token_type: str
    idle: str
    window: str
    kwh_per_token: float
    cost_per_million_tokens: float | None


class Ring:
    """Past totals for every window; its figures are made anew at each snapshot.

    Everything is zero at ``start_ns``, when metering begins. Memory is bounded: by the windows'
    steps, and by ``label``, which maps models to at most so many names.
    """

    def __init__(self, start_ns: int, label: Callable[[str], str] = str) -> None:
        self._label = label
        self._pasts = {
            window: _Past(length_s * NS, step_s * NS, start_ns)
            for window, (length_s, step_s) in WINDOWS_S.items()
        }

    def add(self, snapshot: Snapshot, costs: Costs) -> tuple[WindowFigure, ...]:
        """Remember a snapshot, and return the figures of every window that ends with it."""
        now_ns = snapshot.settled_ns
        if now_ns is None:
            return ()
        totals = _totals(snapshot, costs, self._label)
        priced = bool(costs.charges or costs.credits)
        return tuple(
            figure
            for window, past in self._pasts.items()
            for figure in _figures(window, past.move(now_ns, totals), priced)
        )


class _Past:
    """Totals at least ``step_ns`` apart, as far back as ``length_ns`` needs."""

    def __init__(self, length_ns: int, step_ns: int, start_ns: int) -> None:
        self._length_ns = length_ns
        self._step_ns = step_ns
        self._t_ns = [start_ns]
        self._totals: list[ByModel] = [{}]

    def __len__(self) -> int:
        return len(self._t_ns)

    def move(self, now_ns: int, now: ByModel) -> ByModel:
        """What was added in the window that ends now (in all of the past where that is shorter)."""
        if now_ns - self._t_ns[-1] >= self._step_ns:
            self._t_ns.append(now_ns)
            self._totals.append(now)
        # The last entry at or before the window's start is where it starts; older ones can go.
        start = max(0, bisect_right(self._t_ns, now_ns - self._length_ns) - 1)
        del self._t_ns[:start], self._totals[:start]
        was = self._totals[0]
        return {key: total.minus(was.get(key, _ZERO)) for key, total in now.items()}


def _totals(snapshot: Snapshot, costs: Costs, label: Callable[[str], str]) -> ByModel:
    sums: dict[tuple[str, str], Totals] = {}

    def add(engine: str, model: str, part: Totals) -> None:
        key = (engine, label(model))
        sums[key] = sums.get(key, _ZERO).plus(part)

    for account, energy_j in snapshot.accounts.items():
        if account.account in _ATTRIBUTED:
            add(account.engine, account.model, Totals(attributed_j=energy_j))
        elif account.account is Account.IDLE:
            add(account.engine, account.model, Totals(idle_j=energy_j))
    for token, count in snapshot.tokens.items():
        output = count if token.token_type == "output" else 0
        add(token.engine, token.model, Totals(output_tokens=output, total_tokens=count))
    for money, sign in ((costs.charges, 1.0), (costs.credits, -1.0)):
        for key, amount in money.items():
            if key.account in _ATTRIBUTED:
                add(key.engine, key.model, Totals(attributed_cost=sign * float(amount)))
            elif key.account is Account.IDLE:
                add(key.engine, key.model, Totals(idle_cost=sign * float(amount)))
    return sums


def _figures(window: str, since: ByModel, priced: bool) -> Iterator[WindowFigure]:
    for model, total in _by_model(since).items():
        for token_type, tokens in (
            ("output", total.output_tokens),
            ("total", total.total_tokens),
        ):
            if tokens <= 0:
                continue
            for idle, energy_j, cost in (
                ("without", total.attributed_j, total.attributed_cost),
                (
                    "with",
                    total.attributed_j + total.idle_j,
                    total.attributed_cost + total.idle_cost,
                ),
            ):
                yield WindowFigure(
                    model,
                    token_type,
                    idle,
                    window,
                    float(kwh(energy_j)) / tokens,
                    cost / tokens * 1e6 if priced else None,
                )


def _by_model(since: ByModel) -> dict[str, Totals]:
    """Sums over engines, each engine's nameless idle spread over its models."""
    attributed_j: dict[str, float] = {}
    for (engine, model), total in since.items():
        if model:
            attributed_j[engine] = attributed_j.get(engine, 0.0) + total.attributed_j
    models: dict[str, Totals] = {}
    for (engine, model), total in since.items():
        if model:
            every_j = attributed_j[engine]
            part = total.attributed_j / every_j if every_j > 0 else 0.0
            nameless = since.get((engine, ""), _ZERO)
            idle = Totals(idle_j=nameless.idle_j * part, idle_cost=nameless.idle_cost * part)
            models[model] = models.get(model, _ZERO).plus(total).plus(idle)
    return models
