"""The CPU's energy by RAPL, from the kernel's powercap tree: package and DRAM domains.

``energy_uj`` counts microjoules and wraps at ``max_energy_range_uj``. Since 2020 kernels let only
root read it (CVE-2020-8694). The domains are summed into one device ``cpu``: a host has one CPU
account. A package's ``core`` and ``uncore`` are parts of it and are not counted again; ``psys``
counts the whole platform, so it is left out too. Where the same package is shown by two interfaces
(``intel-rapl`` and ``intel-rapl-mmio``), it is counted once. The counters move every millisecond,
so a reading counts as exact at its time. A package at 300 W wraps after some 15 minutes (older
ones after 4): where polls lay so far apart that a turn may have been missed, how much moved is not
known, and the total starts again from zero, as a counter does that was reset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meter.model import Device, Quality, Reading
from meter.power.errors import NoDeviceError, NoPermissionError, ReadError

CPU = "cpu"
#: More than any package draws: how fast a counter may turn.
_POWER_W_MAX = 500.0


@dataclass(slots=True)
class _Domain:
    """One counter, unwrapped: ``total_uj`` only grows."""

    path: Path
    range_uj: int
    last_uj: int
    last_ns: int
    total_uj: int = 0

    def update(self, t_ns: int) -> bool:
        """Count what moved; false where a whole turn may have been missed since the last time."""
        now_uj = _number(self.path / "energy_uj")
        blind = (t_ns - self.last_ns) / 1e3 * _POWER_W_MAX > self.range_uj
        self.last_ns = t_ns
        moved = now_uj - self.last_uj
        if moved < 0:
            moved += self.range_uj
        self.total_uj += moved
        self.last_uj = now_uj
        return not blind


class RaplSource:
    """All packages of the host and their DRAM. ``root``: where the powercap tree is."""

    name = "rapl"

    def __init__(
        self,
        root: Path | str = "/sys/class/powercap",
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._root = Path(root)
        self._clock = clock
        self._domains: list[_Domain] = []

    def open(self) -> Sequence[Device]:
        """Find the counters. Raises ``NoDeviceError``, ``NoPermissionError`` or ``ReadError``."""
        self._domains = [
            _Domain(
                path,
                _number(path / "max_energy_range_uj"),
                _number(path / "energy_uj"),
                self._clock(),
            )
            for path in _counters(self._root)
        ]
        if not self._domains:
            raise NoDeviceError(
                f"no RAPL package in {self._root}: the CPU has none, or the machine is virtual"
            )
        name = "CPU package and DRAM (RAPL)"
        return [Device(CPU, name, Quality.MEASURED, "cpu", "host", refresh_s=0.0)]

    def read(self, device: str | None = None) -> Sequence[Reading]:
        begun_ns = self._clock()
        error = None
        try:
            seen = [domain.update(begun_ns) for domain in self._domains]
            if not all(seen):
                for domain in self._domains:
                    domain.total_uj = 0
        except (NoPermissionError, ReadError) as failure:
            error = str(failure)
        done_ns = self._clock()
        energy_uj = None if error else sum(domain.total_uj for domain in self._domains)
        return [
            Reading(
                CPU,
                (begun_ns + done_ns) // 2,
                energy_uj,
                latency_s=(done_ns - begun_ns) / 1e9,
                error=error,
            )
        ]

    def domains(self) -> tuple[int, int]:
        """How many packages and memories are read."""
        packages = sum(_text(d.path / "name").startswith("package") for d in self._domains)
        return packages, len(self._domains) - packages

    def close(self) -> None:
        self._domains = []


def _counters(root: Path) -> list[Path]:
    """The packages and their DRAM, each once. ``intel-rapl:0`` sorts before ``intel-rapl-mmio:0``
    here, so that the processor's own interface is taken where there are two."""
    chosen: dict[tuple[str, str], Path] = {}
    for path in sorted(root.glob("*rapl*:*"), key=lambda found: (len(found.name), found.name)):
        name = _text(path / "name")
        if name.startswith("package"):
            chosen.setdefault((name, ""), path)
        elif name.startswith("dram"):
            package = path.with_name(path.name.rpartition(":")[0])
            chosen.setdefault((_text(package / "name"), name), path)
    return list(chosen.values())


def _text(path: Path) -> str:
    """The file's word; empty where there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise NoPermissionError(
            f"{path} may not be read: run as root, or let the meter's group read it "
            f"(chmod g+r, chgrp)"
        ) from error
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read: {error}") from error
