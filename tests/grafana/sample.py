"""Seventy minutes of a small fleet at constant, known rates, so every figure on a board is known.

Two hosts, each with one engine: ``a`` serves ``llama`` on two measured GPUs, ``b`` serves ``qwen``
on one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from meter.model import Account
from meter.pricing import Tariff
from tests.grafana import fleet
from tests.grafana.fleet import Host, Moment

START_S = 1_760_000_000
LENGTH_S = 4200
STEP_S = 5
END_S = START_S + LENGTH_S
PENDING_J = 300.0
TARIFF = Tariff("EUR", Decimal("0.30"), Decimal("1.25"), Decimal("7.20"))
# What vLLM runs at once, a minute each.
BATCHES = (2, 8, 20, 80)
# dcgm-exporter misses one joule in a thousand.
DCGM_SHORT = 0.001


@dataclass(frozen=True, slots=True)
class Steady:
    """A host's constant rates: watts by account and by tenant, tokens and requests per second."""

    host: Host
    watts: dict[Account, float]
    tokens_per_s: dict[str, int]
    requests_per_s: int = 2

    @property
    def power_w(self) -> float:
        return sum(self.watts.values())

    def moments(self) -> Iterator[Moment]:
        """What it stands at, every five seconds."""
        for elapsed_s in range(0, LENGTH_S + 1, STEP_S):
            yield self._at(elapsed_s)

    def _at(self, elapsed_s: int) -> Moment:
        lost_j = self.watts.get(Account.UNATTRIBUTED, 0.0) * elapsed_s
        work_w = sum(self.watts.get(account, 0.0) for account in (Account.PREFILL, Account.DECODE))
        return Moment(
            t_s=START_S + elapsed_s,
            accounts={account: watts * elapsed_s for account, watts in self.watts.items()},
            unattributed={"lost_steps": 0.75 * lost_j, "foreign_load": 0.25 * lost_j}
            if lost_j
            else {},
            tokens={name: rate * elapsed_s for name, rate in self.tokens_per_s.items()},
            requests=self.requests_per_s * elapsed_s,
            power_w=self.power_w,
            pending_j=PENDING_J,
            running=BATCHES[elapsed_s // 60 % len(BATCHES)],
            dcgm_j=self.power_w * elapsed_s * (1 - DCGM_SHORT),
            vllm_tokens=self.tokens_per_s.get("output", 0) * elapsed_s,
            receipts=((50.0, 100), (500.0, 100))[: self.requests_per_s],
            tenants={"acme": work_w * elapsed_s} if work_w else {},
            coefficients={"static_w": (115.0, 1.0)},
            samples=50 * elapsed_s,
            cpu_j=80.0 * elapsed_s,
        )


A = Steady(
    Host("a", "llama", 2),
    {
        Account.PREFILL: 100.0,
        Account.DECODE: 700.0,
        Account.IDLE: 200.0,
        Account.UNATTRIBUTED: 1.0,
    },
    {"input": 2000, "input_cached": 1000, "output": 1000},
)
B = Steady(
    Host("b", "qwen", 1, limit_w=300.0),
    {Account.PREFILL: 50.0, Account.DECODE: 150.0, Account.IDLE: 100.0},
    {"input": 500, "output": 500},
)
# A live meter and no request, ever.
QUIET = Steady(B.host, {Account.IDLE: 200.0}, {}, requests_per_s=0)


def openmetrics(hosts: tuple[Steady, ...], tariff: Tariff = TARIFF, peers: bool = True) -> str:
    """The hosts' history as a backfill wants it."""
    return fleet.openmetrics([(one.host, one.moments()) for one in hosts], tariff, peers)


def exported_labels() -> dict[str, set[str]]:
    """Every sample name that the meter exports for host ``A``, with its labels."""
    names: dict[str, set[str]] = {}
    *_, (_, collector) = fleet.scrapes(A.host, A.moments(), TARIFF)
    for family in collector.collect():
        for one in family.samples:
            names.setdefault(one.name, set()).update(one.labels)
    return names
