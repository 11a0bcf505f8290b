"""Reads a trace; a bad line is named, and the rest is used."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from meter.model import Device, Engine, Event
from meter.trace import fields
from meter.trace.checks import KNOWN_MAX, Checks, deny, time_of
from meter.trace.errors import (
    BAD_LINES_MAX,
    AheadError,
    BadLine,
    LineError,
    TraceError,
    shown,
)
from meter.trace.facts import device_of, engine_of
from meter.trace.file import VERSION, Lines, compressed_name
from meter.trace.parse import Parser, json_object
from meter.trace.quick import REFUSED, Quick, RefusedError

_META_WITHIN_LINES = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Trace:
    """A trace as read: who was there, what happened, and the lines that could not be used."""

    devices: tuple[Device, ...]
    engines: tuple[Engine, ...]
    events: list[Event]
    bad_lines: list[BadLine] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    bad_unlisted: int = 0


class _Held(NamedTuple):
    """A line far ahead of those before it, until the next one speaks for or against it."""

    event: Event
    number: int


class TraceReader:
    """Reads a trace line by line: iterated, once, it gives the events in the file's order.

    ``devices``, ``engines`` and ``meta`` (the whole meta line) are there from the start;
    ``bad_lines`` are complete when the events are: the first ``BAD_LINES_MAX`` of them, and
    ``bad_unlisted`` counts those beyond. Raises ``TraceError`` where nothing can be used:
    at the start (no such file, no meta line), or at the end (no device, so no joule).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.bad_lines: list[BadLine] = []
        self.bad_unlisted = 0
        self._lines = Lines(self.path)
        self._blocks = iter(self._lines)
        self._numbered = enumerate(chain.from_iterable(self._blocks), 1)
        self._held: _Held | None = None
        try:
            self.meta = self._find_meta()
            self.devices, self.engines = self._facts()
        except TraceError:
            self.close()
            raise
        self._checks = Checks(self.devices, self.engines)
        only = self.engines[0].id if len(self.engines) == 1 else None
        self._quick = Quick(only)
        self._parser = Parser(only, self.engines)

    def __iter__(self) -> Iterator[Event]:
        quick, take = self._quick, self._checks.take
        for number, line in self._numbered:
            try:
                # No call of ours in between: here is where the time goes. (This is ``plain``.)
                if b"\\" in line or not line.isascii() or b"\x7f" in line:
                    raise RefusedError
                event: Event | None = quick.decode(line).event(quick)
            except REFUSED:
                event = self._look_closer(line, number)
            if event is None:
                continue
            if self._held is not None:
                yield from self._decide(self._held, event)
            try:
                take(event, number)
            except AheadError:
                self._held = _Held(event, number)
            except LineError as error:
                self._bad(number, str(error))
            else:
                yield event
        if self._held is not None:
            yield from self._decide(self._held, None)
        self._end()

    def close(self) -> None:
        """Let go of the file before its end."""
        self._blocks.close()
        self._lines.close()

    # --- lines

    def _look_closer(self, line: bytes, number: int) -> Event | None:
        """A line that was refused; ``None`` where it is blank, or bad."""
        if not line or line.isspace():
            return None
        with contextlib.suppress(*REFUSED):
            return self._quick.again(line)
        now_ns = self._checks.newest_ns if self._held is None else time_of(self._held.event)
        try:
            return self._parser.event(line, now_ns)
        except LineError as error:
            self._bad(number, str(error))
            return None

    def _bad(self, number: int, reason: str) -> None:
        if self._lines.unfinished and number == self._lines.count:
            # The break is the reason, and said at the end.
            if self._lines.broken is not None:
                return
            reason += " (the file ends in this line)"
        if len(self.bad_lines) < BAD_LINES_MAX:
            self.bad_lines.append(BadLine(number, reason))
        else:
            self.bad_unlisted += 1

    def _decide(self, held: _Held, following: Event | None) -> Iterator[Event]:
        """Use the held line, unless the one after it is far behind."""
        self._held = None
        try:
            if following is not None:
                deny(held.event, following)
            self._checks.take(held.event, held.number, leap=True)
        except LineError as error:
            self._bad(held.number, str(error))
        else:
            yield held.event

    # --- the beginning and the end

    def _find_meta(self) -> dict[str, Any]:
        """The meta line; it should be the first, and what stands before it is bad."""
        first_reason: str | None = None
        for number, line in self._numbered:
            if number == 1 and (ending := compressed_name(line)) is not None:
                raise TraceError(f"{self.path}: is compressed: its name should end in {ending}")
            text = line.removeprefix(_BYTE_ORDER_MARK)
            if not text or text.isspace():
                continue
            try:
                found = json_object(text, number=float)
                if found.get("type") == "meta":
                    self._meta_line = number
                    return found
                reason = f"it has type {shown(found.get('type'))}"
            except LineError as error:
                reason = str(error)
            first_reason = first_reason or f"line {number} is no meta line: {reason}"
            self._bad(number, f"it stands before the meta line: {reason}")
            if number >= _META_WITHIN_LINES:
                break
        raise TraceError(f"{self.path}: {self._no_meta(first_reason)}")

    def _no_meta(self, first_reason: str | None) -> str:
        wanted = 'its first line must be the meta line, with "type":"meta"'
        if self._lines.broken is not None:
            return f"nothing of it can be read: {self._lines.broken}"
        if first_reason is None:
            return f"the trace is empty; {wanted}"
        return f"{first_reason}; {wanted}"

    def _facts(self) -> tuple[tuple[Device, ...], tuple[Engine, ...]]:
        version = self.meta.get("version")
        try:
            if version != VERSION:
                raise LineError(f"version {shown(version)} is not {VERSION}")
            devices = _few(fields.objects(self.meta, "devices"), "devices").items()
            engines = _few(fields.objects(self.meta, "engines"), "engines").items()
            return (
                tuple(device_of(id, facts) for id, facts in devices),
                tuple(engine_of(id, facts) for id, facts in engines),
            )
        except LineError as error:
            raise TraceError(f"{self.path}: line {self._meta_line} (meta): {error}") from error

    def _end(self) -> None:
        if self._lines.broken is not None:
            number = self._lines.count + (not self._lines.unfinished)
            self.bad_lines.append(BadLine(number, f"the file breaks off: {self._lines.broken}"))
        known = self._checks.devices
        for engine in self.engines:
            for device in engine.devices:
                if device not in known:
                    reason = f"engine {shown(engine.id)}: its device {shown(device)} is not known"
                    self._bad(self._meta_line, f"{reason}: name it in devices")
        self.bad_lines.sort()
        if not known:
            raise TraceError(
                f"{self.path}: line {self._meta_line} (meta) names no devices, nor does a device "
                "line: without readings there are no joules"
            )


def _few(named: dict[str, fields.Line], what: str) -> dict[str, fields.Line]:
    if len(named) > KNOWN_MAX:
        raise LineError(f"it names {len(named)} {what}, and {KNOWN_MAX} is the most")
    return named


def read_trace(path: Path | str) -> Trace:
    """Read a whole trace. Raises ``TraceError`` where nothing can be used (see ``TraceReader``)."""
    reader = TraceReader(path)
    with collection_paused():
        events = list(reader)
    bad = reader.bad_lines, reader.meta, reader.bad_unlisted
    return Trace(reader.devices, reader.engines, events, *bad)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Without the cyclic garbage collector: millions of small values, none of them in a cycle."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
