"""Energy and cost per token over trailing windows, from a ring of past totals.

The windows end at the settled watermark, not at the moment of the scrape, so that energy and tokens
in a window belong together. Idle energy of an engine that names no model is spread over the
engine's models in proportion to what was attributed to them in the window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from meter.model import Account, Snapshot
from meter.pricing import Costs, kwh

WINDOWS_S = {"1m": 60, "1h": 3600}
NS = 1_000_000_000
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
    """Past totals, one a second for an hour; its figures are made anew at each snapshot.

    Everything is zero at ``start_ns``, when metering begins.
    """

    def __init__(self, start_ns: int) -> None:
        self._t_ns = [start_ns]
        self._totals: list[ByModel] = [{}]

    def add(self, snapshot: Snapshot, costs: Costs) -> tuple[WindowFigure, ...]:
        """Remember a snapshot, and return the figures of every window that ends with it."""
        now_ns = snapshot.settled_ns
        if now_ns is None:
            return ()
        totals = _totals(snapshot, costs)
        if now_ns - self._t_ns[-1] >= NS:
            self._t_ns.append(now_ns)
            self._totals.append(totals)
            self._forget(now_ns - max(WINDOWS_S.values()) * NS)
        priced = bool(costs.charges or costs.credits)
        return tuple(
            figure
            for window, length_s in WINDOWS_S.items()
            for figure in _figures(window, self._since(now_ns - length_s * NS, totals), priced)
        )

    def _forget(self, before_ns: int) -> None:
        """Drop what no window needs: all but the last entry at or before ``before_ns``."""
        keep = max(0, bisect_right(self._t_ns, before_ns) - 1)
        del self._t_ns[:keep], self._totals[:keep]

    def _since(self, from_ns: int, now: ByModel) -> ByModel:
        """What was added since ``from_ns``, or since the oldest entry where that is younger."""
        was = self._totals[max(0, bisect_right(self._t_ns, from_ns) - 1)]
        return {key: total.minus(was.get(key, Totals())) for key, total in now.items()}


def _totals(snapshot: Snapshot, costs: Costs) -> ByModel:
    sums: dict[tuple[str, str], Totals] = {}

    def add(engine: str, model: str, part: Totals) -> None:
        sums[engine, model] = sums.get((engine, model), Totals()).plus(part)

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
    models: dict[str, Totals] = {}
    for (engine, model), total in since.items():
        if model:
            part = _share_of_idle(since, engine, model)
            nameless = since.get((engine, ""), Totals())
            idle = Totals(idle_j=nameless.idle_j * part, idle_cost=nameless.idle_cost * part)
            models[model] = models.get(model, Totals()).plus(total).plus(idle)
    return models


def _share_of_idle(since: ByModel, engine: str, model: str) -> float:
    mine = since[engine, model].attributed_j
    every = sum(total.attributed_j for (e, m), total in since.items() if e == engine and m)
    return mine / every if every > 0 else 0.0
