"""NVML's library and its calls: loaded from where the settings say, its errors made ours."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pynvml

from meter.model import Quality
from meter.power.errors import LibraryMissingError, ReadError, nvml_error

_SIMULATED = "joulemeter_simulated"
_GPUS_MAX = 1024
_PROCESSES_MAX = 4096


def start(library: str | None) -> Quality:
    """Load and start NVML; a library that calls itself simulated makes all its figures so."""
    if library is not None:
        try:
            if Path(library).exists() and not Path(library).is_file():
                raise OSError("it is no plain file")  # the loader would wait for a pipe's writer
            use_library(ctypes.CDLL(library))
        except (OSError, ValueError) as error:  # ValueError: bytes that are no text
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
    """How many GPUs NVML shows: ``nvidia-smi --query-gpu=count``. Raises ``PowerError``."""
    shown = int(call("count", pynvml.nvmlDeviceGetCount))
    if not 0 <= shown <= _GPUS_MAX:
        raise ReadError(f"NVML counts {shown} GPUs; see whether `nvidia-smi` works")
    return shown


def call(what: str, function: Any, *arguments: Any) -> Any:
    """Call NVML; its error becomes ours, and so does any other that the binding raises."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise nvml_error(f"NVML's {what} call", error) from error
    except Exception as error:
        raise ReadError(f"NVML's {what} call gave what cannot be read: {error!r:.200}") from error


def optional(function: Any, *arguments: Any) -> Any:
    """Call NVML for a fact that one can do without; ``None`` where it is not to be had."""
    try:
        return function(*arguments)
    except Exception:
        return None


def processes(handle: Any) -> list[int] | None:
    """The processes that compute on a board; ``None`` where it does not tell.

    ``nvidia-smi --query-compute-apps=pid``. The list is given room for ``_PROCESSES_MAX``: pynvml's
    own call makes as much room as the driver's count asks for, which may be nonsense.
    """
    room = ctypes.c_uint(_PROCESSES_MAX)
    listed = (pynvml.c_nvmlProcessInfo_v3_t * _PROCESSES_MAX)()
    try:
        function = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetComputeRunningProcesses_v3")
        if function(handle, ctypes.byref(room), listed) != pynvml.NVML_SUCCESS:
            return None
    except Exception:
        return None
    if room.value > _PROCESSES_MAX:
        return None
    return [int(listed[i].pid) for i in range(room.value)]
