"""The host's CPU: by its own counter, or estimated."""

from __future__ import annotations

from meter.doctor.finding import Finding, Level
from meter.doctor.machine import Machine
from meter.model import Quality
from meter.power.errors import NoPermissionError, PowerError
from meter.power.rapl import RaplSource


def cpu(machine: Machine) -> Finding:
    """One finding; there is always a CPU, and at least an estimate of its energy."""
    source = RaplSource(machine.power.powercap)
    try:
        source.open()
    except NoPermissionError:
        step = f"as root: chmod a+r {machine.power.powercap}/intel-rapl:*/energy_uj (until reboot)"
        return _estimated(machine, "its counter (RAPL) is open to root alone", step)
    except PowerError:
        told = machine.power.model_fields_set & {"cpu_idle_w", "cpu_max_w"}
        say = None if told else "set power.cpu_idle_w and power.cpu_max_w to what this CPU draws"
        return _estimated(machine, "no counter (RAPL), as in many virtual machines", say)
    packages, memories = source.domains()
    text = f"{packages} package{'s' * (packages > 1)}{' and DRAM' * (memories > 0)} by RAPL"
    return Finding("cpu", Level.GOOD, text, None, Quality.MEASURED)


def _estimated(machine: Machine, why: str, step: str | None) -> Finding:
    low, high = machine.power.cpu_idle_w, machine.power.cpu_max_w
    text = f"{why}; from its load, {low:g} to {high:g} W"
    return Finding("cpu", Level.LESS, text, step, Quality.ESTIMATED)
