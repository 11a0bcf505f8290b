"""The two lines that ``run`` prints: where to look, and how the joules add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter.export.figures import count, sum_line
from meter.export.state import State
from meter.model import Account, Device, worst
from meter.runtime.logs import say

__all__ = ["first_line", "last_line", "say"]

#: So many that are waited for are named, in so many characters each.
_NAMED, _WORDS = 4, 160

if TYPE_CHECKING:
    from meter.power.sampler import Sampler
    from meter.runtime.meter import Meter


def first_line(meter: Meter) -> str:
    """What is metered, at which quality, and the address."""
    quality = worst([device.quality for device in meter.devices])
    names = ", ".join(dict.fromkeys(_name(device) for device in meter.devices))
    # A simulated card says so in its name.
    how = f" ({quality})" if quality and quality not in names else ""
    metering = f"metering {names}{how}" if names else "no energy is read yet"
    waiting = _waited_for(meter.sampler)
    if waiting:
        metering += f", waiting for {'; '.join(waiting)}"
    elif not names:
        metering = "no energy is read"
    return f"joulemeter: {metering}; {meter.port.url if meter.port else 'no HTTP port'}"


def _waited_for(sampler: Sampler | None) -> list[str]:
    """Which devices are not read and may be yet, and why; a few, and not at length."""
    if sampler is None:
        return []
    said = ["the driver, which has not answered"] if sampler.opening else list(sampler.left_out)
    for lane in sampler.states():
        if not lane.owned and not lane.beside:
            who = f"pid {lane.owner}" if lane.owner else "another meter"
            said.append(f"{lane.device.name} {lane.device.index} ({who} meters it)")
    short = [one if len(one) <= _WORDS else f"{one[: _WORDS - 1]}…" for one in said[:_NAMED]]
    more = len(said) - _NAMED
    return [*short, f"{more} more"] if more > 0 else short


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
