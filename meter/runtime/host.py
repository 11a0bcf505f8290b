"""The host's CPU: the best source there is, and how much of its idle power is ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from meter.config import PowerSettings
from meter.power.claim import CpuClaim
from meter.power.cpu_time import TreeTime
from meter.power.errors import PowerError
from meter.power.estimate import CpuEstimate
from meter.power.owner import NoLockError, Ownership, count
from meter.power.rapl import RaplSource
from meter.power.source import PowerSource

_METERS = "cpu-meter-"
_COUNT_EVERY_S = 10.0


def cpu_source(settings: PowerSettings) -> PowerSource:
    """RAPL where it can be read, else the estimate; why not RAPL is said."""
    rapl = RaplSource(settings.powercap)
    try:
        rapl.open()
    except PowerError as error:
        structlog.get_logger("joulemeter.power").info("cpu_is_estimated", reason=str(error))
        return CpuEstimate(settings.cpu_idle_w, settings.cpu_max_w)
    return rapl


class HostCpu:
    """What this meter claims of the host's CPU: that of the processes that it has started.

    Idle power is claimed by the GPUs' share (``gpu_share``, from 0 to 1); without GPUs each of this
    user's meters and root's, which it sees by their locks, claims an equal part.
    """

    def __init__(self, settings: PowerSettings, root: int | None = None) -> None:
        """``root``: the server's pid, where the meter has not started it."""
        self._directory: Path | None = settings.lock_directory
        self._presence = Ownership(f"{_METERS}{os.getpid()}", self._directory)
        self._counted_s = float("-inf")
        self._meters = 1
        self.gpu_share: Callable[[], float] | None = None
        source = cpu_source(settings)
        # The estimate's idle power is what it was given; RAPL's is learned.
        known_w = settings.cpu_idle_w if isinstance(source, CpuEstimate) else None
        self.claim = CpuClaim(source, TreeTime(root), idle_share=self._idle_share, idle_w=known_w)

    def _idle_share(self) -> float:
        if self.gpu_share is not None:
            return self.gpu_share()
        now_s = time.monotonic()
        if now_s - self._counted_s >= _COUNT_EVERY_S:
            self._counted_s = now_s
            try:
                self._presence.take()
                self._meters = max(1, count(_METERS, self._directory))
            except NoLockError:
                self._meters = 1
        return 1 / self._meters
