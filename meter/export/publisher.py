"""Turns what the core says into the state that everyone reads. Owned by the writer thread.

The core's accounts are the truth. What is added here is derived from them and from final receipts:
costs, display windows, histograms, bounded labels. Given the same snapshots and receipts in the
same order it publishes the same states; it has no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from meter.export.histogram import REQUEST_BOUNDS_J, TOKEN_BOUNDS_J, Example, Histogram
from meter.export.labels import Interner
from meter.export.moments import Moments
from meter.export.plain import figure, known
from meter.export.receipts import GoneError, Priced, ReceiptStore, look_up
from meter.export.running import UnderWay, unpriced
from meter.export.state import Health, ModelEngine, State
from meter.export.windows import Ring
from meter.model import Receipt, Running, Snapshot
from meter.pricing import Costs, EnergyCurve, Tariff, advance, request_cost


class Publisher:
    """Keeps final receipts and running sums, and makes states.

    ``start_ns``: when metering begins, from which on hardware is paid. ``utc_offset_ns``: UTC minus
    the monotonic clock, for the times of exemplars.
    """

    def __init__(self, tariff: Tariff, start_ns: int, utc_offset_ns: int = 0) -> None:
        self._tariff = tariff
        self._utc_offset_ns = utc_offset_ns
        self._before: Snapshot | None = None
        self._costs = Costs(settled_ns=start_ns)
        self._curve = EnergyCurve()
        self._curve.add(start_ns, 0.0)
        self._store = ReceiptStore()
        self._on_host = ReceiptStore()
        self._models = Interner()
        self._tenants = Interner()
        self._moments = Moments()
        self._ring = Ring(start_ns, self._models.label)
        self._request_energy: dict[ModelEngine, Histogram] = {}
        self._token_energy: dict[ModelEngine, Histogram] = {}

    def set_clock(self, utc_offset_ns: int) -> None:
        """UTC minus the monotonic clock, from now on: whoever keeps the time may set it anew."""
        self._utc_offset_ns = utc_offset_ns

    def publish(
        self,
        snapshot: Snapshot,
        final: Iterable[Receipt],
        health: Health,
        on_host: Iterable[Receipt] = (),
    ) -> State:
        """The state at this snapshot; ``final`` are the receipts that became so since the last,
        ``on_host`` those of the host's joules."""
        self._costs = advance(self._costs, self._before, snapshot, self._tariff)
        self._before = snapshot
        if snapshot.settled_ns is not None:
            self._curve.add(snapshot.settled_ns, sum(snapshot.accounts.values()))
        self._admit(snapshot)
        for receipt in final:
            self._count(receipt)
        for receipt in on_host:
            self._on_host.add(receipt)
        return State(
            snapshot=snapshot,
            tariff=self._tariff,
            costs=self._costs,
            windows=self._ring.add(snapshot, self._costs),
            request_energy={key: h.state() for key, h in self._request_energy.items()},
            output_token_energy={key: h.state() for key, h in self._token_energy.items()},
            health=health,
            models=self._models.labels(),
            tenants=self._tenants.labels(),
            label_overflow={
                "model_name": self._models.overflow,
                "tenant": self._tenants.overflow,
            },
            moments=self._moments.add(snapshot),
        )

    def find(
        self,
        request: str,
        still_open: Callable[[str], Receipt | None],
        host_so_far: Callable[[str], Receipt | None] = lambda request: None,
    ) -> Priced | None:
        """A receipt by id: a final one, else what ``still_open`` (the core) has of it.

        Raises ``GoneError`` where there was one.
        """
        receipt = look_up(request, lambda name: self._store.find(name) or still_open(name))
        if receipt is None and (why := self._store.why_gone(request)):
            raise GoneError(why)
        return self.price(receipt, host_so_far) if receipt else None

    def recent(self, limit: int) -> list[Priced]:
        """The newest final receipts."""
        return [self.price(receipt) for receipt in self._store.recent(limit)]

    def price(
        self,
        receipt: Receipt,
        host_so_far: Callable[[str], Receipt | None] = lambda request: None,
    ) -> Priced:
        """A receipt with its cost, its boundary, and what it took of the host."""
        cost = known(lambda: request_cost(receipt, self._tariff, self._curve))
        host = look_up(receipt.id, lambda name: self._on_host.find(name) or host_so_far(name))
        if host is not None and set(host.requests) != set(receipt.requests):
            host = None  # only a part of it, or another's of that name
        return Priced(receipt, cost, self._boundary(receipt.engine), host)

    def running(self, requests: Sequence[Running]) -> UnderWay:
        """Requests under way, and how to price those that are shown: thousands may run."""
        return UnderWay(requests, self._pricing())

    def _pricing(self) -> Callable[[Running], float | None]:
        """What a request has cost so far: in floats, for the eye; for any thread, later."""
        per_j, per_s = self._tariff.electricity(1.0), self._tariff.hardware(1e9)
        if per_j is None and per_s is None:
            return unpriced
        electricity, hardware, curve = float(per_j or 0), float(per_s or 0), self._curve.copy()

        def cost_so_far(request: Running) -> float | None:
            own_ns = curve.own_time_ns(request.energy_j, request.opened_ns, None)
            if own_ns is None and hardware:
                return None  # so young that its part of the hardware's time is not known yet
            return electricity * request.energy_j + hardware * (own_ns or 0.0) / 1e9

        return cost_so_far

    def _boundary(self, engine_id: str) -> str:
        """What the joules of an engine's receipts bound: its GPUs, or this host's CPU."""
        if self._before is None:
            return "gpu"
        owned = {d for e in self._before.engines if e.id == engine_id for d in e.devices}
        kinds = {s.device.boundary for s in self._before.devices if s.device.id in owned}
        return kinds.pop() if len(kinds) == 1 else "gpu"

    def _admit(self, snapshot: Snapshot) -> None:
        self._models.admit(key.model for key in snapshot.accounts)
        self._models.admit(key.model for key in snapshot.tokens)
        self._models.admit(engine.model or "" for engine in snapshot.engines)
        self._tenants.admit(key.tenant for key in snapshot.tenant_energy_j)

    def _count(self, receipt: Receipt) -> None:
        """Observe a final receipt, once, and keep it for look-ups."""
        self._store.add(receipt)
        if receipt.quality is None:
            return  # nothing measured its engine: there is no figure, and that is not a zero
        model = self._models.label(receipt.model or "")
        energy_j = known(lambda: figure(receipt.energy_j))
        closed_ns = receipt.closed_ns or receipt.opened_ns
        utc_s = known(lambda: figure((closed_ns + self._utc_offset_ns) / 1e9))
        if energy_j is None or utc_s is None:
            return  # one that is none would spoil the sum of all
        key = (model, receipt.engine)
        histogram = self._request_energy.setdefault(key, Histogram(REQUEST_BOUNDS_J))
        histogram.observe(Example(receipt.id, energy_j, utc_s))
        if tokens := figure(receipt.completion_tokens):
            histogram = self._token_energy.setdefault(key, Histogram(TOKEN_BOUNDS_J))
            histogram.observe(Example(receipt.id, energy_j / tokens, utc_s))
