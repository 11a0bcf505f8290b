"""The places that the doctor looks at; a test gives others."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meter.config import PowerSettings
from meter.power import hardware


@dataclass(frozen=True, slots=True)
class Machine:
    """``root``: where ``/dev``, ``/proc`` and ``/sys`` are; ``python``: where vLLM may be besides
    its command's; ``driver_within_s``: how long the driver may take to answer; ``named``: where
    vLLM is, as a person said: a Python, a virtual environment or a command of it."""

    power: PowerSettings = field(default_factory=PowerSettings)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    root: Path = Path("/")
    python: str | None = sys.executable
    driver_within_s: float = 20.0
    named: Path | None = None

    def has_nvidia_hardware(self) -> bool:
        """Is an NVIDIA GPU on the PCI bus (also without its driver)?"""
        return hardware.on_the_bus(self.root)

    def is_integrated(self) -> bool:
        """Is its GPU a part of the chip (Jetson, Thor)?"""
        return hardware.is_integrated(self.root)

    def has_kernel_driver(self) -> bool:
        """Is the kernel's part of the driver loaded, here or on a container's host?"""
        places = ("proc/driver/nvidia/version", "dev/nvidiactl")
        return any((self.root / place).exists() for place in places)

    def is_container(self) -> bool:
        return hardware.is_container(self.environ, self.root)

    def lacks_utility(self) -> bool:
        """Does the container's variable leave out the capability that NVML needs?"""
        capabilities = self.environ.get("NVIDIA_DRIVER_CAPABILITIES", "")
        return not {"utility", "all"} & set(capabilities.replace(" ", "").split(","))
