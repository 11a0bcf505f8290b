"""Twenty minutes of a small fleet's metrics, made by the meter's own collector.

Two hosts, each with one engine: ``a`` serves ``llama`` on two measured GPUs, ``b`` serves ``qwen``
on one. All rates are constant and known, so every figure on a board is known too. vLLM and DCGM
stand beside the meter with series of their own, under their own labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

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
from meter.pricing import Tariff

NS = 1_000_000_000
START_S = 1_760_000_000
LENGTH_S = 1200
STEP_S = 5
END_S = START_S + LENGTH_S
PENDING_J = 300.0
TARIFF = Tariff("EUR", Decimal("0.30"), Decimal("1.25"), Decimal("7.20"))


@dataclass(frozen=True, slots=True)
class Host:
    """A host's constant rates: watts by account, tokens and requests per second."""

    instance: str
    model: str
    gpus: int
    watts: dict[Account, float]
    input_per_s: int
    cached_per_s: int
    output_per_s: int
    requests_per_s: int = 2
    limit_w: float = 700.0

    @property
    def power_w(self) -> float:
        return sum(self.watts.values())


A = Host(
    "a:9401",
    "llama",
    2,
    {
        Account.PREFILL: 100.0,
        Account.DECODE: 700.0,
        Account.IDLE: 200.0,
        Account.UNATTRIBUTED: 1.0,
    },
    input_per_s=2000,
    cached_per_s=1000,
    output_per_s=1000,
)
B = Host(
    "b:9401",
    "qwen",
    1,
    {Account.PREFILL: 50.0, Account.DECODE: 150.0, Account.IDLE: 100.0},
    input_per_s=500,
    cached_per_s=0,
    output_per_s=500,
    limit_w=300.0,
)
HOSTS = (A, B)


def quiet(host: Host) -> Host:
    """The host with a live meter and no request, ever."""
    return Host(host.instance, host.model, host.gpus, {Account.IDLE: 200.0}, 0, 0, 0, 0)


def openmetrics(hosts: tuple[Host, ...], tariff: Tariff = TARIFF, peers: bool = True) -> str:
    """The hosts' history in OpenMetrics text with timestamps, as a backfill wants it.

    ``peers``: with vLLM's and DCGM's own series.
    """
    kinds: dict[str, str] = {}
    lines: dict[str, list[str]] = {}
    for host in hosts:
        for t_s, collector in scrapes(host, tariff):
            for family in collector.collect():
                kinds[family.name] = family.type
                for sample in family.samples:
                    labels = {"job": "joulemeter", "instance": host.instance, **sample.labels}
                    text = ",".join(f'{name}="{value}"' for name, value in labels.items())
                    line = f"{sample.name}{{{text}}} {sample.value!r} {t_s}"
                    lines.setdefault(family.name, []).append(line)
        if peers:
            for name, kind, line in _peers(host):
                kinds[name] = kind
                lines.setdefault(name, []).append(line)
    body = (f"# TYPE {name} {kinds[name]}\n" + "\n".join(lines[name]) + "\n" for name in lines)
    return "".join(body) + "# EOF\n"


# What vLLM runs at once, a minute each.
BATCHES = (2, 8, 20, 80)
# dcgm-exporter misses one joule in a thousand.
DCGM_SHORT = 0.001


def _peers(host: Host) -> Iterator[tuple[str, str, str]]:
    """Family, type and line of each sample that vLLM and dcgm-exporter would give."""
    name = host.instance[0]
    vllm = f'job="vllm",instance="{name}:8000",model_name="{host.model}",engine="0"'
    for elapsed_s in range(0, LENGTH_S + 1, STEP_S):
        t_s = START_S + elapsed_s
        running = BATCHES[elapsed_s // 60 % len(BATCHES)]
        yield (
            "vllm:num_requests_running",
            "gauge",
            f"vllm:num_requests_running{{{vllm}}} {running} {t_s}",
        )
        for i in range(host.gpus):
            card = f'gpu="{i}",UUID="GPU-{name}-{i}",modelName="H100",Hostname="{name}"'
            labels = f'{{job="dcgm",instance="{name}:9400",{card}}}'
            moved_mj = host.power_w / host.gpus * elapsed_s * 1000 * (1 - DCGM_SHORT)
            for metric, kind, value in (
                ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", moved_mj),
                ("DCGM_FI_DEV_SM_CLOCK", "gauge", 1980.0),
            ):
                # dcgm-exporter's counter has no _total, so to OpenMetrics it is of no known kind.
                yield (
                    metric,
                    "unknown" if kind == "counter" else kind,
                    (f"{metric}{labels} {value!r} {t_s}"),
                )


def exported_labels() -> dict[str, set[str]]:
    """Every sample name that the meter exports for host ``A``, with its labels."""
    names: dict[str, set[str]] = {}
    *_, (_, collector) = scrapes(A)
    for family in collector.collect():
        for one in family.samples:
            names.setdefault(one.name, set()).update(one.labels)
    return names


def scrapes(host: Host, tariff: Tariff = TARIFF) -> Iterator[tuple[int, StateCollector]]:
    """Each scrape's time and a collector over the state then."""
    publisher = Publisher(tariff, start_ns=START_S * NS)
    for elapsed_s in range(0, LENGTH_S + 1, STEP_S):
        receipts = [_receipt(host, elapsed_s, i) for i in range(host.requests_per_s)]
        t_ns = (START_S + elapsed_s) * NS
        state = publisher.publish(_snapshot(host, elapsed_s), receipts, _health(elapsed_s, t_ns))
        yield START_S + elapsed_s, _collector(state, t_ns)


def _collector(state: State, now_ns: int) -> StateCollector:
    return StateCollector(lambda: state, lambda: now_ns)


def _health(elapsed_s: int, t_ns: int) -> Health:
    return Health(
        samples=50 * elapsed_s,
        sample_errors={"nvml": 0},
        datagrams=10 * elapsed_s,
        source_last_ns={"power": t_ns - 20_000_000, "engine": t_ns - NS},
    )


def _snapshot(host: Host, elapsed_s: int) -> Snapshot:
    accounts = {
        AccountKey("0", host.model, account, Quality.MEASURED): watts * elapsed_s
        for account, watts in host.watts.items()
    }
    tokens = {
        TokenKey("0", host.model, name): rate * elapsed_s
        for name, rate in (
            ("input", host.input_per_s),
            ("input_cached", host.cached_per_s),
            ("output", host.output_per_s),
        )
        if rate
    }
    ended = host.requests_per_s * elapsed_s
    lost_j = host.watts.get(Account.UNATTRIBUTED, 0.0) * elapsed_s
    work = (Account.PREFILL, Account.DECODE)
    attributed_j = elapsed_s * sum(host.watts.get(account, 0.0) for account in work)
    settled_ns = (START_S + elapsed_s) * NS
    devices = tuple(_device(host, elapsed_s, i) for i in range(host.gpus))
    return Snapshot(
        t_ns=settled_ns + 2 * NS,
        settled_ns=settled_ns,
        accounts=accounts,
        unattributed={"lost_steps": 0.75 * lost_j, "foreign_load": 0.25 * lost_j} if lost_j else {},
        tokens=tokens,
        requests={("0", host.model, "stop"): ended} if host.requests_per_s else {},
        devices=devices,
        engines=(Engine("0", tuple(d.device.id for d in devices), model=host.model),),
        measured_j=host.power_w * elapsed_s + PENDING_J,
        pending_j=PENDING_J,
        tenant_energy_j={TenantKey("acme", host.model): attributed_j} if attributed_j else {},
        receipts_open_j=0.25 * attributed_j,
        receipts_closed_j=0.75 * attributed_j,
    )


def _device(host: Host, elapsed_s: int, index: int) -> DeviceState:
    name = f"GPU-{host.instance[0]}-{index}"
    return DeviceState(
        device=Device(
            name,
            "NVIDIA H100 80GB HBM3",
            Quality.MEASURED,
            index=str(index),
            power_limit_w=host.limit_w,
        ),
        measured_j=(host.power_w * elapsed_s + PENDING_J) / host.gpus,
        pending_j=PENDING_J / host.gpus,
        power_w=host.power_w / host.gpus,
        refresh_s=0.1,
        latency_s=0.0005,
        coefficients={"static_w": 115.0},
        coefficient_sd={"static_w": 1.0},
        intervals=elapsed_s * 10,
        resets=0,
        last_reading_ns=(START_S + elapsed_s) * NS,
        delay_s=0.06,
        smear_s=0.025,
        delay_sd_s=0.002,
    )


def _receipt(host: Host, elapsed_s: int, index: int) -> Receipt:
    """A request of 50 or 500 J and 100 output tokens."""
    closed_ns = (START_S + elapsed_s) * NS
    return Receipt(
        id=f"{host.instance}-{elapsed_s}-{index}",
        engine="0",
        model=host.model,
        tenant=None,
        opened_ns=closed_ns - NS,
        closed_ns=closed_ns,
        reason="stop",
        prompt_tokens=100,
        cached_tokens=0,
        completion_tokens=100,
        prefill_j=10.0,
        decode_j=40.0 if index == 0 else 490.0,
        recompute_j=0.0,
        uncertainty_j=1.0,
        fidelity=Fidelity.STEP,
        quality=Quality.MEASURED,
        final=True,
    )
