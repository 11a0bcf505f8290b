"""A report from a recorded trace: the core and the publisher run over it once more, as live."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from meter.attribution import Attributor
from meter.export.moments import ACCOUNTS as ORDER
from meter.export.moments import Drawn
from meter.export.publisher import Publisher
from meter.export.state import Health, State, coefficients
from meter.model import Clock, DeviceState, Event, Reading, Receipt, Snapshot
from meter.pricing import CostKey, Tariff
from meter.replay import CalibrationMode, Policy, Replayed, not_covered, replay
from meter.report.figures import ACCOUNTS, REQUESTS, Ask, Bin, Line, Meter, Report
from meter.trace import TraceReader

NS = 1_000_000_000
_LOOK_NS = NS // 4
_BINS = 240
_NOTE = (
    "Made from a recorded trace by the same attribution as live: these are the receipts that the "
    "meter gave then, to the microjoule."
)


class _Point(NamedTuple):
    """Running sums at a time."""

    t_ns: int
    accounts_j: tuple[float, ...]
    running: int
    output_tokens: int


class _Watcher:
    """Looks at the core a few times a second of the trace's time, as the live writer does.

    Notes when the trace starts and ends, its last reading, and its first anchor in UTC.
    """

    def __init__(self, tariff: Tariff) -> None:
        self._tariff = tariff
        self._publisher: Publisher | None = None
        self.points: list[_Point] = []
        self.clock: Clock | None = None
        self.start_ns = self.end_ns = self.read_ns = 0
        self._due_ns = 0
        self._drawn = Drawn()

    @property
    def publisher(self) -> Publisher:
        """It begins with the first event."""
        if self._publisher is None:
            self._publisher = Publisher(self._tariff, self.start_ns)
        return self._publisher

    def look(self, event: Event, core: Attributor) -> None:
        t_ns = event.t_ns
        self.start_ns = min(self.start_ns or t_ns, t_ns)
        self.end_ns = max(self.end_ns, t_ns)
        if isinstance(event, Clock):
            self.clock = self.clock or event
        elif isinstance(event, Reading) and not self.points:
            # From the first reading on energy is counted.
            self.points.append(_Point(t_ns, (0.0,) * len(ORDER), 0, 0))
        if isinstance(event, Reading):
            self.read_ns = max(self.read_ns, t_ns)
        if t_ns >= self._due_ns:
            self._due_ns = t_ns + _LOOK_NS
            self.publish(core.snapshot())

    def publish(self, snapshot: Snapshot) -> State:
        now = self._drawn.moment(snapshot)
        if now.settled_ns is not None:
            point = _Point(now.settled_ns, now.accounts_j, now.running, now.output_tokens)
            self.points.append(point)
        return self.publisher.publish(snapshot, [], Health())

    def end(self) -> None:
        """What one device was told of beyond the others is drawn, too."""
        end = self._drawn.end()
        if end is not None and self.points:
            t_ns, accounts_j = end
            self.points.append(self.points[-1]._replace(t_ns=t_ns, accounts_j=accounts_j))

    @property
    def metered_s(self) -> float:
        """From the first reading to the last."""
        return max(0, self.read_ns - self.points[0].t_ns) / NS if self.points else 0.0

    def utc_s(self, wall_utc_ns: object) -> float | None:
        """When the trace starts: by its first anchor, else as its first line says."""
        if self.clock is not None:
            return (self.clock.utc_ns - (self.clock.t_ns - self.start_ns)) / NS
        return wall_utc_ns / NS if isinstance(wall_utc_ns, int) else None


def from_trace(path: Path, tariff: Tariff) -> Report:
    """Raises ``meter.trace.TraceError`` where nothing is usable."""
    watcher = _Watcher(tariff)
    replayed = replay(path, Policy.SHAPLEY, CalibrationMode.ONLINE, watch=watcher.look)
    snapshot = replayed.snapshot
    state = watcher.publish(snapshot)
    watcher.end()
    measured = [receipt for receipt in replayed.receipts if receipt.quality is not None]
    asks = tuple(_ask(receipt, watcher.publisher) for receipt in measured)
    quality = snapshot.quality
    fidelities = sorted({str(receipt.fidelity) for receipt in replayed.receipts})
    return Report(
        source=path.name,
        start_utc_s=watcher.utc_s(_wall_utc_ns(path)),
        seconds=(watcher.end_ns - watcher.start_ns) / NS,
        metered_s=watcher.metered_s,
        quality=str(quality) if quality else None,
        measured_j=snapshot.measured_j,
        accounts_j=_accounts(snapshot),
        pending_j=snapshot.pending_j,
        residual_j=snapshot.conservation_error_j,
        unattributed_by_reason={r: j for r, j in snapshot.unattributed.items() if j > 0},
        currency=tariff.currency,
        cost_components=_components(state),
        others_cost=_others_cost(state),
        prices=prices(tariff),
        models=_models(state, asks),
        tenants=_tenants(asks),
        timeline=_timeline(watcher.points, watcher.start_ns, watcher.end_ns),
        meters=tuple(_meter(device) for device in snapshot.devices),
        asks=asks,
        fidelity=", ".join(fidelities) or None,
        holes=_holes(replayed),
        notes=(_NOTE,),
    )


def _wall_utc_ns(path: Path) -> object:
    with contextlib.closing(TraceReader(path)) as reader:
        return reader.meta.get("wall_utc_ns")


def prices(tariff: Tariff) -> dict[str, str]:
    """The prices that were assumed, in words."""
    known = {
        "electricity": (tariff.electricity_price_per_kwh, f"{tariff.currency} per kWh"),
        "PUE": (tariff.pue, ""),
        "hardware": (tariff.hardware_price_per_hour, f"{tariff.currency} per hour"),
    }
    return {name: f"{value} {unit}".strip() for name, (value, unit) in known.items() if value}


def _accounts(snapshot: Snapshot) -> dict[str, float]:
    return {account.value: snapshot.total_j(account) for account in ORDER}


def _amounts(state: State) -> Iterator[tuple[CostKey, float]]:
    """Charges, and what negative prices paid back."""
    for key, amount in state.costs.charges.items():
        yield key, float(amount)
    for key, amount in state.costs.credits.items():
        yield key, -float(amount)


def _components(state: State) -> dict[str, float]:
    return _summed((key.component.value, amount) for key, amount in _amounts(state))


def _others_cost(state: State) -> dict[str, float]:
    """By account, what no request pays."""
    pairs = ((key.account.value, amount) for key, amount in _amounts(state))
    return _summed((name, amount) for name, amount in pairs if name not in REQUESTS)


def _models_cost(state: State) -> dict[str, float]:
    """By model, what its requests cost; empty where no price is known."""
    return _summed(
        (key.model, amount) for key, amount in _amounts(state) if key.account.value in REQUESTS
    )


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, amount in pairs:
        sums[name] = sums.get(name, 0.0) + amount
    return sums


def _models(state: State, asks: Sequence[Ask]) -> tuple[Line, ...]:
    """By what their requests took, the most first. Requests are receipts here, as by tenant."""
    snapshot, cost = state.snapshot, _models_cost(state)
    names = {key.model for key in snapshot.accounts if key.account.value in REQUESTS}
    lines = []
    for name in names:
        tokens = {
            kind: sum(
                n for k, n in snapshot.tokens.items() if k.model == name and k.token_type == kind
            )
            for kind in ("input", "input_cached", "output")
        }
        energy_j = sum(
            j
            for key, j in snapshot.accounts.items()
            if key.model == name and key.account.value in REQUESTS
        )
        requests = sum((ask.model or "") == name for ask in asks)
        counts = (tokens["input"], tokens["input_cached"], tokens["output"])
        lines.append(Line(name, requests, *counts, energy_j, cost.get(name)))
    return tuple(sorted(lines, key=lambda line: -line.energy_j))


def _tenants(asks: Sequence[Ask]) -> tuple[Line, ...]:
    """From the receipts; empty where no request named a tenant."""
    groups: dict[str, list[Ask]] = {}
    for ask in asks:
        groups.setdefault(ask.tenant or "", []).append(ask)
    if set(groups) <= {""}:
        return ()
    lines = [
        Line(
            name,
            len(own),
            sum(ask.prompt_tokens or 0 for ask in own),
            None,
            sum(ask.output_tokens or 0 for ask in own),
            sum(ask.energy_j for ask in own),
            None if any(ask.cost is None for ask in own) else sum(ask.cost or 0.0 for ask in own),
        )
        for name, own in groups.items()
    ]
    return tuple(sorted(lines, key=lambda line: -line.energy_j))


def _ask(receipt: Receipt, publisher: Publisher) -> Ask:
    cost = publisher.price(receipt).cost
    closed_ns = receipt.closed_ns
    return Ask(
        receipt.id,
        receipt.model,
        receipt.tenant,
        receipt.prompt_tokens,
        receipt.completion_tokens,
        receipt.energy_j,
        receipt.uncertainty_j,
        None if closed_ns is None else (closed_ns - receipt.opened_ns) / NS,
        None if cost is None else float(cost.amount),
        receipt.reason,
    )


def _meter(state: DeviceState) -> Meter:
    return Meter(
        state.device.name,
        state.device.id,
        state.device.boundary,
        str(state.device.quality),
        state.measured_j,
        state.refresh_s,
        state.delay_s,
        state.delay_sd_s,
        tuple(coefficients(state)),
    )


def _holes(replayed: Replayed) -> tuple[str, ...]:
    holes = not_covered(replayed.snapshot)
    bad = replayed.bad_count
    if bad:
        holes.append(f"{bad:,} bad line{'s' * (bad > 1)} of the trace could not be used")
    unknown = sum(receipt.quality is None for receipt in replayed.receipts)
    if unknown:
        holes.append(
            f"{unknown:,} request{'s' * (unknown > 1)} of an engine whose devices were not read: "
            "what they took is not known"
        )
    return tuple(holes)


# --- when -----------------------------------------------------------------------------------


def _timeline(points: Sequence[_Point], start_ns: int, end_ns: int) -> tuple[Bin, ...]:
    """Bins of equal length; between two looks the sums grow evenly."""
    points = [p for i, p in enumerate(points) if not i or p.t_ns > points[i - 1].t_ns]
    if len(points) < 2 or end_ns <= start_ns:
        return ()
    count = max(1, min(_BINS, (end_ns - start_ns) // _LOOK_NS // 2))
    edges = [start_ns + (end_ns - start_ns) * i // count for i in range(count + 1)]
    sums = [_at(points, edge) for edge in edges]
    bins = []
    for i in range(count):
        left, right = sums[i], sums[i + 1]
        start_s, end_s = (edges[i] - start_ns) / NS, (edges[i + 1] - start_ns) / NS
        if left is None or right is None:
            bins.append(Bin(start_s, end_s, None, None, None))
            continue
        over_s = end_s - start_s
        grown = [b - a for a, b in zip(left.accounts_j, right.accounts_j, strict=True)]
        by_name = dict(zip((account.value for account in ORDER), grown, strict=True))
        watts = tuple(max(0.0, by_name[name]) / over_s for name in ACCOUNTS)
        speed = max(0, right.output_tokens - left.output_tokens) / over_s
        bins.append(Bin(start_s, end_s, watts, right.running, speed))
    return tuple(bins)


def _at(points: Sequence[_Point], t_ns: int) -> _Point | None:
    """The sums at a time; ``None`` before the first look and after the last."""
    place = bisect_left(points, t_ns, key=lambda point: point.t_ns)
    if place == len(points) or (place == 0 and points[0].t_ns != t_ns):
        return None
    after = points[place]
    if after.t_ns == t_ns:
        return after
    before = points[place - 1]
    part = (t_ns - before.t_ns) / (after.t_ns - before.t_ns)
    pairs = zip(before.accounts_j, after.accounts_j, strict=True)
    joules = tuple(a + part * (b - a) for a, b in pairs)
    tokens = before.output_tokens + part * (after.output_tokens - before.output_tokens)
    return _Point(t_ns, joules, after.running, round(tokens))
