"""A meter for the page to show: a real port and publisher over accounts that grow with time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from meter.export.http import create_app
from meter.export.publisher import Publisher
from meter.export.receipts import Priced
from meter.export.running import UnderWay
from meter.export.state import Health, State
from meter.model import (
    Account,
    AccountKey,
    Device,
    DeviceState,
    Engine,
    Fidelity,
    Progress,
    Quality,
    Receipt,
    Running,
    Snapshot,
    TokenKey,
)
from meter.pricing import Tariff
from meter.runtime.port import Port

NS = 1_000_000_000
LAG_NS = NS // 2
# Watts by account, in decimals that floats hold exactly.
WATTS = {Account.PREFILL: 64.0, Account.DECODE: 256.0, Account.IDLE: 16.0, Account.STARTUP: 0.5}
_STAGES = (Progress.DECODE, Progress.DECODE, Progress.PREFILL, Progress.WAITING, Progress.SETTLING)


@dataclass
class Meter:
    """``running``: requests under way; ``power_age_s``, ``engine_age_s``: how long ago each source
    spoke; ``device_age_s``: the last device. All may be changed while it serves."""

    running_count: int = 20
    devices: int = 1
    power_age_s: float = 0.0
    engine_age_s: float = 0.0
    device_age_s: float = 0.0
    tariff: Tariff = field(default_factory=lambda: Tariff("EUR"))
    ended: bool = False

    def __post_init__(self) -> None:
        # It has been running for two minutes.
        self._start_ns = time.monotonic_ns() - 120 * NS
        self._publisher = Publisher(self.tariff, self._start_ns)
        for second in range(0, 240):
            self._publish(self._start_ns + second * NS // 2)
        self._state = self._publish(time.monotonic_ns(), [self._receipt(i) for i in range(5)])
        self.port: Port | None = None

    # --- its port

    def serve(self, port: int = 0) -> Meter:
        self.port = Port(create_app(self), "127.0.0.1", port)
        self.port.start()
        return self

    @property
    def url(self) -> str:
        assert self.port is not None
        return self.port.url

    def stop(self) -> int:
        """Returns the port's number."""
        assert self.port is not None
        number = int(self.port.url.rpartition(":")[2])
        self.port.stop()
        return number

    # --- meter.export.http.View

    def state(self) -> State | None:
        now_ns = time.monotonic_ns()
        if now_ns - self._state.snapshot.t_ns > NS // 5:
            self._state = self._publish(now_ns)
        return self._state

    def running(self) -> UnderWay:
        now_ns = time.monotonic_ns()
        rows = [self._request(i, now_ns) for i in range(self.running_count)]
        return self._publisher.running(rows)

    def receipt(self, request: str) -> Priced | None:
        return self._publisher.find(request, lambda _: None)

    def recent(self, limit: int) -> list[Priced]:
        return self._publisher.recent(limit)

    def problems(self) -> tuple[str, ...]:
        return ()

    def alive(self) -> bool:
        return not self.ended

    # --- what it says

    def _publish(self, t_ns: int, final: list[Receipt] | None = None) -> State:
        heard = {
            "power": t_ns - round(self.power_age_s * NS),
            "engine": t_ns - round(self.engine_age_s * NS),
        }
        health = Health(source_last_ns=heard)
        return self._publisher.publish(self._snapshot(t_ns), final or [], health)

    def _snapshot(self, t_ns: int) -> Snapshot:
        settled_s = (t_ns - LAG_NS - self._start_ns) / NS
        joules = {name: max(0.0, watts * settled_s) for name, watts in WATTS.items()}
        pending_j = sum(WATTS.values()) * LAG_NS / NS
        measured_j = sum(joules.values()) + pending_j
        accounts = {AccountKey("0", "m", n, Quality.SIMULATED): j for n, j in joules.items()}
        return Snapshot(
            t_ns=t_ns,
            settled_ns=t_ns - LAG_NS,
            accounts=accounts,
            tokens={
                TokenKey("0", "m", "input"): int(50 * max(0.0, settled_s)),
                TokenKey("0", "m", "output"): int(1000 * max(0.0, settled_s)),
            },
            requests={("0", "m", "stop"): 5},
            devices=tuple(
                self._device(i, measured_j / self.devices, pending_j / self.devices, t_ns)
                for i in range(self.devices)
            ),
            engines=(Engine("0", tuple(f"GPU-{i}" for i in range(self.devices)), model="m"),),
            measured_j=measured_j,
            pending_j=pending_j,
            receipts_open=self.running_count,
            receipts_closed=5,
            running={"0": self.running_count},
        )

    def _device(self, index: int, measured_j: float, pending_j: float, t_ns: int) -> DeviceState:
        age_s = self.device_age_s if index == self.devices - 1 else self.power_age_s
        return DeviceState(
            device=Device(
                f"GPU-{index}",
                "Test card",
                Quality.SIMULATED,
                index=str(index),
                power_limit_w=400.0,
            ),
            measured_j=measured_j,
            pending_j=pending_j,
            power_w=336.5 / self.devices,
            refresh_s=0.1,
            latency_s=0.001,
            coefficients={"static_w": 115.0, "F": 2.0},
            coefficient_sd={"static_w": 1.0, "F": None},
            intervals=100,
            resets=0,
            last_reading_ns=t_ns - round(age_s * NS),
        )

    def _request(self, i: int, now_ns: int) -> Running:
        seconds = (now_ns - self._start_ns) / NS
        return Running(
            id=f"chatcmpl-{i}",
            engine="0",
            model="m",
            tenant=f"tenant-{i % 5}",
            opened_ns=now_ns - (i + 1) * NS // 10,
            progress=_STAGES[i % len(_STAGES)],
            prompt_tokens=100 + i,
            output_tokens=int(seconds),
            prefill_j=5.0,
            decode_j=0.1 * i + seconds,
            recompute_j=0.0,
        )

    def _receipt(self, i: int) -> Receipt:
        now_ns = time.monotonic_ns()
        return Receipt(
            id=f"done-{i}",
            engine="0",
            model="m",
            tenant="acme",
            opened_ns=now_ns - 5 * NS,
            closed_ns=now_ns - NS,
            reason="stop",
            prompt_tokens=100,
            cached_tokens=40,
            completion_tokens=50,
            prefill_j=4.0,
            decode_j=16.0,
            recompute_j=0.0,
            uncertainty_j=0.4,
            fidelity=Fidelity.STEP,
            quality=Quality.SIMULATED,
            final=True,
            requests=(f"done-{i}",),
            missed="meter_down" if i == 1 else None,
        )
