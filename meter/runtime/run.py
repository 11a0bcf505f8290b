"""Starts the engine with the meter beside it.

The engine never fails because of the meter: whatever of the meter cannot be had is said on stderr
and left out, down to running the command with no meter at all; the exit code is the command's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from meter.config import Settings
from meter.export import SET_ASIDE
from meter.runtime.child import Child, CommandError
from meter.runtime.collector import collect_rarely
from meter.runtime.family import end_the_rest
from meter.runtime.find import PLUGINS_VARIABLE, left_out
from meter.runtime.lines import first_line, last_line, say
from meter.runtime.logs import configure_logs
from meter.runtime.meter import Meter, build
from meter.runtime.signals import FORWARDED
from meter.work import beside


def run(command: Sequence[str], settings: Settings, mask: Iterable[int]) -> int:
    """Run ``command`` under the meter; returns its exit code (128 + n where signal n ended it).

    ``mask``: the signals that the command has blocked, as ``block_signals`` gave them. That must
    have been called before this module was imported, for numpy starts threads.
    """
    configure_logs(settings.log_level, settings.log_format)
    collect_rarely()
    environ = {**os.environ, **SET_ASIDE}
    meter = _guarded_build(settings, environ)
    if meter is not None:
        environ = _with_meter(environ, meter)
        say(first_line(meter))
        meter.engine_is("up")
    try:
        child = Child.start(command, environ, mask)
        code = child.wait(_look(meter, child.pid))
        end_the_rest(FORWARDED)
    except CommandError as error:
        say(f"joulemeter: {error}")
        code = error.code
    if meter is not None:
        _guarded_close(meter)
    return code


def _guarded_build(settings: Settings, environ: Mapping[str, str]) -> Meter | None:
    try:
        return build(settings, environ)
    except Exception:
        structlog.get_logger("joulemeter").exception(
            "not_metering", note="the engine runs all the same", remedy="please report this"
        )
        return None


def _with_meter(environ: dict[str, str], meter: Meter) -> dict[str, str]:
    """The engine's environment with the meter's; what was on PYTHONPATH stays, behind ours."""
    try:
        ours = meter.environment()
    except Exception:
        structlog.get_logger("joulemeter").exception(
            "part_left_out", part="the engine's steps", remedy="please report this"
        )
        return environ
    paths = [path for path in (ours.get("PYTHONPATH"), environ.get("PYTHONPATH")) if path]
    if left_out(environ):  # else vLLM would load the plugins named there alone
        ours[PLUGINS_VARIABLE] = f"{environ[PLUGINS_VARIABLE]},{beside.NAME}"
    return {**environ, **ours, "PYTHONPATH": os.pathsep.join(paths)}


def _look(meter: Meter | None, pid: int) -> Callable[[], None]:
    """What is to be done now and then, without harm to the waiting for the engine."""
    watch = meter.watch(pid) if meter is not None else None

    def look() -> None:
        nonlocal watch
        try:
            if watch is not None:
                watch.look()
        except Exception:
            watch = None
            structlog.get_logger("joulemeter").exception("watch", remedy="please report this")

    return look


def _guarded_close(meter: Meter) -> None:
    try:
        meter.engine_is("down")
        say(last_line(meter.close()))
    except Exception:
        structlog.get_logger("joulemeter").exception("end_failed", remedy="please report this")
