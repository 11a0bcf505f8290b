"""A week of a fleet that lives: days, nights, batches that fill and empty, things going wrong.

``a`` serves a 70B model on two cards, ``b`` an 8B model on one. A token's joules fall as the batch
grows, as they do: ``per_token + per_step / running``. Most faults that an alert is for happen once,
at a known time; ``INCIDENTS`` says when. Scrapes are minutes apart, and seconds apart in the last
hour, so that a whole week is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from meter.model import Account
from meter.pricing import Tariff
from tests.grafana.fleet import Host, Moment

HOUR_S = 3600
DAY_S = 24 * HOUR_S
WEEK_S = 7 * DAY_S
# Prometheus looks five minutes back.
COARSE_S = 240
FINE_S = 15
TARIFF = Tariff("EUR", Decimal("0.21"), Decimal("1.25"), Decimal("4.80"))
TENANTS = {"acme": 0.6, "globex": 0.3, "initech": 0.1}


def _at(day: int, hour: float, hours: float) -> tuple[int, int]:
    start_s = int(day * DAY_S + hour * HOUR_S)
    return start_s, start_s + int(hours * HOUR_S)


# Alert, host: from when to when, in seconds from the week's start.
INCIDENTS = {
    ("JoulemeterBlind", "a"): _at(1, 3, 1),
    ("JoulemeterStranger", "a"): _at(4, 18, 2),
    ("JoulemeterCounterStuck", "b"): _at(2, 20, 1),
    ("JoulemeterIdleGpu", "b"): _at(3, 0, 5),
    ("JoulemeterPowerCapped", "b"): _at(4, 12, 2),
    ("JoulemeterDcgmDisagrees", "a"): _at(0, 6, 4),
    ("JoulemeterConservationBroken", "b"): _at(0, 15, 1),
}


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine, its traffic and what its tokens take (J)."""

    host: Host
    peak_tokens_per_s: float
    tokens_per_s_alone: float
    per_step_j: float
    per_token_j: float
    prefill_j: float
    static_w: float
    shift_h: float

    def during(self, incident: str, t_s: float) -> bool:
        start_s, end_s = INCIDENTS.get((incident, self.host.name), (0, 0))
        return start_s <= t_s < end_s

    def traffic(self, t_s: float) -> float:
        """Output tokens a second: a day's wave, uneven, and none in the night of idling."""
        if self.during("JoulemeterIdleGpu", t_s):
            return 0.0
        hour = t_s / HOUR_S + self.shift_h
        day = (1 + math.sin(2 * math.pi * (hour - 8) / 24)) / 2
        # Lunch, the weekend, and what nobody can foresee: sines that never meet again.
        lunch = 1 - 0.25 * math.exp(-(((hour % 24) - 12.5) ** 2))
        weekend = 0.55 if t_s // DAY_S in (1, 2) else 1.0
        noise = math.sin(t_s / 611) + math.sin(t_s / 1733 + 1) + math.sin(t_s / 4799 + 2)
        wave = 0.05 + 0.85 * day**2 * lunch * weekend
        return self.peak_tokens_per_s * wave * (1 + 0.07 * noise)

    def running(self, tokens_per_s: float) -> float:
        """Requests at once: each is served more slowly, the more there are."""
        slowed = 1 + 2 * tokens_per_s / self.peak_tokens_per_s
        return tokens_per_s / self.tokens_per_s_alone * slowed

    def watts(self, t_s: float) -> dict[Account, float]:
        """Power by account. A card at its limit computes less; a stranger takes what it takes."""
        tokens_per_s = self.traffic(t_s)
        running = max(1.0, self.running(tokens_per_s))
        decode_w = tokens_per_s * (self.per_token_j + self.per_step_j / running)
        idle_part = math.exp(-self.running(tokens_per_s) / 6)
        watts = {
            Account.PREFILL: 3 * tokens_per_s * self.prefill_j,
            Account.DECODE: decode_w,
            Account.IDLE: self.static_w * idle_part,
            Account.UNATTRIBUTED: 0.0003 * decode_w,
        }
        if self.during("JoulemeterPowerCapped", t_s):
            known_w = sum(watts.values()) - watts[Account.DECODE]
            watts[Account.DECODE] = 0.995 * self.host.limit_w * self.host.gpus - known_w
        if self.during("JoulemeterStranger", t_s):
            watts[Account.UNATTRIBUTED] = 0.25 * sum(watts.values())
        return watts

    def moments(self, start_s: int) -> Iterator[Moment]:
        """What it stands at, through the week that starts at the Unix time ``start_s``."""
        sums = _Sums()
        for t_s in _times():
            sums.advance(self, t_s)
            yield self._moment(start_s, t_s, sums)

    def _moment(self, start_s: int, t_s: int, sums: _Sums) -> Moment:
        tokens_per_s = self.traffic(t_s)
        running = self.running(tokens_per_s)
        watts = self.watts(t_s)
        stuck = self.during("JoulemeterCounterStuck", t_s)
        return Moment(
            t_s=start_s + t_s,
            accounts=dict(sums.accounts),
            unattributed=dict(sums.unattributed),
            tokens={name: int(n) for name, n in sums.tokens.items()},
            requests=int(sums.tokens["output"] / 250),
            power_w=sum(watts.values()),
            pending_j=0.0 if stuck else 2 * sum(watts.values()),
            running=round(running),
            dcgm_j=sums.dcgm_j,
            vllm_tokens=int(sums.tokens["output"]),
            receipts=tuple(self._receipts(t_s, tokens_per_s, running)),
            tenants={name: part * sums.attributed_j for name, part in TENANTS.items()},
            coefficients=self._coefficients(t_s),
            samples=50 * t_s,
            still_s=t_s - INCIDENTS["JoulemeterCounterStuck", "b"][0] + 1.0 if stuck else 0.0,
            cpu_j=90.0 * t_s + 0.02 * sums.attributed_j,
            age_s=600.0 if self.during("JoulemeterBlind", t_s) else 0.02,
            off=0.01 if self.during("JoulemeterConservationBroken", t_s) else 0.0,
        )

    def _receipts(
        self, t_s: int, tokens_per_s: float, running: float
    ) -> Iterator[tuple[float, int]]:
        """A few requests of all lengths: joules and output tokens."""
        if not tokens_per_s:
            return
        per_token_j = self.per_token_j + self.per_step_j / max(1.0, running)
        # As many for each second, whether scrapes are minutes or seconds apart.
        for i in range(1 if t_s > WEEK_S - HOUR_S else COARSE_S // FINE_S):
            tokens = int(60 * 1.9 ** (4 * _any(t_s + i, 0)))
            yield tokens * per_token_j * 2 ** (2 * _any(t_s + i, 1) - 1), tokens

    def _coefficients(self, t_s: int) -> dict[str, tuple[float, float]]:
        """Static power drifts with the room; doubt falls as the load varies."""
        warm = 1 + 0.02 * math.sin(2 * math.pi * t_s / DAY_S)
        doubt = 0.01 + 0.2 / (1 + t_s / HOUR_S)
        known = {
            "static_w": self.static_w / self.host.gpus * warm,
            "F": self.per_step_j / self.host.gpus,
            "a": self.prefill_j,
            "b": self.per_token_j,
            "c": 2e-5,
        }
        return {name: (value, value * doubt) for name, value in known.items()}


def _any(seed: float, salt: int) -> float:
    """Somewhere between 0 and 1, more often in the middle; the same for the same seed."""
    parts = (math.sin((seed + 1) * k) * 43_758.5453 for k in (12.9898 + salt, 78.233, 37.719))
    return sum(part - math.floor(part) for part in parts) / 3


@dataclass(slots=True)
class _Sums:
    """What has come together since the week's start, by the trapezoid's middle."""

    t_s: int = 0
    accounts: dict[Account, float] = field(default_factory=dict)
    unattributed: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(
        default_factory=lambda: {"input": 0.0, "input_cached": 0.0, "output": 0.0}
    )
    dcgm_j: float = 0.0

    @property
    def attributed_j(self) -> float:
        return sum(self.accounts.get(a, 0.0) for a in (Account.PREFILL, Account.DECODE))

    def advance(self, serving: Serving, t_s: int) -> None:
        middle_s, length_s = (self.t_s + t_s) / 2, t_s - self.t_s
        self.t_s = t_s
        if serving.during("JoulemeterCounterStuck", middle_s):
            return
        watts = serving.watts(middle_s)
        for account, w in watts.items():
            self.accounts[account] = self.accounts.get(account, 0.0) + w * length_s
        stranger = serving.during("JoulemeterStranger", middle_s)
        reason = "foreign_load" if stranger else "lost_steps"
        lost_j = watts[Account.UNATTRIBUTED] * length_s
        self.unattributed[reason] = self.unattributed.get(reason, 0.0) + lost_j
        output = serving.traffic(middle_s) * length_s
        for name, factor in (("input", 3.0), ("input_cached", 1.0), ("output", 1.0)):
            self.tokens[name] += factor * output
        missed = 0.05 if serving.during("JoulemeterDcgmDisagrees", middle_s) else 0.0005
        self.dcgm_j += sum(watts.values()) * length_s * (1 - missed)


def _times() -> Iterator[int]:
    """Seconds from the week's start at which everything is scraped."""
    last_hour_s = WEEK_S - HOUR_S
    yield from range(0, last_hour_s, COARSE_S)
    yield from range(last_hour_s, WEEK_S + 1, FINE_S)


FLEET = (
    Serving(Host("a", "llama-3.1-70b", 2), 1800.0, 28.0, 9.0, 0.42, 0.045, 230.0, shift_h=0.0),
    Serving(Host("b", "qwen3-8b", 1), 2600.0, 130.0, 1.6, 0.11, 0.008, 112.0, shift_h=4.0),
)
