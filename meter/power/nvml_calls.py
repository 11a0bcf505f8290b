"""NVML's library and its calls: loaded from where the settings say, its errors made ours."""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml

from meter.model import Quality
from meter.power.errors import LibraryMissingError, nvml_error

_SIMULATED = "joulemeter_simulated"


def start(library: str | None) -> Quality:
    """Load and start NVML; a library that calls itself simulated makes all its figures so."""
    if library is not None:
        try:
            use_library(ctypes.CDLL(library))
        except OSError as error:
            raise LibraryMissingError(
                f"power.nvml_library {library!r} cannot be loaded: {error}"
            ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if library is not None:
            use_library(None)
        raise nvml_error("nvmlInit", error) from error
    return Quality.SIMULATED if hasattr(pynvml.nvmlLib, _SIMULATED) else Quality.MEASURED


def use_library(library: ctypes.CDLL | None) -> None:
    """Give pynvml its library (``None``: it looks for the system's) before NVML starts.

    It keeps the functions it has looked up: those of the library before must go.
    """
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()


def count() -> int:
    """How many GPUs NVML shows: ``nvidia-smi --query-gpu=count``."""
    return int(call("count", pynvml.nvmlDeviceGetCount))


def call(what: str, function: Any, *arguments: Any) -> Any:
    """Call NVML; its error becomes ours."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise nvml_error(f"NVML's {what} call", error) from error


def optional(function: Any, *arguments: Any) -> Any:
    """Call NVML for a fact that one can do without; ``None`` where it is not to be had."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None
