"""Integrated power in the place of a counter that is stuck for good.

It goes on from where the counter stood still, with what the power says was drawn since then. What
the counter says later, caught up or not, counts for nothing: nothing is counted twice.
"""

from __future__ import annotations

from dataclasses import replace

from meter.model import Device, Quality, Reading, worst
from meter.power.integral import PowerIntegral

NOTE = "integrated power, for its counter is stuck"


class Instead:
    """``stood_uj``: what the counter says since it stands still; ``drawn_uj``: what was drawn since
    then, up to the reading that comes first."""

    def __init__(self, stood_uj: int, drawn_uj: int) -> None:
        self._begun_uj = stood_uj + drawn_uj
        self._integral = PowerIntegral()

    def reading(self, reading: Reading) -> Reading:
        """With the energy by its power; none where there is no power.

        After more than a second without it the energy falls back, as a counter's that was reset:
        what was drawn meanwhile is not known.
        """
        if reading.power_w is None:
            return replace(reading, energy_uj=None, error=reading.error or "no power to integrate")
        drawn_uj = self._integral.add(reading.t_ns, reading.power_w)
        return replace(reading, energy_uj=self._begun_uj + drawn_uj, error=None)


def estimated(device: Device) -> Device:
    """The device, as it is from then on."""
    quality = worst([device.quality, Quality.ESTIMATED])
    assert quality is not None
    return replace(device, quality=quality, note="; ".join(filter(None, (NOTE, device.note))))
