"""A fleet's metrics as text, made by the meter's own collector from what each host stood at when.

vLLM and DCGM stand beside the meter with series of their own, under their own labels. All times are
Unix seconds, all energies joules since the host's first moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from meter.export.prometheus import StateCollector
from meter.export.publisher import Publisher
from meter.export.state import Health, State
from meter.model import (
    Account,
    AccountKey,
    Device,
    DeviceState,
    Engine,
    Fidelity,
    Quality,
    Receipt,
    Snapshot,
    TenantKey,
    TokenKey,
)
from meter.power.claim import Claimed
from meter.power.lane import LaneState
from meter.pricing import Tariff

NS = 1_000_000_000
_WORK = (Account.PREFILL, Account.DECODE, Account.RECOMPUTE)
Line = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Host:
    """A host with one engine: ``name`` a has its meter at a:29401 and its vLLM at a:8000."""

    name: str
    model: str
    gpus: int
    limit_w: float = 700.0

    @property
    def instance(self) -> str:
        return f"{self.name}:29401"


@dataclass(frozen=True, slots=True)
class Moment:
    """What a host stands at. ``receipts``: joules and output tokens of the requests just ended.

    ``off``: by which part receipts differ from the accounts, as only a broken meter has it.
    ``dcgm_j``: what DCGM counted; ``vllm_tokens``: output tokens by vLLM's own counter; ``cpu_j``:
    what the host's CPU took.
    """

    t_s: int
    accounts: Mapping[Account, float]
    unattributed: Mapping[str, float]
    tokens: Mapping[str, int]
    requests: int
    power_w: float
    pending_j: float
    running: int
    dcgm_j: float
    vllm_tokens: int
    receipts: tuple[tuple[float, int], ...] = ()
    tenants: Mapping[str, float] = field(default_factory=dict)
    coefficients: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: int = 0
    age_s: float = 0.02
    still_s: float = 0.0
    cpu_j: float = 0.0
    off: float = 0.0

    @property
    def settled_j(self) -> float:
        return sum(self.accounts.values())


History = Iterable[tuple[Host, Iterable[Moment]]]


def openmetrics(history: History, tariff: Tariff, peers: bool = True) -> str:
    """OpenMetrics text with timestamps, as a backfill wants it; ``peers``: vLLM and DCGM too."""
    kinds: dict[str, str] = {}
    lines: dict[str, list[str]] = {}
    for host, moments in history:
        past: deque[Moment] = deque()
        for moment, collector in scrapes(host, moments, tariff):
            past.append(moment)
            found = [_lines(host, moment, collector, peers)]
            if peers:
                found.append(_recorded(host, past))
            for family, kind, line in chain.from_iterable(found):
                kinds[family] = kind
                lines.setdefault(family, []).append(line)
    body = (f"# TYPE {name} {kinds[name]}\n" + "\n".join(lines[name]) + "\n" for name in lines)
    return "".join(body) + "# EOF\n"


def scrapes(
    host: Host, moments: Iterable[Moment], tariff: Tariff
) -> Iterator[tuple[Moment, StateCollector]]:
    """Each moment, and a collector over the meter's state then."""
    publisher = None
    for moment in moments:
        publisher = publisher or Publisher(tariff, start_ns=moment.t_s * NS)
        receipts = [_receipt(host, moment, i) for i in range(len(moment.receipts))]
        state = publisher.publish(_snapshot(host, moment), receipts, _health(host, moment))
        yield moment, _collector(state, moment.t_s * NS)


def _lines(host: Host, moment: Moment, collector: StateCollector, peers: bool) -> Iterator[Line]:
    """Family, type and line of each sample of one scrape of everything on a host."""
    for family in collector.collect():
        for sample in family.samples:
            labels = {"job": "joulemeter", "instance": host.instance, **sample.labels}
            text = ",".join(f'{name}="{value}"' for name, value in labels.items())
            yield family.name, family.type, f"{sample.name}{{{text}}} {sample.value!r} {moment.t_s}"
    if peers:
        yield from _vllm(host, moment)
        yield from _dcgm(host, moment)


def _vllm(host: Host, moment: Moment) -> Iterator[Line]:
    labels = f'job="vllm",instance="{host.name}:8000",model_name="{host.model}",engine="0"'
    name = "vllm:num_requests_running"
    yield name, "gauge", f"{name}{{{labels}}} {moment.running} {moment.t_s}"
    name = "vllm:generation_tokens"
    yield name, "counter", f"{name}_total{{{labels}}} {moment.vllm_tokens} {moment.t_s}"


def _dcgm(host: Host, moment: Moment) -> Iterator[Line]:
    """Its counter has no ``_total``, so to OpenMetrics it is of no known kind."""
    for i in range(host.gpus):
        card = f'gpu="{i}",UUID="GPU-{host.name}-{i}",modelName="H100",Hostname="{host.name}"'
        labels = f'{{job="dcgm",instance="{host.name}:9400",{card}}}'
        mhz = _clock_mhz(host, moment)
        old, new = (
            ("TOTAL_ENERGY_CONSUMPTION", "SM_CLOCK"),
            ("GPU_ENERGY_JOULES_TOTAL", "SM_CLOCK_HERTZ"),
        )
        # A host that is up to date, and one that is not.
        names, joule, hertz = (new, 1, 1e6) if host.name == "b" else (old, 1000, 1)
        for name, kind, value in (
            (names[0], "unknown", moment.dcgm_j / host.gpus * joule),
            (names[1], "gauge", mhz * hertz),
        ):
            metric = f"DCGM_FI_DEV_{name}"
            yield metric, kind, f"{metric}{labels} {value!r} {moment.t_s}"


def _recorded(host: Host, past: deque[Moment]) -> Iterator[Line]:
    """What the recording rules make of DCGM's series; promtool holds the rules to it elsewhere."""
    now = past[-1]
    while past[0].t_s < now.t_s - 3600:
        past.popleft()
    for window, seconds in (("5m", 300), ("1h", 3600)):
        watts = _rate([one for one in past if one.t_s >= now.t_s - seconds], seconds) / host.gpus
        yield from _by_card(host, f"gpu:dcgm_energy_joules:rate{window}", watts, now.t_s)
    yield from _by_card(host, "gpu:dcgm_sm_clock_hertz:max", _clock_mhz(host, now) * 1e6, now.t_s)


def _rate(inside: list[Moment], seconds: int) -> float:
    """Of DCGM's joules, as Prometheus works it out: a window that begins before its first sample is
    not filled up, but for half a step, and not beyond where the counter was 0."""
    first, last = inside[0], inside[-1]
    sampled_s, moved_j = last.t_s - first.t_s, last.dcgm_j - first.dcgm_j
    if not moved_j:
        return 0.0
    step_s = sampled_s / (len(inside) - 1)
    before_s = min(first.t_s - (last.t_s - seconds), sampled_s * first.dcgm_j / moved_j)
    before_s = before_s if before_s < 1.1 * step_s else step_s / 2
    return moved_j * (sampled_s + before_s) / sampled_s / seconds


def _by_card(host: Host, name: str, value: float, t_s: float) -> Iterator[Line]:
    for i in range(host.gpus):
        yield name, "gauge", f'{name}{{gpu_uuid="GPU-{host.name}-{i}"}} {value!r} {t_s}'


def _clock_mhz(host: Host, moment: Moment) -> float:
    return 1980 - max(0.0, moment.power_w / host.gpus / host.limit_w - 0.9) * 4000


def _collector(state: State, now_ns: int) -> StateCollector:
    return StateCollector(lambda: state, lambda: now_ns)


def _health(host: Host, moment: Moment) -> Health:
    t_ns = moment.t_s * NS
    return Health(
        samples=moment.samples,
        sample_errors={"nvml": 0},
        datagrams=moment.samples // 5,
        source_last_ns={"power": t_ns - int(moment.age_s * NS), "engine": t_ns - NS},
        lanes=tuple(_lane(host, moment, i) for i in range(host.gpus)),
        host=Claimed(
            Quality.MEASURED, int(0.25 * moment.cpu_j * 1e6), int(0.75 * moment.cpu_j * 1e6), 60.0
        ),
    )


def _lane(host: Host, moment: Moment, index: int) -> LaneState:
    """How a card is polled; the counter says a little more than the power does."""
    return LaneState(
        device=_card(host, index),
        source="nvml",
        samples=moment.samples,
        good_ns=moment.t_s * NS - int(moment.age_s * NS),
        gap=-1.0 if moment.still_s else 0.004 + 0.002 * index,
        still_s=moment.still_s,
    )


def _card(host: Host, index: int) -> Device:
    return Device(
        f"GPU-{host.name}-{index}",
        "NVIDIA H100 80GB HBM3",
        Quality.MEASURED,
        index=str(index),
        power_limit_w=host.limit_w,
    )


def _snapshot(host: Host, moment: Moment) -> Snapshot:
    attributed_j = sum(moment.accounts.get(account, 0.0) for account in _WORK) * (1 + moment.off)
    settled_ns = moment.t_s * NS
    devices = tuple(_device(host, moment, i) for i in range(host.gpus))
    served = any(moment.tokens.values())
    return Snapshot(
        t_ns=settled_ns + 2 * NS,
        settled_ns=settled_ns,
        accounts={
            AccountKey("0", host.model, account, Quality.MEASURED): energy_j
            for account, energy_j in moment.accounts.items()
        }
        # Before the engine was known nothing was drawn; but its account is there, of no model.
        | {AccountKey("", "", Account.IDLE, Quality.MEASURED): 0.0},
        unattributed=moment.unattributed,
        tokens={TokenKey("0", host.model, name): n for name, n in moment.tokens.items() if n},
        requests={("0", host.model, "stop"): moment.requests} if served else {},
        devices=devices,
        engines=(Engine("0", tuple(d.device.id for d in devices), model=host.model),),
        measured_j=moment.settled_j + moment.pending_j,
        pending_j=moment.pending_j,
        tenant_energy_j={TenantKey(t, host.model): j for t, j in moment.tenants.items()},
        receipts_open_j=0.25 * attributed_j,
        receipts_closed_j=0.75 * attributed_j,
    )


def _device(host: Host, moment: Moment, index: int) -> DeviceState:
    return DeviceState(
        device=_card(host, index),
        measured_j=(moment.settled_j + moment.pending_j) / host.gpus,
        pending_j=moment.pending_j / host.gpus,
        power_w=moment.power_w / host.gpus,
        refresh_s=0.1,
        latency_s=0.0005,
        coefficients={name: value for name, (value, _) in moment.coefficients.items()},
        coefficient_sd={name: sd for name, (_, sd) in moment.coefficients.items()},
        intervals=moment.samples // 5,
        resets=0,
        last_reading_ns=moment.t_s * NS,
        delay_s=0.06,
        smear_s=0.025,
        delay_sd_s=0.002,
    )


def _receipt(host: Host, moment: Moment, index: int) -> Receipt:
    """A request that ended now and took what the moment says."""
    energy_j, tokens = moment.receipts[index]
    closed_ns = moment.t_s * NS
    return Receipt(
        id=f"{host.name}-{moment.t_s}-{index}",
        engine="0",
        model=host.model,
        tenant=None,
        opened_ns=closed_ns - NS,
        closed_ns=closed_ns,
        reason="stop",
        prompt_tokens=100,
        cached_tokens=0,
        completion_tokens=tokens,
        prefill_j=0.2 * energy_j,
        decode_j=0.8 * energy_j,
        recompute_j=0.0,
        uncertainty_j=0.02 * energy_j,
        fidelity=Fidelity.STEP,
        quality=Quality.MEASURED,
        final=True,
    )
