"""What the card and its counter are like before any server: the first stage of the evidence.

What one NVML call costs, the counter's tick by polling as fast as it goes, idle power bare and with
a context, and whether the counter integrates at full duty: a square load as long as the tick, half
on and half off, is begun at each part of the tick in turn. A counter that looks at a part of each
tick shows other joules for each; one that integrates shows the same for all.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol

import pynvml

from meter.demo.card import Card
from meter.demo.card_source import CARD_VARIABLE
from meter.power.visible import BY_BUS, CUDA_VARIABLE, ORDER_VARIABLE, visible_devices

_CALLS = 1000
_TICKS = 40
_IDLE_S = 4.0
_PHASES = 8
_PERIODS = 20
_FIELDS = [pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, pynvml.NVML_FI_DEV_POWER_INSTANT]


class Square(Protocol):
    """A load that can be switched: ``begin`` makes a context, ``on`` draws power until a time."""

    def begin(self) -> None: ...
    def on(self, until_ns: int) -> None: ...


class Matmuls:
    """Products of large matrices on the GPU, by torch; each lasts about 2 ms on an H100."""

    def begin(self) -> None:
        import torch

        self._torch = torch
        self._matrix = torch.randn((8192, 8192), dtype=torch.bfloat16, device="cuda")
        self.on(time.monotonic_ns() + 500_000_000)

    def on(self, until_ns: int) -> None:
        while time.monotonic_ns() < until_ns:
            self._matrix @ self._matrix
            self._torch.cuda.synchronize()


class Posted:
    """The simulated card's: it is told when it draws 400 W."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def begin(self) -> None:
        self._card.post(0, 115.0)

    def on(self, until_ns: int) -> None:
        self._card.post(0, 400.0)
        self._card.post(0, 115.0, until_ns)
        time.sleep(max(0.0, (until_ns - time.monotonic_ns()) / 1e9))


def square_here() -> Square | None:
    """What makes the square load on this machine."""
    if CARD_VARIABLE in os.environ:
        return Posted(Card.attach(os.environ[CARD_VARIABLE]))
    with contextlib.suppress(Exception):
        import torch

        if torch.cuda.is_available():
            return Matmuls()
    return None


_ASK_CUDA = """
import json, torch
one = torch.cuda.get_device_properties(0)
place = [getattr(one, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
print(json.dumps({"uuid": str(getattr(one, "uuid", "")), "place": place}))
"""


def cudas_first() -> dict[str, Any] | None:
    """What CUDA says of its device 0, on which the load runs; ``None`` where it cannot be asked.

    In a process of its own, which has ended before anything is measured: idle is to be bare.
    """
    words = [sys.executable, "-c", _ASK_CUDA]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def gpu_of(cuda: dict[str, Any] | None, environ: Mapping[str, str]) -> tuple[Any, str]:
    """NVML's handle of CUDA's device 0, and by what it was found.

    CUDA's order need not be NVML's, and ``CUDA_VISIBLE_DEVICES`` may leave GPUs out: by the UUID,
    else the place on the PCI bus, else the variable; only where there is no choice by its number.
    """
    uuid, place = (cuda or {}).get("uuid") or "", (cuda or {}).get("place") or []
    if uuid:
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(name), "CUDA's UUID"
    if len(place) == 3 and all(isinstance(part, int) for part in place):
        bus = "{:08X}:{:02X}:{:02X}.0".format(*place)
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByPciBusId(bus), "CUDA's PCI address"
    count = pynvml.nvmlDeviceGetCount()
    names = visible_devices(environ.get(CUDA_VARIABLE))
    first = names[0] if names else None
    by_bus = environ.get(ORDER_VARIABLE) == BY_BUS
    for index in range(count):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        known = str(pynvml.nvmlDeviceGetUUID(handle))
        if first is not None and len(first) > 4 and known.startswith(first):
            return handle, CUDA_VARIABLE
        if by_bus and first == str(index):
            return handle, f"{CUDA_VARIABLE}, {BY_BUS}"
    if count == 1 or CARD_VARIABLE in environ:
        return pynvml.nvmlDeviceGetHandleByIndex(0), "the first of NVML's"
    raise SystemExit(
        f"there are {count} GPUs, and which of them is CUDA's first cannot be told: set "
        f"{CUDA_VARIABLE} to the UUID of one (`nvidia-smi -L`)"
    )


def look() -> dict[str, Any]:
    """All of it, on CUDA's first GPU; what cannot be had is ``None``. Idle is bare: CUDA is touched
    later."""
    pynvml.nvmlInit()
    try:
        simulated = CARD_VARIABLE in os.environ
        handle, by = gpu_of(None if simulated else cudas_first(), os.environ)
        ticks_ns = _ticks(handle)
        period_ns = _period_ns(ticks_ns)
        found: dict[str, Any] = {
            "gpu": {"uuid": str(pynvml.nvmlDeviceGetUUID(handle)), "found_by": by},
            "call_us": _calls(lambda: pynvml.nvmlDeviceGetFieldValues(handle, _FIELDS)),
            "energy_call_us": _calls(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
            "tick_s": period_ns / 1e9,
            "bare_idle_w": _mean_w(handle, _IDLE_S),
            "context_idle_w": None,
            "square": None,
        }
        square = square_here()
        if square is not None:
            try:
                square.begin()
                time.sleep(1.0)
                idle_w = found["context_idle_w"] = _mean_w(handle, _IDLE_S)
                found["square"] = _sweep(handle, square, ticks_ns[-1], period_ns, idle_w)
            except Exception:  # what was found before is worth more
                traceback.print_exc()
        return found
    finally:
        pynvml.nvmlShutdown()


def _calls(call: Callable[[], object]) -> dict[str, float]:
    """Microseconds of one call."""
    took = []
    for _ in range(_CALLS):
        begun_ns = time.monotonic_ns()
        call()
        took.append((time.monotonic_ns() - begun_ns) / 1e3)
        time.sleep(0.0005)
    took.sort()
    return {"median": took[_CALLS // 2], "p99": took[_CALLS * 99 // 100], "most": took[-1]}


def _ticks(handle: Any) -> list[int]:
    """When the counter moved."""
    found: list[int] = []
    last = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    until_ns = time.monotonic_ns() + 20_000_000_000
    while len(found) < _TICKS and time.monotonic_ns() < until_ns:
        time.sleep(0.0005)
        now = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        if now != last:
            found.append(time.monotonic_ns())
            last = now
    if len(found) < 3:
        raise SystemExit("the energy counter does not move: `joulemeter doctor` says why")
    return found


def _period_ns(ticks_ns: list[int]) -> float:
    """The tick, from all of them: single ones are seen up to a poll late."""
    usual = statistics.median(b - a for a, b in pairwise(ticks_ns))
    whole = round((ticks_ns[-1] - ticks_ns[0]) / usual)
    return (ticks_ns[-1] - ticks_ns[0]) / whole


def _mean_w(handle: Any, seconds: float) -> float:
    """By the counter, from tick to tick."""
    start_ns, start_mj = _next(handle)
    time.sleep(seconds)
    end_ns, end_mj = _next(handle)
    return (end_mj - start_mj) / ((end_ns - start_ns) / 1e6)


def _next(handle: Any) -> tuple[int, int]:
    """The counter's next move: when, and to how many millijoules."""
    last = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    until_ns = time.monotonic_ns() + 10_000_000_000
    while time.monotonic_ns() < until_ns:
        time.sleep(0.0002)
        now = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        if now != last:
            return time.monotonic_ns(), now
    raise RuntimeError("the energy counter has stopped: `joulemeter doctor` says why")


def _sweep(
    handle: Any, square: Square, tick_ns: int, period_ns: float, idle_w: float
) -> dict[str, Any]:
    """Joules beyond idle of a period of the square load, by the part of the tick at which it is
    switched on: from tick to tick, with idle at both ends."""
    rows = []
    for number in range(_PHASES):
        phase = number / _PHASES
        begun_ns, before_mj = _next(handle)
        first = (begun_ns - tick_ns) // period_ns + 3 + phase
        for period in range(_PERIODS):
            start_ns = round(tick_ns + (first + period) * period_ns)
            time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
            square.on(round(start_ns + period_ns / 2))
        time.sleep(3 * period_ns / 1e9)
        ended_ns, after_mj = _next(handle)
        idle_j = idle_w * (ended_ns - begun_ns) / 1e9
        rows.append((phase, ((after_mj - before_mj) / 1e3 - idle_j) / _PERIODS))
    joules = [j for _, j in rows]
    return {
        "by_phase_j": rows,
        "swing": (max(joules) - min(joules)) / statistics.mean(joules),
        "periods": _PERIODS,
    }


if __name__ == "__main__":
    print(json.dumps(look()))
