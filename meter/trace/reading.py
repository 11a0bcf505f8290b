"""Reads a trace; a bad line is named, and the rest is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from meter.model import (
    Clock,
    Device,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Fidelity,
    Gap,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.trace.file import VERSION, open_trace


class TraceError(Exception):
    """A trace of which nothing can be used; the message says why and what to do."""


class LineError(ValueError):
    """One line that cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True)
class BadLine:
    number: int
    reason: str


@dataclass(slots=True)
class Trace:
    """A trace as read: who was there, what happened, and the lines that could not be used."""

    devices: tuple[Device, ...]
    engines: tuple[Engine, ...]
    events: list[Event]
    bad_lines: list[BadLine] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


def read_trace(path: Path | str) -> Trace:
    """Read a whole trace.

    Raises ``TraceError`` where nothing can be used (no such file, empty, no meta line).
    """
    trace: Trace | None = None
    bad: list[BadLine] = []
    reader = _Reader()
    for number, text in _lines(Path(path), bad):
        if not text.strip():
            continue
        try:
            line = json.loads(text, parse_float=Decimal)
            if not isinstance(line, dict):
                raise LineError("a line must be a JSON object")
            if trace is None:
                trace = reader.meta(line)
            else:
                trace.events.append(reader.event(line))
        except (LineError, json.JSONDecodeError) as error:
            if trace is None:
                raise TraceError(f"{path}: line {number} is no meta line: {error}") from error
            bad.append(BadLine(number, str(error)))
    if trace is None:
        raise TraceError(f"{path}: the trace is empty; its first line must be the meta line")
    trace.bad_lines = bad
    return trace


def _lines(path: Path, bad: list[BadLine]) -> Iterator[tuple[int, str]]:
    """Numbered lines; a file cut off in mid-stream ends with a bad line."""
    number = 0
    try:
        with open_trace(path, "r") as file:
            for number, text in enumerate(file, 1):
                yield number, text
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such trace file") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        bad.append(BadLine(number + 1, f"the file breaks off here: {error}"))
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            bad.append(BadLine(number + 1, f"the file breaks off here: {error}"))
        else:
            raise


class _Reader:
    """Turns lines into events; knows the engine that lines may leave out."""

    def __init__(self) -> None:
        self._engine: str | None = None
        self._by_type: dict[str, Callable[[dict[str, Any]], Event]] = {
            "reading": self._reading,
            "step": self._step,
            "request": self._request,
            "engine": self._engine_event,
            "gap": self._gap,
            "clock": lambda line: Clock(_ns(line, "t"), _integer(line, "utc_ns")),
            "device": lambda line: DeviceFound(
                _ns(line, "t"), _device(_text(line, "device"), line)
            ),
        }

    def meta(self, line: dict[str, Any]) -> Trace:
        if line.get("type") != "meta":
            raise LineError('the first line must have "type":"meta"')
        if line.get("version") != VERSION:
            raise LineError(f"version {line.get('version')!r} is not {VERSION}")
        engines = _mapping(line, "engines")
        devices = _mapping(line, "devices")
        if len(engines) == 1:
            self._engine = next(iter(engines))
        return Trace(
            devices=tuple(_device(id, facts) for id, facts in devices.items()),
            engines=tuple(_engine(id, facts) for id, facts in engines.items()),
            events=[],
            meta=line,
        )

    def event(self, line: dict[str, Any]) -> Event:
        kind = line.get("type")
        parse = self._by_type.get(kind) if isinstance(kind, str) else None
        if parse is None:
            raise LineError(f"type {kind!r} is none of {', '.join(self._by_type)}")
        return parse(line)

    def _owner(self, line: dict[str, Any]) -> str:
        engine = line.get("engine", self._engine)
        if engine is None:
            raise LineError("engine is missing, and meta does not have exactly one")
        return str(engine)

    def _reading(self, line: dict[str, Any]) -> Reading:
        error = line.get("error")
        energy = None if error is not None else _scaled(line, "energy_j", 6)
        if energy is not None and energy < 0:
            raise LineError("energy_j is below zero")
        return Reading(
            device=_text(line, "device"),
            t_ns=_ns(line, "t"),
            energy_uj=energy,
            power_w=_real(line, "power_w"),
            latency_s=_real(line, "latency_s"),
            late_s=_real(line, "late_s"),
            error=None if error is None else str(error),
        )

    def _step(self, line: dict[str, Any]) -> Step:
        same = line.get("same") is True
        t0_ns, t1_ns = _ns(line, "t0"), _ns(line, "t1")
        if t1_ns < t0_ns:
            raise LineError("t1 is before t0")
        return Step(
            engine=self._owner(line),
            epoch=_integer(line, "epoch", 0),
            seq=_integer(line, "seq"),
            t0_ns=t0_ns,
            t1_ns=t1_ns,
            work=tuple(_work(row) for row in _rows(line, "add" if same else "work", same)),
            same=same,
            drop=tuple(str(r) for r in _rows(line, "drop", True)),
            dummy=line.get("kind") == "dummy",
        )

    def _request(self, line: dict[str, Any]) -> RequestOpened | RequestClosed:
        id, t_ns, engine = _text(line, "id"), _ns(line, "t"), self._owner(line)
        prompt = _count(line, "prompt_tokens")
        if line.get("event") == "open":
            return RequestOpened(
                engine,
                id,
                t_ns,
                model=_optional(line, "model"),
                tenant=_optional(line, "tenant"),
                parent=_optional(line, "parent"),
                prompt_tokens=prompt,
            )
        if line.get("event") == "close":
            return RequestClosed(
                engine,
                id,
                t_ns,
                reason=_optional(line, "reason"),
                prompt_tokens=prompt,
                cached_tokens=_count(line, "cached_tokens"),
                completion_tokens=_count(line, "completion_tokens"),
            )
        raise LineError(f'event {line.get("event")!r} is neither "open" nor "close"')

    def _engine_event(self, line: dict[str, Any]) -> EngineEvent:
        event = line.get("event")
        if event not in ("up", "ready", "down"):
            raise LineError(f'event {event!r} is none of "up", "ready", "down"')
        engine = self._owner(line)
        info = line.get("info")
        return EngineEvent(
            engine,
            _ns(line, "t"),
            event,
            epoch=_integer(line, "epoch", 0),
            info=_engine(engine, info) if isinstance(info, dict) else None,
        )

    def _gap(self, line: dict[str, Any]) -> Gap:
        first, last = _integer(line, "from"), _integer(line, "to")
        t_ns = _ns(line, "t") if "t" in line else 0
        return Gap(self._owner(line), t_ns, _integer(line, "epoch", 0), first, last)


def _work(row: Any) -> Work:
    if not isinstance(row, list) or len(row) not in (4, 5):
        raise LineError(f"work {row!r} is not [id, tokens, context, phase(, kept)]")
    request, tokens, context, phase, *kept = row
    counts = (tokens, context, *kept)
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in counts) or tokens < 1:
        raise LineError(f"work {row!r}: tokens must be at least 1, context and kept at least 0")
    try:
        return Work(str(request), tokens, context, Phase(phase), kept[0] if kept else None)
    except ValueError:
        raise LineError(f"work {row!r}: phase must be one of p, d, r, e") from None


def _device(id: str, facts: dict[str, Any]) -> Device:
    try:
        quality = Quality(facts.get("quality", "measured"))
    except ValueError:
        raise LineError(f"device {id}: quality must be measured, estimated or simulated") from None
    return Device(
        id=id,
        name=str(facts.get("name", id)),
        quality=quality,
        index=str(facts.get("index", "0")),
        boundary=str(facts.get("boundary", "gpu")),
        mem_bandwidth=_real(facts, "mem_bandwidth"),
        power_limit_w=_real(facts, "power_limit_w"),
        refresh_s=_real(facts, "refresh_s"),
    )


def _engine(id: str, facts: dict[str, Any]) -> Engine:
    try:
        fidelity = Fidelity(facts.get("fidelity", "step"))
    except ValueError:
        raise LineError(f"engine {id}: fidelity must be step, stream or counter") from None
    return Engine(
        id=id,
        devices=tuple(str(d) for d in _rows(facts, "devices", True)),
        model=_optional(facts, "model"),
        fidelity=fidelity,
        params=_real(facts, "params"),
        active_params=_real(facts, "active_params"),
        weight_bytes=_real(facts, "weight_bytes"),
        kv_bytes_per_token=_real(facts, "kv_bytes_per_token"),
        layers=_count(facts, "layers"),
        heads=_count(facts, "heads"),
        head_dim=_count(facts, "head_dim"),
        engine_version=_optional(facts, "engine_version"),
    )


def _ns(line: dict[str, Any], name: str) -> int:
    return _scaled(line, name, 9)


def _scaled(line: dict[str, Any], name: str, decimals: int) -> int:
    """A number of ``name`` times ``10**decimals``, exactly, rounded to an integer."""
    value = line.get(name)
    if value is None:
        raise LineError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise LineError(f"{name} {value!r} is not a number")
    if isinstance(value, int):
        return int(value * 10**decimals)
    try:
        return int(value.scaleb(decimals).to_integral_value(ROUND_HALF_EVEN))
    except InvalidOperation:
        raise LineError(f"{name} {value!r} is not a finite number") from None


def _real(line: dict[str, Any], name: str) -> float | None:
    value = line.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, Decimal, float)):
        raise LineError(f"{name} {value!r} is not a number")
    return float(value)


def _integer(line: dict[str, Any], name: str, default: int | None = None) -> int:
    value = line.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise LineError(f"{name} {value!r} is not a whole number")
    return value


def _count(line: dict[str, Any], name: str) -> int | None:
    value = line.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise LineError(f"{name} {value!r} is not a whole number of at least 0")
    return value


def _text(line: dict[str, Any], name: str) -> str:
    value = line.get(name)
    if value is None:
        raise LineError(f"{name} is missing")
    return str(value)


def _optional(line: dict[str, Any], name: str) -> str | None:
    value = line.get(name)
    return None if value is None else str(value)


def _mapping(line: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    value = line.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise LineError(f"{name} must map names to objects")
    return value


def _rows(line: dict[str, Any], name: str, optional: bool) -> list[Any]:
    value = line.get(name)
    if value is None and optional:
        return []
    if not isinstance(value, list):
        raise LineError(f"{name} must be a list")
    return value
