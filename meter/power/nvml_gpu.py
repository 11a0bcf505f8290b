"""One GPU: how its energy is had, and one reading of it.

The best way that the board has: its total-energy counter (field 83), else the integral of its power
(the instant field 186, else the one-second mean 185, else ``nvmlDeviceGetPowerUsage``, which is the
only one on old drivers). What is integrated is ``estimated``, and says so in the device's note.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pynvml

from meter.model import Device, Reading
from meter.power.errors import nvml_error
from meter.power.integral import PowerIntegral

_ENERGY = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
_INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT
_AVERAGE = pynvml.NVML_FI_DEV_POWER_AVERAGE
#: The board has no counter (before Volta), or its driver no such field or call.
_NO_COUNTER = frozenset((3, 13))


class Way(NamedTuple):
    """How joules are had; ``power`` is the field that is integrated, ``None``: there is a counter.

    ``field`` 0 stands for ``nvmlDeviceGetPowerUsage``.
    """

    label: str
    power: int | None = None


COUNTER = Way("counter")
INSTANT = Way("integrated power (instant)", _INSTANT)
AVERAGE = Way("integrated power (1 s mean)", _AVERAGE)
USAGE = Way("integrated power (power usage)", 0)


@dataclass(slots=True)
class Gpu:
    """A GPU being read. ``code`` is NVML's for the last reading (0: it worked)."""

    device: Device
    handle: Any | None
    way: Way = COUNTER
    code: int = 0
    _integral: PowerIntegral = field(default_factory=PowerIntegral)

    def read(self) -> Reading:
        """One poll; where it fails it has no energy and says why.

        Energy as by ``nvidia-smi --query-gpu=total_energy_consumption``, power as by
        ``power.draw.instant`` (``power.draw.average``, ``power.draw``).
        """
        begun_ns = time.monotonic_ns()
        energy_uj: int | None = None
        power_w: float | None = None
        error: str | None = None
        self.code = 0
        try:
            if self.handle is None:  # NVML was started anew
                self.handle = pynvml.nvmlDeviceGetHandleByUUID(self.device.id)
            if self.way is COUNTER:
                energy_uj, power_w = self._count()
            else:
                power_w = power_now_w(self.handle, self.way)
        except _FieldError as failure:
            self.code, error, power_w = failure.code, str(failure), failure.power_w
        except pynvml.NVMLError as failure:
            self.code, error = failure.value, str(nvml_error("NVML's field values", failure))
        done_ns = time.monotonic_ns()
        t_ns = (begun_ns + done_ns) // 2
        if self.way is not COUNTER and power_w is not None:
            energy_uj = self._integral.add(t_ns, power_w)
        latency_s = (done_ns - begun_ns) / 1e9
        return Reading(self.device.id, t_ns, energy_uj, power_w, latency_s, error=error)

    def _count(self) -> tuple[int, float | None]:
        """Counter (µJ) and instant power (W), in one call."""
        energy, power = pynvml.nvmlDeviceGetFieldValues(self.handle, [_ENERGY, _INSTANT])
        has_power = power.nvmlReturn == pynvml.NVML_SUCCESS
        power_w = power.value.uiVal / 1000 if has_power else None
        if energy.nvmlReturn != pynvml.NVML_SUCCESS:
            raise _FieldError("total-energy", energy.nvmlReturn, power_w)
        return int(energy.value.ullVal) * 1000, power_w


class _FieldError(Exception):
    """The call worked, and one field in it did not."""

    def __init__(self, name: str, code: int, power_w: float | None = None) -> None:
        super().__init__(str(nvml_error(f"NVML's {name} field", pynvml.NVMLError(code))))
        self.code = code
        self.power_w = power_w


def power_now_w(handle: Any, way: Way) -> float:
    """The power by which this way integrates. Raises ``pynvml.NVMLError`` or ``_FieldError``."""
    if not way.power:
        return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000
    (power,) = pynvml.nvmlDeviceGetFieldValues(handle, [way.power])
    if power.nvmlReturn != pynvml.NVML_SUCCESS:
        raise _FieldError("power", power.nvmlReturn)
    return float(power.value.uiVal) / 1000


def _counter_code(handle: Any) -> int:
    try:
        (energy,) = pynvml.nvmlDeviceGetFieldValues(handle, [_ENERGY])
    except pynvml.NVMLError as error:
        return int(error.value)
    return int(energy.nvmlReturn)


def best_way(handle: Any) -> Way:
    """The counter where there is one, else the best power that there is.

    Raises ``pynvml.NVMLError``: ``NOT_SUPPORTED`` where there is none, else what failed.
    """
    code = _counter_code(handle)
    if code == pynvml.NVML_SUCCESS:
        return COUNTER
    if code not in _NO_COUNTER:
        raise pynvml.NVMLError(code)
    for way in (INSTANT, AVERAGE, USAGE):
        try:
            power_now_w(handle, way)
        except (pynvml.NVMLError, _FieldError):
            continue
        return way
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
