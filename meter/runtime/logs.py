"""The meter's own messages: to stderr, all in one form, and few of them.

The stream is the server's own log. So what repeats is said a few times a minute and then counted,
whatever it is; what libraries, threads and warnings have to say comes in the same form; and nothing
fails where nobody can be told.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog

from meter.export.figures import printable

OFTEN = 5
PERIOD_S = 60.0
_TEXT_MAX = 2000
_EVENTS_MAX = 1000
_as_json_lines = False


def configure_logs(level: str, form: str = "text") -> None:
    """Nothing below ``level``. ``form``: ``text`` for people, ``json`` for machines."""
    global _as_json_lines  # noqa: PLW0603  one stream, one form
    _as_json_lines = form == "json"
    structlog.configure(
        processors=[
            Seldom(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _bounded,
            _json if _as_json_lines else _text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=True,
    )
    _catch_others()


def say(line: str) -> None:
    """A sentence for a person, in the form of the log: stdout is the engine's."""
    if _as_json_lines:
        now = datetime.now(UTC).isoformat()
        said = {"event": line.removeprefix("joulemeter: "), "level": "info", "timestamp": now}
        line = json.dumps(said, ensure_ascii=False)
    _Stderr().msg(line)


class Seldom:
    """A processor that lets each event through so often a minute, and then counts it.

    ``left_unsaid`` of the next line that is let through says how many there were between.
    """

    def __init__(
        self,
        often: int = OFTEN,
        period_s: float = PERIOD_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._often = often
        self._period_s = period_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._said: dict[str, tuple[float, int, int]] = {}  # since, said, left unsaid

    def __call__(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        with self._lock:
            unsaid = self._admit(f"{event.get('event')} {event.get('part', '')}"[:200])
        if unsaid:
            event["left_unsaid"] = unsaid
        return event

    def _admit(self, name: str) -> int:
        """How many were left unsaid before this one. Raises ``DropEvent`` where it is too many."""
        now_s = self._now_s()
        since_s, said, unsaid = self._said.get(name, (now_s, 0, 0))
        if now_s - since_s >= self._period_s:
            since_s, said = now_s, 0
        if said >= self._often:
            self._said[name] = since_s, said, unsaid + 1
            raise structlog.DropEvent
        if name in self._said or len(self._said) < _EVENTS_MAX:
            self._said[name] = since_s, said + 1, 0
        return unsaid


class _Stderr:
    """Prints a line; without a stderr, or with one that takes no more, it is lost."""

    def msg(self, message: str) -> None:
        if sys.stderr is None:  # print() would take stdout, which is the engine's
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{message}\n")  # at once, or another thread's comes in between
            sys.stderr.flush()

    debug = info = warning = warn = error = critical = exception = msg


def _bounded(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Whoever chose a text, it does not fill the log."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _TEXT_MAX and key != "exception":
            event[key] = value[:_TEXT_MAX] + "…"
    return event


def _json(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    try:
        return json.dumps(event, default=str)
    except (TypeError, ValueError):
        return json.dumps({key: str(value) for key, value in event.items()})


def _text(logger: Any, method: str, event: Mapping[str, Any]) -> str:
    """``joulemeter: warning: gpu_left_out: gpu=1 reason="…" remedy="…" at=…``."""
    rest = dict(event)
    name, level, at = (rest.pop(key, "") for key in ("event", "level", "timestamp"))
    told = rest.pop("exception", None)
    remedy = {"remedy": rest.pop("remedy")} if "remedy" in rest else {}
    pairs = {**rest, **remedy, "at": at}
    line = f"joulemeter: {level}: {name}: " + " ".join(f"{k}={_word(v)}" for k, v in pairs.items())
    if told:  # each line of it is one of ours, too
        line += "".join(f"\njoulemeter: | {printable(part)}" for part in str(told).splitlines())
    return line


def _word(value: Any) -> str:
    """Quoted where it has to be; what a terminal would obey is escaped."""
    text = value if isinstance(value, str) else str(value)
    if text.isprintable() and not set(' "=') & set(text) and text:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


class _Others(logging.Handler):
    """What libraries say by Python's own logging."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger("joulemeter.library")
        error = record.exc_info[1] if record.exc_info else None
        log.log(
            record.levelno,
            "library",
            part=record.name,
            reason=record.getMessage().strip(),
            **({} if error is None else {"exc_info": error}),
        )


def _catch_others() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _Others) for handler in root.handlers):
        root.addHandler(_Others())
    logging.captureWarnings(True)
    threading.excepthook = _thread_died


def _thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_type is not SystemExit:
        structlog.get_logger("joulemeter").error(
            "thread_died",
            part=died.thread.name if died.thread else "a thread",
            exc_info=died.exc_value,
            remedy="please report this",
        )
