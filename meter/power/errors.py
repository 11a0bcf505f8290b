"""What can go wrong with a source of energy, as one small tree.

PowerError
├── LibraryMissingError    no driver library on this machine
├── NoPermissionError      the source is there, but may not be read
├── DriverError            the driver is not loaded, or does not match its library
├── NoDeviceError          no device, or none of that name
├── UnsupportedError       the device has no such counter
├── DeviceLostError        the device fell off the bus
└── ReadError              any other failed call

Messages say what was tried, what was found and what to do. NVML's codes become these classes in
``nvml_error`` alone; the original stays the cause.
"""

from __future__ import annotations

from typing import Any


class PowerError(Exception):
    """A source of energy cannot be used, now or at all.

    ``passes``: whether trying again may help. Only what a board does not have it never will.
    """

    passes = True


class LibraryMissingError(PowerError):
    """There is no driver library."""


class NoPermissionError(PowerError):
    """The source may not be read by this user."""


class DriverError(PowerError):
    """The driver is not loaded, or is of another version than its library."""


class NoDeviceError(PowerError):
    """There is no device, or none of that name."""


class UnsupportedError(PowerError):
    """The device does not have this counter."""

    passes = False


class DeviceLostError(PowerError):
    """The device is gone."""


class ReadError(PowerError):
    """A call failed for another reason."""


# NVML code -> (class, what to do)
_NVML: dict[int, tuple[type[PowerError], str]] = {
    1: (DriverError, "the driver was reloaded: the meter starts NVML anew"),
    3: (UnsupportedError, "this GPU (or vGPU, or MIG instance) has no such counter"),
    4: (NoPermissionError, "run as a user who may open /dev/nvidia*, or add the container's GPUs"),
    6: (NoDeviceError, "see `nvidia-smi -L` for the GPUs that there are"),
    9: (DriverError, "load the NVIDIA driver (`nvidia-smi` must work)"),
    10: (ReadError, "the driver was busy: it is tried again"),
    12: (
        LibraryMissingError,
        "install the NVIDIA driver; in a container, give it the `utility` driver capability",
    ),
    15: (DeviceLostError, "reset the GPU or restart the machine; the meter goes on trying"),
    18: (DriverError, "the driver was updated under a running kernel module: reload it or reboot"),
    27: (ReadError, "the GPU is not ready yet: it is tried again"),
    28: (NoDeviceError, "the GPU is not there yet: it is tried again"),
    999: (
        ReadError,
        "where this is a container, its GPUs may be gone since a systemd reload: start it anew",
    ),
}


def nvml_error(call: str, error: Any) -> PowerError:
    """The ``PowerError`` for a failed NVML call; ``error`` is a ``pynvml.NVMLError``."""
    code = getattr(error, "value", -1)
    kind, remedy = _NVML.get(code, (ReadError, "see the NVML documentation"))
    try:
        words = str(error)
    except Exception:  # the driver's own words for it may be unreadable, too
        words = f"code {code}"
    raised = kind(f"{call} failed: {words}; {remedy}")
    raised.__cause__ = error
    return raised
