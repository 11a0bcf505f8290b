"""Whether this machine has NVIDIA GPUs, by what can be seen without their driver.

Where it has, and they cannot be read, an engine must not be metered on the host's CPU in silence.
A container sees the buses of its host: there only what it was given counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/")
CONTAINER_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
_NVIDIA = "0x10de"
#: PCI classes of display and 3D controllers; an audio function of the same board is no GPU.
_DISPLAY = "0x03"
_DEVICES = ("dev/nvidiactl", "dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu", "dev/nvmap")
_NO_GPU = frozenset(("", "void", "none"))


def on_the_bus(root: Path = ROOT) -> bool:
    """Is an NVIDIA GPU on the PCI bus (also without its driver)?"""
    devices = root / "sys/bus/pci/devices"
    return any(
        word(device / "vendor") == _NVIDIA and word(device / "class").startswith(_DISPLAY)
        for device in sorted(devices.glob("*"))
    )


def is_integrated(root: Path = ROOT) -> bool:
    """Is this a Jetson, Thor or the like, whose GPU is a part of the chip?"""
    compatible = word(root / "proc/device-tree/compatible")
    return "nvidia,tegra" in compatible or (root / "etc/nv_tegra_release").exists()


def is_container(environ: Mapping[str, str], root: Path = ROOT) -> bool:
    marks = (".dockerenv", "run/.containerenv")
    names = (CONTAINER_VARIABLE, "KUBERNETES_SERVICE_HOST", "container")
    return any((root / mark).exists() for mark in marks) or any(name in environ for name in names)


def why_gpus(environ: Mapping[str, str], root: Path = ROOT) -> str | None:
    """Why a server here is expected to use GPUs; ``None`` where nothing says so.

    ``NVIDIA_VISIBLE_DEVICES=void`` says neither: containers that are given their GPUs by CDI have
    it, too.
    """
    for name in _DEVICES:
        if (root / name).exists():
            return f"/{name} is there"
    if is_container(environ, root):
        asked = environ.get(CONTAINER_VARIABLE, "").strip().lower()
        return f"{CONTAINER_VARIABLE}={asked}" if asked not in _NO_GPU else None
    if on_the_bus(root):
        return "an NVIDIA GPU is on the PCI bus"
    return "an NVIDIA board with a GPU of its own" if is_integrated(root) else None


def word(path: Path) -> str:
    """A short file's text; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
