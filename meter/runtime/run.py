"""Starts the engine with the meter beside it.

The engine never fails because of the meter: whatever of the meter cannot be had is said on stderr
and left out, down to running the command with no meter at all; the exit code is the command's.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from meter.config import Settings
from meter.export import SET_ASIDE
from meter.runtime.become import become
from meter.runtime.child import Child, CommandError, NoProcessError
from meter.runtime.collector import collect_rarely
from meter.runtime.family import end_the_rest
from meter.runtime.find import PLUGINS_VARIABLE, left_out
from meter.runtime.lines import first_line, last_line
from meter.runtime.logs import configure_logs, say
from meter.runtime.meter import Meter, build
from meter.runtime.signals import ENDING
from meter.runtime.witness import Witness
from meter.work import beside

#: A driver that hangs is given 5 s; this is for what nobody thought of.
_READY_WITHIN_S = 20.0


def run(
    command: Sequence[str],
    settings: Settings,
    mask: Iterable[int],
    witness: Witness | None = None,
) -> int:
    """Run ``command`` under the meter; returns its exit code (128 + n where signal n ended it).

    ``mask``: the signals that the command has blocked, as ``block_signals`` gave them. That must
    have been called before this module was imported, for numpy starts threads. ``witness``: the
    process that tells which signals have reached the command as well.
    """
    plain = {**os.environ}
    meter, environ = _begin(settings, plain)
    try:
        child = Child.start(command, environ, mask, witness)
        code = child.wait(_look(meter, child.pid))
        _guarded_end(witness)
    except NoProcessError as error:
        say(f"joulemeter: {error}: it takes our place, and is not metered")
        if meter is not None:
            _guarded_close(meter)
        if witness is not None:
            witness.stop()
        become(command, plain, mask)
    except CommandError as error:
        say(f"joulemeter: {error}")
        code = error.code
    if meter is not None:
        _guarded_close(meter)
    return code


def _begin(settings: Settings, plain: Mapping[str, str]) -> tuple[Meter | None, dict[str, str]]:
    """The meter, and the engine's environment with it; whatever fails, the engine is started."""
    environ = {**plain, **SET_ASIDE}
    try:
        configure_logs(settings.log_level, settings.log_format)
        collect_rarely()
        meter = _in_time(lambda: build(settings, environ), _READY_WITHIN_S)
        with_meter = _with_meter(environ, meter)
        say(first_line(meter))
        meter.engine_is("up")
        return meter, with_meter
    except Exception as error:
        log, note = structlog.get_logger("joulemeter"), "the engine runs all the same"
        if _no_room(error):
            remedy = "raise the limit on memory (ulimit -v) or on processes (ulimit -u)"
            log.error("not_metering", reason=repr(error)[:200], note=note, remedy=remedy)
        else:
            log.exception("not_metering", note=note, remedy="please report this")
        return None, {**plain}


def _no_room(error: Exception) -> bool:
    """Whether a limit of the machine's or the user's is the reason, and no defect."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOMEM, errno.EAGAIN)
    return isinstance(error, MemoryError) or "can't start new thread" in str(error)


def _in_time(build: Callable[[], Meter], within_s: float) -> Meter:
    """The meter. Raises what ``build`` raises, and ``TimeoutError`` where it takes longer: a
    resolver, a driver or a network's folder may hang for ever."""
    answers: queue.SimpleQueue[Meter | Exception] = queue.SimpleQueue()
    given_up = threading.Lock()

    def make() -> None:
        try:
            made: Meter | Exception = build()
        except Exception as error:
            made = error
        if given_up.acquire(blocking=False):
            answers.put(made)
        elif isinstance(made, Meter):
            made.close()

    threading.Thread(target=make, name="joulemeter-build", daemon=True).start()
    try:
        answer = answers.get(timeout=within_s)
    except queue.Empty:
        if given_up.acquire(blocking=False):
            raise TimeoutError(f"the meter was not ready within {within_s:.0f} s") from None
        answer = answers.get()
    if isinstance(answer, Exception):
        raise answer
    return answer


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
            if meter is not None and watch is not None:
                meter.let_in(pid)
                watch.look()
        except Exception:
            watch = None
            structlog.get_logger("joulemeter").exception("watch", remedy="please report this")

    return look


def _guarded_end(witness: Witness | None) -> None:
    try:
        end_the_rest(ENDING, spared=witness.pid if witness is not None else None)
    except Exception:
        structlog.get_logger("joulemeter").exception("end_failed", remedy="please report this")


def _guarded_close(meter: Meter) -> None:
    try:
        meter.engine_is("down")
        say(last_line(meter.close()))
    except Exception:
        structlog.get_logger("joulemeter").exception("end_failed", remedy="please report this")
