"""Chooses the power source and starts the sampler; what could not be had is said once, loudly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog

from meter.config import PowerSettings
from meter.demo.card_source import CARD_VARIABLE, CardSource
from meter.model import Device, Event, Quality
from meter.power import hardware
from meter.power.claim import CpuClaim
from meter.power.errors import PowerError
from meter.power.nvml import NvmlSource
from meter.power.owner import Ownership
from meter.power.sampler import PowerSource, Sampler
from meter.power.visible import BY_BUS, CUDA_VARIABLE, ORDER_VARIABLE, order_is_unclear
from meter.runtime.devices import Wanted
from meter.runtime.host import HostCpu

Push = Callable[[Event], None]


class Power(NamedTuple):
    """A running sampler, and what is claimed of the host's CPU; ``beside``: it is not itself the
    device that is metered."""

    sampler: Sampler
    host: CpuClaim
    beside: bool


def start_power(
    settings: PowerSettings,
    wanted: Wanted,
    push: Push,
    server: int | None = None,
    environ: Mapping[str, str] = os.environ,
    root: Path = hardware.ROOT,
) -> Power:
    """A running sampler on the best source that works, of those the settings allow.

    The host's CPU is read in any case: as the device of an engine without a GPU, else beside the
    GPUs. It takes the place of GPUs only where there are none to be used: GPUs that cannot be read
    now are tried again, alone or beside others, and nothing is metered instead. ``server``: the pid
    of a server that the meter has not started, whose CPU time it is to claim; ``environ``: the
    engine's. Raises the last ``PowerError`` where no source works and none ever will.
    """
    log = structlog.get_logger("joulemeter.power")
    failure: PowerError | None = None
    for label, source in _candidates(settings, wanted, environ, root):
        host = HostCpu(settings, server)
        sampler = Sampler(
            [source or host.claim],
            push,
            rate_hz=settings.rate_hz,
            ownership=partial(ownership, settings.lock_directory),
            beside=host.claim if source is not None else None,
            patient=label == GPUS,
        )
        if source is not None:
            host.gpu_share = partial(_gpu_share, sampler, source)
        try:
            sampler.start()
        except PowerError as error:
            failure = _with_remedy(error) if label == GPUS and settings.source == "auto" else error
            log.warning("no_energy_from", source=label, reason=str(failure))
            continue
        if failure is not None:
            log.warning("energy_from", source=label, note="a second choice: see above")
        if isinstance(source, NvmlSource) and wanted.as_cuda:
            _say_order(source, wanted, environ)
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
    return Ownership(device.id, directory)


def _with_remedy(error: PowerError) -> PowerError:
    """Of GPUs that never can be read."""
    said = type(error)(
        f"{error}. The host's CPU is not metered in its place: set power.source to cpu for that"
    )
    said.__cause__ = error.__cause__
    return said


def _say_order(source: NvmlSource, wanted: Wanted, environ: Mapping[str, str]) -> None:
    if order_is_unclear(wanted.names, source.kinds, environ):
        structlog.get_logger("joulemeter.power").warning(
            "cuda_order_unclear",
            cuda_visible_devices=",".join(wanted.names),
            note="CUDA may count these GPUs in another order than NVML: they are taken as NVML's "
            "until the driver lists the engine's processes",
            remedy=f"set {ORDER_VARIABLE}={BY_BUS}, or name GPUs by their UUIDs",
        )


#: GPUs that are expected: where they cannot be read they are waited for.
GPUS = "nvml"


def _candidates(
    settings: PowerSettings, wanted: Wanted, environ: Mapping[str, str], root: Path
) -> list[tuple[str, PowerSource | None]]:
    """From the best to the last resort; ``None`` stands for the host's CPU."""
    log = structlog.get_logger("joulemeter.power")
    cpu: list[tuple[str, PowerSource | None]] = [("cpu", None)]
    if settings.source == "simulated":
        card = os.environ.get(CARD_VARIABLE)
        return [("simulated", CardSource(Path(card) if card else None))]
    if settings.source == "cpu":
        return cpu
    if wanted.none:
        log.warning(
            "no_gpu_visible", note=f"{CUDA_VARIABLE} names no GPU: the host's CPU is metered"
        )
        return cpu
    library = str(settings.nvml_library) if settings.nvml_library else None
    nvml = NvmlSource(library, wanted.names, wanted.as_cuda)
    named = settings.nvml_library is not None and settings.nvml_library.exists()
    expected = named or hardware.why_gpus({**os.environ, **environ}, root) is not None
    if settings.source == "nvml" or expected:
        return [(GPUS, nvml)]
    return [("nvml, if there is any", nvml), *cpu]
