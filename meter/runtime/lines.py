"""The two lines that ``run`` prints: where to look, and how the joules add up."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from meter.export.state import State
from meter.model import Account, Device, worst

if TYPE_CHECKING:
    from meter.runtime.meter import Meter

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"))


def say(line: str) -> None:
    """One line for a person, on stderr: stdout is the engine's."""
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        print(line, file=sys.stderr, flush=True)


def joules(energy_j: float) -> str:
    """Four digits and a unit: ``12.34 kJ``."""
    for factor, prefix in _PREFIXES:
        if abs(energy_j) >= factor:
            return f"{energy_j / factor:.4g} {prefix}J"
    return "0 J" if energy_j == 0 else f"{energy_j:.2g} J"


def first_line(meter: Meter) -> str:
    """What is metered, at which quality, and the address."""
    quality = worst([device.quality for device in meter.devices])
    names = ", ".join(dict.fromkeys(_name(device) for device in meter.devices))
    # A simulated card says so in its name.
    how = f" ({quality})" if quality and quality not in names else ""
    metering = f"metering {names}{how}" if names else "no energy is read"
    return f"joulemeter: {metering}; {meter.port.url if meter.port else 'no HTTP port'}"


def _name(device: Device) -> str:
    """A GPU that is not metered as a whole card with a counter is shown for what it is."""
    note = device.note if device.boundary == "gpu" else None
    return f"{device.name} ({note})" if note else device.name


def last_line(state: State | None) -> str:
    """Measured = where it went; a sceptic can add it up."""
    if state is None or not state.snapshot.devices:
        return "joulemeter: nothing was measured"
    snapshot = state.snapshot
    parts = [
        (name, value)
        for name, value in (
            ("attributed", snapshot.attributed_j),
            ("idle", snapshot.total_j(Account.IDLE)),
            ("startup", snapshot.total_j(Account.STARTUP)),
            ("unattributed", snapshot.total_j(Account.UNATTRIBUTED)),
            ("pending", snapshot.pending_j),
        )
        if value or name in ("attributed", "idle", "unattributed")
    ]
    quality = worst([device.device.quality for device in snapshot.devices])
    sum_ = " + ".join(f"{joules(value)} {name}" for name, value in parts)
    requests = sum(snapshot.requests.values())
    return f"joulemeter: {joules(snapshot.measured_j)} {quality} = {sum_}; {requests} requests"
