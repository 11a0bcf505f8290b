"""Superchips (GH200, GB200 and the like): whose energy the counter shows, by what can be measured.

There a GPU shares a module with a CPU and memory, and the driver may tell power of the module
(scope 1 of a power field, Grace Hopper and newer), of the GPU, or of one of them alone. What the
energy counter counts is written nowhere: it is compared with both over half a minute, and the
device's note says what came of it. Until then, and where the two do not differ, it says so.
"""

from __future__ import annotations

import re

import pynvml

from meter.power.integral import BRIDGE_NS, PowerIntegral

#: The field of a module's power, as ``nvmlDeviceGetFieldValues`` takes it.
MODULE_POWER = (pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_POWER_SCOPE_MODULE)
_SUPERCHIP = re.compile(r"\bG[HB]\d{3}\b|\bGrace\b", re.IGNORECASE)
_WINDOW_NS = 30_000_000_000
#: As near as a counter and its power agree on real boards; and what must lie between two answers.
_NEAR = 0.10
_APART = 1.25

UNKNOWN = "a superchip: its counter may be the GPU's or the whole module's"
OF_GPU = "a superchip: its counter is the GPU's alone, by its power"
OF_MODULE = "the whole module of a superchip (GPU, CPU and memory), by its power"
NEITHER = "a superchip: its counter agrees neither with the GPU's power nor with its module's"
POWER_UNKNOWN = "a superchip: the power may be the GPU's or the whole module's"


def is_superchip(name: str) -> bool:
    """By the board's name, where the driver tells no power of a module."""
    return _SUPERCHIP.search(name) is not None


class ModuleCheck:
    """Compares a counter with the power of the GPU and of its module. ``note``: the answer so far;
    ``is_over``: it will not change any more."""

    def __init__(self) -> None:
        self.note = UNKNOWN
        self.is_over = False
        self._start: tuple[int, int] | None = None
        self._last_ns = 0
        self._gpu: PowerIntegral | None = None
        self._module = PowerIntegral()

    def see(self, t_ns: int, energy_uj: int, gpu_w: float | None, module_w: float | None) -> None:
        """One poll; a gap, or one without the module's power, begins the window anew."""
        fell = self._start is not None and energy_uj < self._start[1]
        if module_w is None or self._start is None or t_ns - self._last_ns > BRIDGE_NS or fell:
            self._begin(t_ns, energy_uj, gpu_w, module_w)
            return
        self._last_ns = t_ns
        module_uj = self._module.add(t_ns, module_w)
        gpu_uj = self._gpu.add(t_ns, gpu_w) if self._gpu and gpu_w is not None else None
        start_ns, start_uj = self._start
        if t_ns - start_ns >= _WINDOW_NS:
            self._judge(energy_uj - start_uj, gpu_uj, module_uj)
            self._begin(t_ns, energy_uj, gpu_w, module_w)

    def _begin(
        self, t_ns: int, energy_uj: int, gpu_w: float | None, module_w: float | None
    ) -> None:
        self._start = (t_ns, energy_uj) if module_w is not None else None
        self._last_ns = t_ns
        self._module = PowerIntegral()
        self._gpu = PowerIntegral() if gpu_w is not None else None
        if module_w is not None:
            self._module.add(t_ns, module_w)
        if self._gpu is not None and gpu_w is not None:
            self._gpu.add(t_ns, gpu_w)

    def _judge(self, moved_uj: int, gpu_uj: int | None, module_uj: int) -> None:
        if moved_uj <= 0 or module_uj <= 0:
            return
        of_module = abs(moved_uj / module_uj - 1) <= _NEAR
        if gpu_uj is None:
            # Nothing is told of the GPU alone: less than the module's can only be the GPU's.
            self.note = OF_MODULE if of_module else NEITHER
            if moved_uj * _APART < module_uj:
                self.note = OF_GPU
        elif gpu_uj * _APART > module_uj:
            return  # both are the same now: another window may tell
        else:
            of_gpu = gpu_uj > 0 and abs(moved_uj / gpu_uj - 1) <= _NEAR
            self.note = OF_GPU if of_gpu else OF_MODULE if of_module else NEITHER
        self.is_over = True
