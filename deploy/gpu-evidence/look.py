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
import time
import traceback
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import pynvml

from meter.demo.card import Card
from meter.demo.card_source import CARD_VARIABLE

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


def look() -> dict[str, Any]:
    """All of it, on GPU 0; what cannot be had is ``None``. Idle is bare: CUDA is touched later."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        ticks_ns = _ticks(handle)
        period_ns = _period_ns(ticks_ns)
        found: dict[str, Any] = {
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
