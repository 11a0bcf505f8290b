"""Writes events down, one JSON line each."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from meter.model import (
    Clock,
    Device,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Gap,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
)
from meter.trace.facts import device_facts, engine_facts, present
from meter.trace.fields import clean
from meter.trace.file import VERSION, open_for_writing


class TraceWriter:
    """Appends events to a trace file as they come. Not thread-safe: one writer owns it.

    ``calibration``: what was known of the devices at the start, as JSON. Raises ``OSError``, and
    ``ValueError`` for what JSON cannot hold (NaN, infinity).
    """

    def __init__(
        self,
        path: Path | str,
        devices: tuple[Device, ...] = (),
        engines: tuple[Engine, ...] = (),
        wall_utc_ns: int | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        meta: dict[str, Any] = {
            "type": "meta",
            "version": VERSION,
            "engines": {engine.id: engine_facts(engine) for engine in engines},
            "devices": {device.id: device_facts(device) for device in devices},
        }
        if wall_utc_ns is not None:
            meta["wall_utc_ns"] = wall_utc_ns
        if calibration is not None:
            meta["calibration"] = dict(calibration)
        first = _text(meta)
        self._file = open_for_writing(Path(path))
        self._file.write(first)

    def write(self, event: Event) -> None:
        self._file.write(_text(_line(event)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _text(line: dict[str, Any]) -> str:
    text = json.dumps(line, separators=(",", ":"), default=_exact, allow_nan=False)
    return _unquote(text) + "\n"


# A float cannot hold a nanosecond of a machine's uptime, and the json module writes no Decimal:
# each exact number goes in as a string between marks, and the marks and quotes come off again. The
# mark is a new one in each process, so that no text a client sends can hold it.
_MARK = "\x00" + secrets.token_hex(8)
_ESCAPED = json.dumps(_MARK)[1:-1]


def _exact(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{_MARK}{value:f}{_MARK}"
    raise TypeError(f"not a trace value: {value!r}")


def _unquote(text: str) -> str:
    return text.replace(f'"{_ESCAPED}', "").replace(f'{_ESCAPED}"', "")


def _seconds(ns: int) -> Decimal:
    return Decimal(ns).scaleb(-9)


def _joules(uj: int) -> Decimal:
    return Decimal(uj).scaleb(-6)


def _line(event: Event) -> dict[str, Any]:
    match event:
        case Reading():
            energy = None if event.energy_uj is None else _joules(event.energy_uj)
            return {
                "type": "reading",
                "t": _seconds(event.t_ns),
                "device": event.device,
                **present(
                    energy_j=energy,
                    power_w=event.power_w,
                    latency_s=event.latency_s,
                    late_s=event.late_s,
                    error=None if event.error is None else clean(event.error),
                    missed=event.missed,
                    missed_j=None if event.missed_uj is None else _joules(event.missed_uj),
                ),
            }
        case Step():
            return _step_line(event)
        case RequestOpened():
            return {
                "type": "request",
                "event": "open",
                "id": event.request,
                "t": _seconds(event.t_ns),
                "engine": event.engine,
                **present(
                    model=event.model,
                    tenant=event.tenant,
                    parent=event.parent,
                    prompt_tokens=event.prompt_tokens,
                    missed=event.missed,
                ),
            }
        case RequestClosed():
            return {
                "type": "request",
                "event": "close",
                "id": event.request,
                "t": _seconds(event.t_ns),
                "engine": event.engine,
                **present(
                    reason=event.reason,
                    prompt_tokens=event.prompt_tokens,
                    cached_tokens=event.cached_tokens,
                    completion_tokens=event.completion_tokens,
                ),
            }
        case EngineEvent():
            line = {
                "type": "engine",
                "event": event.event,
                "engine": event.engine,
                "t": _seconds(event.t_ns),
                "epoch": event.epoch,
            }
            return line | ({"info": engine_facts(event.info)} if event.info else {})
        case Gap():
            return {
                "type": "gap",
                "engine": event.engine,
                "t": _seconds(event.t_ns),
                "epoch": event.epoch,
                "from": event.first_seq,
                "to": event.last_seq,
            }
        case Clock():
            return {"type": "clock", "t": _seconds(event.t_ns), "utc_ns": event.utc_ns}
        case DeviceFound():
            device = event.device
            return {
                "type": "device",
                "t": _seconds(event.t_ns),
                "device": device.id,
                **device_facts(device),
                **present(
                    engines=None if event.engines is None else list(event.engines),
                    learned=list(event.learned) or None,
                ),
            }


def _step_line(step: Step) -> dict[str, Any]:
    line: dict[str, Any] = {
        "type": "step",
        "seq": step.seq,
        "engine": step.engine,
        "t0": _seconds(step.t0_ns),
        "t1": _seconds(step.t1_ns),
    }
    if step.epoch:
        line["epoch"] = step.epoch
    if step.dummy:
        line["kind"] = "dummy"
    work = [list(w if w.kept is not None else w[:4]) for w in step.work]
    if step.same:
        line |= {"same": True, "add": work, "drop": list(step.drop)}
    else:
        line["work"] = work
    return line
