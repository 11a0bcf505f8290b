"""Makes a report and writes it: what the command line calls."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from meter.pricing import Tariff
from meter.report.figures import Report
from meter.report.from_prometheus import PrometheusError, Window
from meter.report.from_prometheus import from_prometheus as _from_prometheus
from meter.report.from_trace import from_trace as _from_trace
from meter.report.html import to_html
from meter.trace import TraceError

__all__ = ["ReportError", "Tariff", "from_prometheus", "from_trace", "to_json", "window", "write"]

_AGO = re.compile(r"-(\d+(?:\.\d+)?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class ReportError(Exception):
    """Nothing can be reported; the message has the remedy."""


def from_trace(path: Path, tariff: Tariff) -> Report:
    """Raises ``ReportError``."""
    try:
        return _from_trace(path, tariff)
    except TraceError as error:
        raise ReportError(str(error)) from error


def from_prometheus(url: str, start: datetime, end: datetime) -> Report:
    """Raises ``ReportError``."""
    try:
        return _from_prometheus(url, Window(start.timestamp(), end.timestamp()))
    except PrometheusError as error:
        raise ReportError(str(error)) from error


def window(start: str, end: str, now: datetime | None = None) -> tuple[datetime, datetime]:
    """Two times as they are typed: ISO 8601 (UTC where no zone is given), ``now``, or ``-24h``
    (before now, or for the start before the end). Raises ``ReportError``."""
    until = _time(end, now or datetime.now(UTC))
    since = _time(start, until)
    if since >= until:
        raise ReportError(f"--from {start:.80} is not before --to {end:.80}")
    return since, until


def _time(text: str, base: datetime) -> datetime:
    if text == "now":
        return base
    ago = _AGO.fullmatch(text)
    if ago:
        try:
            return base - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        except OverflowError:
            raise ReportError(f"{text!r:.80} is before all time: give one as -24h") from None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ReportError(
            f"{text!r:.80} is no time: give one as 2026-11-25T08:00Z, or -24h, or now"
        ) from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def write(report: Report, path: Path) -> None:
    """Write the page. Raises ``ReportError``."""
    try:
        path.write_text(to_html(report, datetime.now(UTC)), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from error


def to_json(report: Report) -> str:
    """All figures, with the names that ``Report`` gives them."""
    named = {
        **asdict(report),
        **{
            name: [row._asdict() for row in getattr(report, name)]
            for name in ("models", "tenants", "timeline", "meters", "asks")
        },
    }
    derived = {
        "attributed_j": report.attributed_j,
        "cost": report.cost,
        "mean_power_w": report.mean_power_w,
    }
    return json.dumps(named | derived)
