"""One line, read with care: exact, slow, and with a reason where it cannot be used.

``quick`` reads most lines; what it refuses comes here. Both give the same for every line that both
take, and a test holds them to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, NoReturn

from meter.model import (
    Clock,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Fidelity,
    Gap,
    Phase,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.trace import fields
from meter.trace.checks import KNOWN_MAX
from meter.trace.errors import LineError, shown
from meter.trace.facts import device_of, engine_of
from meter.trace.file import LINE_BYTES_MAX

_STATES = ("up", "ready", "down")


def json_object(line: bytes, number: Callable[[str], Any] = Decimal) -> dict[str, Any]:
    """The JSON object of a line; ``number`` makes those with decimals. Raises ``LineError``."""
    if len(line) > LINE_BYTES_MAX:
        raise LineError(f"the line is longer than {LINE_BYTES_MAX} bytes")
    if b"\0" in line:
        raise LineError("the line holds NUL bytes: it was damaged, or never written out")
    try:
        found = json.loads(line.decode(), parse_float=number, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
        raise LineError(f"the line is not UTF-8: {found}") from None
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise LineError("the line is nested too deeply") from None
    except LineError:
        raise
    except (ValueError, ArithmeticError):  # thousands of digits, or an exponent of dozens
        raise LineError("the line holds a number out of all range") from None
    if not isinstance(found, dict):
        raise LineError(f"a line must be a JSON object, not {shown(found)}")
    return found


def _no_number(name: str) -> NoReturn:
    raise LineError(f"{name} is no JSON number: leave out what is not known")


class Parser:
    """Turns lines into events. ``engine`` is the one that lines may leave out, if any.

    ``engines``: those of meta; what lines say of engines is followed.
    """

    def __init__(self, engine: str | None, engines: Iterable[Engine] = ()) -> None:
        self._engine = engine
        self._counted: set[str] = set()
        for known in engines:
            self._note(known)
        self._by_type: dict[str, Callable[[fields.Line], Event]] = {
            "reading": _reading,
            "step": self._step,
            "request": self._request,
            "engine": self._engine_event,
            "gap": self._gap,
            "clock": _clock,
            "device": _device_found,
        }

    def event(self, line: bytes, newest_ns: int) -> Event:
        """The event of a line; one without a time gets ``newest_ns``. Raises ``LineError``."""
        said = json_object(line)
        kind = said.get("type")
        if kind == "meta":
            raise LineError("a second meta line: replay the traces one by one")
        parse = self._by_type.get(kind) if isinstance(kind, str) else None
        if parse is None:
            raise LineError(f"type {shown(kind)} is none of {', '.join(self._by_type)}")
        if kind == "gap" and "t" not in said:
            said["t"] = Decimal(newest_ns).scaleb(-9)
        return parse(said)

    def _owner(self, line: fields.Line) -> str:
        engine = line.get("engine")
        if engine is not None:
            return fields.as_text(engine, "engine")
        if self._engine is None:
            raise LineError("engine is missing, and meta does not have exactly one")
        return self._engine

    def _note(self, engine: Engine) -> None:
        """Of an engine that only its counters show, one request stands for all that it did."""
        if engine.fidelity is not Fidelity.COUNTER:
            self._counted.discard(engine.id)
        elif len(self._counted) < KNOWN_MAX:
            self._counted.add(engine.id)

    def _step(self, line: fields.Line) -> Step:
        same, dummy = fields.flag(line, "same"), line.get("kind") == "dummy"
        t0_ns, t1_ns = _span(line)
        engine = self._owner(line)
        return Step(
            engine=engine,
            epoch=fields.whole(line, "epoch", 0),
            seq=fields.whole(line, "seq"),
            t0_ns=t0_ns,
            t1_ns=t1_ns,
            work=_all_work(line, same, dummy, engine in self._counted),
            same=same,
            drop=tuple(fields.as_text(id, "drop") for id in fields.rows(line, "drop")),
            dummy=dummy,
        )

    def _request(self, line: fields.Line) -> RequestOpened | RequestClosed:
        id, t_ns = fields.text(line, "id"), fields.time_ns(line, "t")
        engine, prompt = self._owner(line), fields.tokens(line, "prompt_tokens")
        if line.get("event") == "open":
            return RequestOpened(
                engine,
                id,
                t_ns,
                model=fields.optional_text(line, "model"),
                tenant=fields.optional_text(line, "tenant"),
                parent=fields.optional_text(line, "parent"),
                prompt_tokens=prompt,
                missed=fields.optional_text(line, "missed"),
            )
        if line.get("event") == "close":
            return RequestClosed(
                engine,
                id,
                t_ns,
                reason=fields.optional_text(line, "reason"),
                prompt_tokens=prompt,
                cached_tokens=fields.tokens(line, "cached_tokens"),
                completion_tokens=fields.tokens(line, "completion_tokens"),
            )
        raise LineError(f'event {shown(line.get("event"))} is neither "open" nor "close"')

    def _engine_event(self, line: fields.Line) -> EngineEvent:
        event = line.get("event")
        if event not in _STATES:
            raise LineError(f"event {shown(event)} is none of {', '.join(_STATES)}")
        engine, info = self._owner(line), line.get("info")
        if info is not None and not isinstance(info, dict):
            raise LineError(f"info {shown(info)} is not an object")
        found = EngineEvent(
            engine,
            fields.time_ns(line, "t"),
            event,
            epoch=fields.whole(line, "epoch", 0),
            info=None if info is None else engine_of(engine, info),
        )
        if found.info is not None:
            self._note(found.info)
        return found

    def _gap(self, line: fields.Line) -> Gap:
        first, last = fields.whole(line, "from"), fields.whole(line, "to")
        if first > last:
            raise LineError(f"from {first} is after to {last}")
        engine, t_ns = self._owner(line), fields.time_ns(line, "t")
        return Gap(engine, t_ns, fields.whole(line, "epoch", 0), first, last)


def _clock(line: fields.Line) -> Clock:
    return Clock(fields.time_ns(line, "t"), fields.whole(line, "utc_ns", most=2**63 - 1))


def _device_found(line: fields.Line) -> DeviceFound:
    engines = None
    if line.get("engines") is not None:
        engines = tuple(fields.as_text(e, "engines") for e in fields.rows(line, "engines"))
    device = device_of(fields.text(line, "device"), line)
    learned = tuple(_floats(facts) for facts in fields.rows(line, "learned"))
    if not all(isinstance(facts, dict) for facts in learned):
        raise LineError(f"learned {shown(line['learned'])} is not a list of objects")
    return DeviceFound(fields.time_ns(line, "t"), device, engines, learned)


def _floats(value: Any) -> Any:
    """The same JSON value with a float for each decimal."""
    if isinstance(value, dict):
        return {name: _floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_floats(inner) for inner in value]
    return float(value) if isinstance(value, Decimal) else value


def _reading(line: fields.Line) -> Reading:
    error = fields.optional_text(line, "error")
    return Reading(
        device=fields.text(line, "device"),
        t_ns=fields.time_ns(line, "t"),
        energy_uj=None if error is not None else fields.energy_uj(line, "energy_j"),
        power_w=_bounded(line, "power_w"),
        latency_s=_bounded(line, "latency_s"),
        late_s=_bounded(line, "late_s"),
        error=error,
        missed=fields.optional_text(line, "missed"),
        missed_uj=None if line.get("missed_j") is None else fields.energy_uj(line, "missed_j"),
    )


def _bounded(line: fields.Line, name: str) -> float | None:
    """Watts or seconds beside a reading."""
    value = fields.real(line, name)
    if value is not None and not abs(value) <= fields.BESIDE_MAX:
        raise LineError(f"{name} {shown(line[name])} is not within ±{fields.BESIDE_MAX:g}")
    return value


def _span(line: fields.Line) -> tuple[int, int]:
    t0_ns, t1_ns = fields.time_ns(line, "t0"), fields.time_ns(line, "t1")
    fields.span(t0_ns, t1_ns)
    return t0_ns, t1_ns


def _all_work(
    line: fields.Line, same: bool, dummy: bool, counted: bool = False
) -> tuple[Work, ...]:
    name = "add" if same else "work"
    if same and line.get("work") is not None:
        raise LineError("work stands in a step with same: its rows belong into add")
    if line.get(name) is None and not (same or dummy):
        raise LineError("work is missing: a step lists its work, or has same with add and drop")
    rows = fields.rows(line, name)
    if len(rows) > fields.ROWS_MAX:
        raise LineError(f"{name} has {len(rows)} rows, and {fields.ROWS_MAX} is the most")
    work = tuple(_work(row, f"{name}[{k}]") for k, row in enumerate(rows))
    fields.together(work, name, counted)
    return work


def _work(row: Any, name: str) -> Work:
    if not isinstance(row, list) or len(row) not in (4, 5):
        raise LineError(f"{name} {shown(row)} is not [id, tokens, context, phase(, kept)]")
    request, tokens, context, phase, *kept = row
    numbers = (tokens, context, *(n for n in kept if n is not None))
    if not all(_is_count(n) for n in numbers) or tokens < 1:
        raise LineError(
            f"{name} {shown(row)}: tokens must be at least 1, context and kept at least 0, whole "
            f"numbers up to {fields.TOKENS_MAX}"
        )
    if phase not in tuple(Phase):
        raise LineError(f"{name} {shown(row)}: phase must be one of {', '.join(Phase)}")
    id = fields.as_text(request, f"{name} id")
    return Work(id, tokens, context, Phase(phase), kept[0] if kept else None)


def _is_count(value: Any) -> bool:
    return (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= fields.TOKENS_MAX
    )
