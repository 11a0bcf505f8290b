"""Chooses the power source and starts the sampler; what could not be had is said once, loudly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog

from meter.config import PowerSettings
from meter.demo.card_source import CARD_VARIABLE, CardSource
from meter.model import Device, Event, Quality
from meter.power.errors import PowerError
from meter.power.estimate import CpuEstimate
from meter.power.nvml import NvmlSource
from meter.power.owner import DIRECTORY, Ownership
from meter.power.rapl import RaplSource
from meter.power.sampler import PowerSource, Sampler

Push = Callable[[Event], None]


def start_power(settings: PowerSettings, names: Sequence[str], push: Push) -> Sampler:
    """A running sampler on the best source that works, of those the settings allow.

    ``names``: the GPUs to meter (empty: all). Raises the last ``PowerError`` where none works.
    """
    log = structlog.get_logger("joulemeter.power")
    failure: PowerError | None = None
    for label, source in _candidates(settings, names):
        sampler = Sampler(
            [source],
            push,
            rate_hz=settings.rate_hz,
            ownership=partial(ownership, settings.lock_directory),
        )
        try:
            sampler.start()
        except PowerError as error:
            failure = error
            log.warning("no_energy_from", source=label, reason=str(error))
            continue
        if failure is not None:
            log.warning("energy_from", source=label, note="a second choice: see above")
        return sampler
    raise failure or PowerError("no power source is configured")


def ownership(directory: Path | None, device: Device) -> Ownership | None:
    """The lock of a GPU; a host's CPU is many meters' to read.

    A simulated card is another one for every file that it lives in.
    """
    if device.boundary != "gpu":
        return None
    scope = ""
    card = os.environ.get(CARD_VARIABLE)
    if device.quality is Quality.SIMULATED and card:
        scope = "-" + hashlib.sha256(str(Path(card).resolve()).encode()).hexdigest()[:12]
    return Ownership(device.id, directory or DIRECTORY, scope)


def _candidates(settings: PowerSettings, names: Sequence[str]) -> list[tuple[str, PowerSource]]:
    """From the best to the last resort."""
    library = str(settings.nvml_library) if settings.nvml_library else None
    nvml: list[tuple[str, PowerSource]] = [("nvml", NvmlSource(library, names))]
    if names and not settings.devices:
        # CUDA_VISIBLE_DEVICES may name what NVML does not know: rather all than none.
        nvml.append(("nvml (all devices)", NvmlSource(library)))
    cpu: list[tuple[str, PowerSource]] = [
        ("rapl", RaplSource()),
        ("cpu estimate", CpuEstimate(settings.cpu_idle_w, settings.cpu_max_w)),
    ]
    card = os.environ.get(CARD_VARIABLE)
    simulated: list[tuple[str, PowerSource]] = [
        ("simulated", CardSource(Path(card) if card else None))
    ]
    return {"nvml": nvml, "cpu": cpu, "auto": nvml + cpu, "simulated": simulated}[settings.source]
