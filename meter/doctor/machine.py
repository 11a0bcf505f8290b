"""The places that the doctor looks at; a test gives others."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meter.config import PowerSettings

_NVIDIA = "0x10de"
#: PCI classes of display and 3D controllers; an audio function of the same board is no GPU.
_DISPLAY = "0x03"


@dataclass(frozen=True, slots=True)
class Machine:
    """``root``: where ``/dev``, ``/proc`` and ``/sys`` are; ``python``: where vLLM may be besides
    its command's; ``driver_within_s``: how long the driver may take to answer."""

    power: PowerSettings = field(default_factory=PowerSettings)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    root: Path = Path("/")
    python: str | None = sys.executable
    driver_within_s: float = 20.0

    def has_nvidia_hardware(self) -> bool:
        """Is an NVIDIA GPU on the PCI bus (also without its driver)?"""
        devices = self.root / "sys/bus/pci/devices"
        return any(
            _word(device / "vendor") == _NVIDIA and _word(device / "class").startswith(_DISPLAY)
            for device in sorted(devices.glob("*"))
        )

    def has_kernel_driver(self) -> bool:
        """Is the kernel's part of the driver loaded, here or on a container's host?"""
        places = ("proc/driver/nvidia/version", "dev/nvidiactl")
        return any((self.root / place).exists() for place in places)

    def is_container(self) -> bool:
        marks = (".dockerenv", "run/.containerenv")
        names = ("NVIDIA_VISIBLE_DEVICES", "KUBERNETES_SERVICE_HOST", "container")
        return any((self.root / mark).exists() for mark in marks) or any(
            name in self.environ for name in names
        )

    def lacks_utility(self) -> bool:
        """Does the container's variable leave out the capability that NVML needs?"""
        capabilities = self.environ.get("NVIDIA_DRIVER_CAPABILITIES", "")
        return not {"utility", "all"} & set(capabilities.replace(" ", "").split(","))


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
