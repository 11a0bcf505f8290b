"""A report from a Prometheus that scrapes meters: a fleet's window of time.

Counters are read with ``increase`` and ``rate``, which bear restarts, and reckon the window's edges
from the scrapes inside it: the figures are as exact as the scrapes are close. Receipts are not in
Prometheus, so what single requests took is not in such a report.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from meter.export.figures import duration
from meter.model import Quality, worst
from meter.report.figures import ACCOUNTS, REQUESTS, Bin, Line, Meter, Report

_BINS = 200
_STEP_S_MIN = 60.0
_TIMEOUT_S = 30.0
# No window's answer is longer, or takes longer.
_ANSWER_BYTES_MAX = 32 << 20
_ANSWER_S_MAX = 120.0
_READ_BYTES = 1 << 16
_SAID = 300
# In so many looks at a window it is found for how long a meter was there.
_LOOKS = 2000
_COVERED = 0.99
_NOTE = (
    "Made from Prometheus: sums are reckoned from scrapes (increase): what an account held when it "
    "was first scraped, most of a start-up, is in no account here. A model's cost includes "
    "that of its engine's idle time. Single requests are in receipts, not here."
)

_ENERGY = '{__name__=~"joulemeter_energy_joules_total|joulemeter_gpu_energy_joules_total"}'

Labels = Mapping[str, str]
Rows = list[tuple[Labels, float]]


class PrometheusError(Exception):
    """It does not answer, or has nothing of a meter in that window; the message has the remedy."""


class Window(NamedTuple):
    """A stretch of UTC time, in seconds."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def from_prometheus(url: str, window: Window) -> Report:
    """Raises ``PrometheusError``."""
    server = _Server(url, window)
    energy = server.increase("joulemeter_energy_joules_total", "model_name", "phase", "quality")
    devices = server.increase("joulemeter_gpu_energy_joules_total", "gpu_uuid", "gpu", "quality")
    if not energy and not devices:
        raise PrometheusError(
            f"{url} has no joulemeter_energy_joules_total in that window: does it scrape a meter "
            "(deploy/prometheus/prometheus.yml), and did it then?"
        )
    measured_j = sum(value for _, value in devices)
    accounts_j = dict.fromkeys(ACCOUNTS, 0.0)
    for labels, joules in energy:
        accounts_j[labels["phase"]] = accounts_j.get(labels["phase"], 0.0) + joules
    qualities = [_quality(labels["quality"]) for labels, _ in (*energy, *devices)]
    metered_s = server.metered_s()
    cost = server.increase("joulemeter_cost_total", "model_name", "component", "currency")
    credits = server.increase(
        "joulemeter_cost_credits_total", "model_name", "component", "currency"
    )
    spent = [*cost, *((labels, -amount) for labels, amount in credits)]
    reasons = server.increase("joulemeter_unattributed_joules_total", "reason")
    return Report(
        source=url,
        start_utc_s=window.start_s,
        seconds=window.seconds,
        quality=str(worst(qualities)),
        metered_s=metered_s,
        measured_j=measured_j,
        accounts_j=accounts_j,
        pending_j=0.0,
        residual_j=measured_j - sum(accounts_j.values()),
        unattributed_by_reason={
            labels["reason"]: joules for labels, joules in reasons if joules > 0
        },
        currency=next((labels["currency"] for labels, _ in spent), ""),
        cost_components=_summed(spent, "component"),
        others_cost={},
        prices={},
        models=_models(server, energy, spent),
        tenants=_tenants(server),
        timeline=_timeline(server),
        meters=_meters(server, devices),
        holes=_holes(window, metered_s),
        notes=(_NOTE,),
    )


def _holes(window: Window, metered_s: float | None) -> tuple[str, ...]:
    if metered_s is None:
        return ("for how much of the window a meter was there is not known",)
    if metered_s >= _COVERED * window.seconds:
        return ()
    return (
        f"a meter was there for {duration(metered_s)} of the window's {duration(window.seconds)}: "
        "means are over that time, and what was drawn in the rest is in no figure",
    )


def _quality(name: str) -> Quality:
    try:
        return Quality(name)
    except ValueError as error:
        raise PrometheusError(
            f"a series has the quality {name!r:.80}: is it a meter's, and of this version?"
        ) from error


class _Server:
    """Asks a Prometheus about one window."""

    def __init__(self, url: str, window: Window) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise PrometheusError(f"{url!r:.200} is no address: give one as http://HOST:9090")
        self._url = url.rstrip("/")
        self.window = window

    def increase(self, metric: str, *labels: str) -> Rows:
        """What a counter grew by in the window, summed by labels."""
        expr = f"sum by ({', '.join(labels)}) (increase({metric}[{self._whole()}]))"
        rows = [
            ({**dict.fromkeys(labels, ""), **row}, value)
            for row, value in self._values("query", query=expr, time=self.window.end_s)
        ]
        return [(row, value) for row, value in rows if math.isfinite(value)]

    def metered_s(self) -> float | None:
        """For how much of the window a meter's series were there; ``None`` where it does not say.

        Prometheus ends a series with the scrape that does not find it.
        """
        seconds = self.window.seconds
        step_s = max(1, round(seconds / _LOOKS))
        expr = f"count_over_time(group({_ENERGY})[{self._whole()}:{step_s}s])"
        rows = self._values("query", query=expr, time=self.window.end_s)
        looks = sum(value for _, value in rows if math.isfinite(value))
        return min(seconds, looks * step_s) if looks > 0 else None

    def last(self, metric: str) -> list[Labels]:
        """The labels of every series of a metric that was there in the window."""
        expr = f"last_over_time({metric}[{self._whole()}])"
        return [row for row, _ in self._values("query", query=expr, time=self.window.end_s)]

    def rates(self, metric: str, label: str, matchers: str = "") -> dict[str, dict[float, float]]:
        """By label value: the mean rate over each step, by the time at which that ends."""
        step_s = self.step_s
        expr = f"sum by ({label}) (rate({metric}{matchers}[{max(1, round(step_s))}s]))"
        words = {"start": self.window.start_s + step_s, "end": self.window.end_s, "step": step_s}
        with self._understood():
            return {
                _labels(row).get(label, ""): {float(t): float(v) for t, v in row["values"]}
                for row in self._ask("query_range", query=expr, **words)
            }

    def _values(self, kind: str, **words: Any) -> Rows:
        """Each series of an instant query, and its value."""
        with self._understood():
            return [(_labels(row), float(row["value"][1])) for row in self._ask(kind, **words)]

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Whatever else an answer holds, it is none."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise PrometheusError(
                f"{self._url} does not answer as Prometheus does ({error!r:.80})"
            ) from error

    @property
    def step_s(self) -> float:
        """Never so short that it holds too few scrapes."""
        return max(_STEP_S_MIN, self.window.seconds / _BINS)

    def _whole(self) -> str:
        return f"{max(1, round(self.window.seconds))}s"

    def _ask(self, kind: str, **words: Any) -> list[Any]:
        path = f"{self._url}/api/v1/{kind}?{urllib.parse.urlencode(words)}"
        try:
            with urllib.request.urlopen(path, timeout=_TIMEOUT_S) as answer:
                found = json.loads(_read(answer))["data"]["result"]
        except urllib.error.HTTPError as error:
            said = error.read(_SAID).decode(errors="replace")
            error.close()
            raise PrometheusError(f"{self._url} answers {error.code}: {said:.300}") from error
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            reason = str(getattr(error, "reason", error))
            raise PrometheusError(
                f"no Prometheus answers at {self._url} ({reason:.{_SAID}})"
            ) from error
        except RecursionError as error:
            raise PrometheusError(f"no Prometheus answers at {self._url} (a nest)") from error
        if not isinstance(found, list):
            raise PrometheusError(f"no Prometheus answers at {self._url} (no list of series)")
        return found


def _read(answer: http.client.HTTPResponse) -> bytes:
    """All of an answer, within bounds. Raises ``ValueError``."""
    data, end_s = bytearray(), time.monotonic() + _ANSWER_S_MAX
    while piece := answer.read1(_READ_BYTES):
        data += piece
        if len(data) > _ANSWER_BYTES_MAX:
            raise ValueError(f"its answer is longer than {_ANSWER_BYTES_MAX >> 20} MiB")
        if time.monotonic() > end_s:
            raise ValueError(f"its answer takes longer than {_ANSWER_S_MAX:.0f} s")
    return bytes(data)


def _labels(row: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in row["metric"].items()}


def _summed(rows: Iterable[tuple[Labels, float]], label: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for labels, value in rows:
        sums[labels[label]] = sums.get(labels[label], 0.0) + value
    return sums


def _models(server: _Server, energy: Rows, spent: Rows) -> tuple[Line, ...]:
    of_requests = _summed((row for row in energy if row[0]["phase"] in REQUESTS), "model_name")
    requests = _summed(server.increase("joulemeter_requests_total", "model_name"), "model_name")
    tokens = server.increase("joulemeter_tokens_total", "model_name", "token_type")
    cost = _summed(spent, "model_name")
    lines = []
    for name, joules in of_requests.items():
        given, cached, out = (_tokens(tokens, "model_name", name, kind) for kind in _KINDS)
        done = round(requests.get(name, 0.0))
        lines.append(Line(name, done, given, cached, out, joules, cost.get(name)))
    return tuple(sorted(lines, key=lambda line: -line.energy_j))


_KINDS = ("input", "input_cached", "output")


def _tokens(rows: Rows, label: str, name: str, kind: str) -> int:
    mine = (value for row, value in rows if row[label] == name and row["token_type"] == kind)
    return round(sum(mine))


def _tenants(server: _Server) -> tuple[Line, ...]:
    energy = server.increase("joulemeter_tenant_energy_joules_total", "tenant")
    tokens = server.increase("joulemeter_tenant_tokens_total", "tenant", "token_type")
    lines = []
    for labels, joules in energy:
        name = labels["tenant"]
        given, cached, out = (_tokens(tokens, "tenant", name, kind) for kind in _KINDS)
        lines.append(Line(name, None, given + cached, None, out, joules, None))
    return tuple(sorted(lines, key=lambda line: -line.energy_j))


def _timeline(server: _Server) -> tuple[Bin, ...]:
    watts = server.rates("joulemeter_energy_joules_total", "phase")
    tokens = server.rates("joulemeter_tokens_total", "token_type", '{token_type="output"}')
    speed = tokens.get("output", {})
    window, step_s = server.window, server.step_s
    bins = []
    for i in range(int(window.seconds // step_s)):
        start_s, end_s = i * step_s, (i + 1) * step_s
        at = window.start_s + end_s
        known = {name: _near(values, at) for name, values in watts.items()}
        seen = any(value is not None for value in known.values())
        mean = tuple(known.get(name) or 0.0 for name in ACCOUNTS) if seen else None
        bins.append(Bin(start_s, end_s, mean, None, _near(speed, at)))
    return tuple(bins) if any(one.watts for one in bins) else ()


def _near(values: Mapping[float, float], at_s: float) -> float | None:
    """The value at a time, which Prometheus writes to the millisecond."""
    return next((value for t_s, value in values.items() if abs(t_s - at_s) < 0.01), None)


def _meters(server: _Server, devices: Rows) -> tuple[Meter, ...]:
    infos = {row.get("gpu_uuid", ""): row for row in server.last("joulemeter_gpu_info")}
    return tuple(
        Meter(
            infos.get(row["gpu_uuid"], {}).get("gpu_name", f"device {row['gpu']}"),
            row["gpu_uuid"],
            infos.get(row["gpu_uuid"], {}).get("boundary", "–"),
            row["quality"],
            joules,
        )
        for row, joules in devices
    )
