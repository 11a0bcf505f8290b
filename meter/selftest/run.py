"""``joulemeter selftest``: judges findings, prints, and writes files: what the command calls."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meter.selftest.access import Reach
from meter.selftest.findings import DeviceFindings, Findings, SelftestError
from meter.selftest.html import to_html
from meter.selftest.price import Price
from meter.selftest.promises import Promise, exit_code, promises
from meter.selftest.stage import of_command, of_demo, of_server, of_trace
from meter.selftest.text import to_text

__all__ = [
    "Reach",
    "SelftestError",
    "of_command",
    "of_demo",
    "of_server",
    "of_trace",
    "price_json",
    "show",
]


def show(found: Findings, json_out: Path | None = None, html_out: Path | None = None) -> int:
    """Print the report, write the files; returns the exit code. Raises ``SelftestError``."""
    kept = promises(found)
    print(to_text(found, kept))
    if json_out is not None:
        _write(json_out, json.dumps(to_json(found, kept), indent=1) + "\n")
    if html_out is not None:
        _write(html_out, to_html(found, kept))
    return exit_code(kept)


def to_json(found: Findings, kept: tuple[Promise, ...]) -> dict[str, Any]:
    """All figures, with the names that ``Findings`` gives them, and the promises."""
    judged = [{**one._asdict(), "verdict": one.verdict.value} for one in kept]
    told = asdict(found) | {
        "devices": [_device(device) for device in found.devices],
        "repeats": found.repeats and found.repeats._asdict(),
        "zeus": found.zeus and found.zeus._asdict(),
        "price": found.price and price_json(found.price),
    }
    return {"promises": judged, "exit_code": exit_code(kept), **told}


def price_json(one: Price) -> dict[str, Any]:
    """What metering costs, with names."""
    ratios = {"throughput": one.throughput._asdict(), "itl_p99": one.itl_p99._asdict()}
    return {**one._asdict(), **ratios}


def _device(device: DeviceFindings) -> dict[str, Any]:
    return asdict(device) | {
        "counter": device.counter._asdict(),
        "decode": [row._asdict() for row in device.decode],
        "prefill": [row._asdict() for row in device.prefill],
        "foreseen": device.foreseen
        and {**device.foreseen._asdict(), "quantiles": dict(device.foreseen.quantiles())},
        "alone": device.alone and device.alone._asdict(),
        "sweep": device.sweep and device.sweep._asdict(),
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SelftestError(f"cannot write {path}: {error.strerror}") from error
