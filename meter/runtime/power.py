"""Chooses the power source and starts the sampler; what could not be had is said once, loudly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog

from meter.config import PowerSettings
from meter.demo.card_source import CARD_VARIABLE, CardSource
from meter.model import Device, Event, Quality
from meter.power.claim import CpuClaim
from meter.power.errors import PowerError
from meter.power.nvml import NvmlSource
from meter.power.owner import DIRECTORY, Ownership
from meter.power.sampler import PowerSource, Sampler
from meter.runtime.host import HostCpu

Push = Callable[[Event], None]


class Power(NamedTuple):
    """A running sampler, and what is claimed of the host's CPU; ``beside``: it is not itself the
    device that is metered."""

    sampler: Sampler
    host: CpuClaim
    beside: bool


def start_power(
    settings: PowerSettings, names: Sequence[str], push: Push, server: int | None = None
) -> Power:
    """A running sampler on the best source that works, of those the settings allow.

    The host's CPU is read in any case: as the device of an engine without a GPU, else beside the
    GPUs. ``names``: the GPUs to meter (empty: all); ``server``: the pid of a server that the meter
    has not started, whose CPU time it is to claim. Raises the last ``PowerError`` where none
    works.
    """
    log = structlog.get_logger("joulemeter.power")
    failure: PowerError | None = None
    for label, source in _candidates(settings, names):
        host = HostCpu(settings, server)
        sampler = Sampler(
            [source or host.claim],
            push,
            rate_hz=settings.rate_hz,
            ownership=partial(ownership, settings.lock_directory),
            beside=host.claim if source is not None else None,
        )
        if source is not None:
            host.gpu_share = partial(_gpu_share, sampler, source)
        try:
            sampler.start()
        except PowerError as error:
            failure = error
            log.warning("no_energy_from", source=label, reason=str(error))
            continue
        if failure is not None:
            log.warning("energy_from", source=label, note="a second choice: see above")
        return Power(sampler, host.claim, source is not None)
    raise failure or PowerError("no power source is configured")


def _gpu_share(sampler: Sampler, source: PowerSource) -> float:
    """Of the host's GPUs those that are metered here."""
    on_host = source.on_host if isinstance(source, NvmlSource) else 1
    return len(sampler.devices) / max(1, on_host)


def ownership(directory: Path | None, device: Device) -> Ownership | None:
    """The lock of a GPU; a host's CPU is many meters' to read.

    A simulated card is another one for every file that it lives in: its lock lies beside that.
    """
    if device.boundary != "gpu":
        return None
    card = os.environ.get(CARD_VARIABLE)
    if device.quality is Quality.SIMULATED and card:
        file = Path(card).resolve()
        return Ownership(device.id, directory or file.parent, f"-{file.name}")
    return Ownership(device.id, directory or DIRECTORY)


def _candidates(
    settings: PowerSettings, names: Sequence[str]
) -> list[tuple[str, PowerSource | None]]:
    """From the best to the last resort; ``None`` stands for the host's CPU."""
    library = str(settings.nvml_library) if settings.nvml_library else None
    nvml: list[tuple[str, PowerSource | None]] = [("nvml", NvmlSource(library, names))]
    if names and not settings.devices:
        # CUDA_VISIBLE_DEVICES may name what NVML does not know: rather all than none.
        nvml.append(("nvml (all devices)", NvmlSource(library)))
    cpu: list[tuple[str, PowerSource | None]] = [("cpu", None)]
    card = os.environ.get(CARD_VARIABLE)
    simulated: list[tuple[str, PowerSource | None]] = [
        ("simulated", CardSource(Path(card) if card else None))
    ]
    return {"nvml": nvml, "cpu": cpu, "auto": nvml + cpu, "simulated": simulated}[settings.source]
