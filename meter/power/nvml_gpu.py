"""One GPU: how its energy is had, and one reading of it.

The best way that the board has: its total-energy counter (field 83), else the integral of its power
(the instant field 186, else the one-second mean 185, else ``nvmlDeviceGetPowerUsage``, which is the
only one on old drivers). What is integrated is ``estimated``, and says so in the device's note.

Where there is a counter that cannot be read yet ("not ready", a time-out), the power is integrated
meanwhile, and the counter is asked for again after 1, 2, 4 … at most 60 s. Once it answers, energy
goes on from what was integrated, by the counter: nothing is lost or counted twice. The board stays
``estimated`` for a minute more, for what was integrated may still be some request's.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pynvml

from meter.model import Device, Quality, Reading, worst
from meter.power.errors import nvml_error
from meter.power.integral import PowerIntegral
from meter.power.nvml_module import (
    MODULE_POWER,
    POWER_UNKNOWN,
    UNKNOWN,
    ModuleCheck,
    is_superchip,
)

_ENERGY = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
_INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT
_AVERAGE = pynvml.NVML_FI_DEV_POWER_AVERAGE
#: The board has no counter (before Volta), or its driver no such field or call.
NO_COUNTER = frozenset((3, 13))
_AGAIN_NS, _AGAIN_NS_MAX = 1_000_000_000, 60_000_000_000
_TRUSTED_NS = 60_000_000_000
_JUST_NOW = "its counter, which could not be read at first: its power was integrated till then"
#: Nonsense beyond: what no board draws, and what none has drawn in its life (3 GWh).
_POWER_W_MAX = 20_000.0
_ENERGY_MJ_MAX = 10**16


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
    _counted: Device | None = None
    _again_ns: int = 0
    _pause_ns: int = 0
    _before_uj: int = 0
    _module: ModuleCheck | None = None
    _module_w: float | None = None

    def is_on_module(self) -> None:
        """It shares a superchip's module: whose its figures are is not known yet."""
        said = UNKNOWN if self.way is COUNTER else POWER_UNKNOWN
        self.device = _noted(self.device, said)
        if self._counted is not None:
            self._counted = _noted(self._counted, UNKNOWN)
        if self.way is COUNTER and self.handle is not None and _module_w(self.handle) is not None:
            self._module = ModuleCheck()

    @property
    def waits(self) -> bool:
        """Is there a counter that cannot be read yet?"""
        return self._counted is not None and self.way is not COUNTER

    def go_by(self, way: Way, code: int) -> None:
        """How its energy is had; ``code``: why the counter is not read, where there is one."""
        self.way = way
        if way is COUNTER:
            return
        # Its power is measured; its energy is what is made of that.
        estimated = worst([self.device.quality, Quality.ESTIMATED])
        assert estimated is not None
        label = way.label
        if code not in NO_COUNTER:
            self._counted = self.device
            self._pause_ns = _AGAIN_NS
            self._again_ns = time.monotonic_ns() + self._pause_ns
            label = f"{label}, until its counter can be read"
        note = "; ".join(filter(None, (label, self.device.note)))
        self.device = replace(self.device, quality=estimated, note=note)

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
        if self._counted is not None and begun_ns >= self._again_ns:
            self._ask_again(begun_ns)
        try:
            if self.handle is None:  # NVML was started anew
                self.handle = handle_of(self.device.id)
            if self.way is COUNTER:
                energy_uj, power_w = self._count()
                energy_uj += self._before_uj
            else:
                power_w = power_now_w(self.handle, self.way)
        except _FieldError as failure:
            self.code, error, power_w = failure.code, str(failure), failure.power_w
        except pynvml.NVMLError as failure:
            self.code, error = failure.value, str(nvml_error("NVML's field values", failure))
        except Exception as failure:  # whatever else the binding makes of an answer
            error = f"NVML's field values cannot be read: {failure!r:.200}"
        done_ns = time.monotonic_ns()
        t_ns = (begun_ns + done_ns) // 2
        if self.way is not COUNTER and power_w is not None:
            energy_uj = self._integral.add(t_ns, power_w)
        if self._module is not None and energy_uj is not None:
            self._ask_whose(self._module, t_ns, energy_uj, power_w)
        latency_s = (done_ns - begun_ns) / 1e9
        return Reading(self.device.id, t_ns, energy_uj, power_w, latency_s, error=error)

    def _ask_whose(
        self, check: ModuleCheck, t_ns: int, energy_uj: int, power_w: float | None
    ) -> None:
        """Compare the counter with the module's power, until it is clear whose it is."""
        before = check.note
        check.see(t_ns, energy_uj, power_w, self._module_w)
        if check.note != before:
            self.device = _noted(self.device, check.note, instead_of=before)
        if check.is_over:
            self._module = None

    def _ask_again(self, now_ns: int) -> None:
        """For a counter that could not be read so far; later, for its full trust."""
        assert self._counted is not None
        if self.way is COUNTER:
            self.device, self._counted = self._counted, None
            return
        self._pause_ns = min(2 * self._pause_ns, _AGAIN_NS_MAX)
        self._again_ns = now_ns + self._pause_ns
        try:
            counted_uj, power_w = self._count()
        except Exception:  # it will be asked for again
            return
        if power_w is None:
            return
        self._before_uj = self._integral.add(time.monotonic_ns(), power_w) - counted_uj
        self.way = COUNTER
        self._again_ns = now_ns + _TRUSTED_NS
        note = "; ".join(filter(None, (_JUST_NOW, self._counted.note)))
        self.device = replace(self.device, note=note)

    def _count(self) -> tuple[int, float | None]:
        """Counter (µJ) and instant power (W), in one call."""
        asked = [_ENERGY, _INSTANT, *([MODULE_POWER] if self._module is not None else [])]
        energy, power, *module = pynvml.nvmlDeviceGetFieldValues(self.handle, asked)
        shown = [field for field in module if field.nvmlReturn == pynvml.NVML_SUCCESS]
        self._module_w = plausible_w(shown[0]) if shown else None
        has_power = power.nvmlReturn == pynvml.NVML_SUCCESS
        power_w = plausible_w(power) if has_power else None
        if energy.nvmlReturn != pynvml.NVML_SUCCESS:
            raise _FieldError("total-energy", energy.nvmlReturn, power_w)
        counted_mj = _number(energy, "ullVal")
        if not 0 <= counted_mj <= _ENERGY_MJ_MAX:
            raise _OddError(f"NVML's total-energy field shows {counted_mj:.3g} mJ", power_w)
        return int(counted_mj) * 1000, power_w


class _FieldError(Exception):
    """The call worked, and one field in it did not."""

    def __init__(self, name: str, code: int, power_w: float | None = None) -> None:
        super().__init__(str(nvml_error(f"NVML's {name} field", pynvml.NVMLError(code))))
        self.code = code
        self.power_w = power_w


class _OddError(_FieldError):
    """The field worked, and shows what no board can."""

    def __init__(self, said: str, power_w: float | None = None) -> None:
        Exception.__init__(self, f"{said}, which no board can")
        self.code = 0
        self.power_w = power_w


def _number(field: Any, whole: str = "uiVal") -> int | float:
    """A field's value: ``whole`` is the integer that is expected there. Raises ``_OddError``.

    The driver gives a type with it. A double so small is an integer whose type was not given.
    """
    value = field.value.dVal
    if field.valueType != pynvml.NVML_VALUE_TYPE_DOUBLE or abs(value) < sys.float_info.min:
        value = getattr(field.value, whole)
    if not math.isfinite(value):
        raise _OddError(f"NVML's field {field.fieldId} shows {value}")
    return float(value) if isinstance(value, float) else int(value)


def plausible_w(field: Any) -> float | None:
    """The power that a field shows; ``None`` where no board draws so much."""
    try:
        power_w = float(_number(field)) / 1000
    except _OddError:
        return None
    return power_w if 0 <= power_w <= _POWER_W_MAX else None


def _module_w(handle: Any) -> float | None:
    """The power of the module that a superchip's GPU is on; ``None`` where none is told.
    ``nvidia-smi --query-gpu=module.power.draw.instant``."""
    try:
        (power,) = pynvml.nvmlDeviceGetFieldValues(handle, [MODULE_POWER])
    except Exception:
        return None
    if power.nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return plausible_w(power) or None


def _noted(device: Device, said: str, instead_of: str | None = None) -> Device:
    """The device with that in its note, after what else is there."""
    parts = [part for part in (device.note or "").split("; ") if part not in ("", instead_of)]
    return replace(device, note="; ".join((*parts, said)))


def is_on_module(gpu: Gpu) -> bool:
    """Is this a superchip's GPU, by its name or by the power of a module that it tells?"""
    return is_superchip(gpu.device.name) or _module_w(gpu.handle) is not None


def handle_of(id: str) -> Any:
    """The board of this id, by its UUID or, where it was named so, its place on the bus."""
    if id.startswith("PCI-"):
        return pynvml.nvmlDeviceGetHandleByPciBusId(id.removeprefix("PCI-"))
    return pynvml.nvmlDeviceGetHandleByUUID(id)


def power_now_w(handle: Any, way: Way) -> float:
    """The power by which this way integrates. Raises ``pynvml.NVMLError`` or ``_FieldError``."""
    if not way.power:
        power_w = float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000
        shown_w = power_w if power_w <= _POWER_W_MAX else None
    else:
        (power,) = pynvml.nvmlDeviceGetFieldValues(handle, [way.power])
        if power.nvmlReturn != pynvml.NVML_SUCCESS:
            raise _FieldError("power", power.nvmlReturn)
        shown_w = plausible_w(power)
    if shown_w is None:
        raise _OddError("NVML's power is more than 20 kW")
    return shown_w


def _counter_code(handle: Any) -> int:
    try:
        (energy,) = pynvml.nvmlDeviceGetFieldValues(handle, [_ENERGY])
    except pynvml.NVMLError as error:
        return int(error.value)
    return int(energy.nvmlReturn)


def best_way(handle: Any) -> tuple[Way, int]:
    """The counter where it can be read, else the best power that there is; and NVML's code for the
    counter: one of ``NO_COUNTER`` where there is none, another where it may come.

    Raises ``pynvml.NVMLError``: ``NOT_SUPPORTED`` where there is none, else what failed.
    """
    code = _counter_code(handle)
    if code == pynvml.NVML_SUCCESS:
        return COUNTER, code
    codes = [code]
    for way in (INSTANT, AVERAGE, USAGE):
        try:
            power_now_w(handle, way)
        except _FieldError as error:
            codes.append(error.code)
        except pynvml.NVMLError as error:
            codes.append(int(error.value))
        else:
            return way, code
    # What it has and does not show now counts for more than what it has not.
    passing = [failed for failed in codes if failed and failed not in NO_COUNTER]
    raise pynvml.NVMLError(passing[0] if passing else pynvml.NVML_ERROR_NOT_SUPPORTED)
