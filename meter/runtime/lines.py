"""The two lines that ``run`` prints: where to look, and how the joules add up."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from meter.export.figures import count, sum_line
from meter.export.state import State
from meter.model import Account, Device, worst

if TYPE_CHECKING:
    from meter.runtime.meter import Meter


def say(line: str) -> None:
    """One line for a person, on stderr: stdout is the engine's."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed
        sys.stderr.write(f"{line}\n")  # at once, or a thread's message comes in between
        sys.stderr.flush()


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
    accounts_j = {
        "attributed": snapshot.attributed_j,
        "idle": snapshot.total_j(Account.IDLE),
        "startup": snapshot.total_j(Account.STARTUP),
        "unattributed": snapshot.total_j(Account.UNATTRIBUTED),
        "pending": snapshot.pending_j,
    }
    quality = snapshot.quality
    requests = sum(snapshot.requests.values())
    return (
        f"joulemeter: {sum_line(snapshot.measured_j, accounts_j, quality)}; "
        f"{count(requests)} request{'s' * (requests != 1)}"
    )
