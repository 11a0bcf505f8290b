"""``joulemeter selftest``: gets a trace, finds, judges, prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meter.selftest.findings import Findings, SelftestError, find
from meter.selftest.promises import Promise, exit_code, promises
from meter.selftest.text import to_text
from meter.trace import TraceError, read_trace

__all__ = ["SelftestError", "of_trace", "show"]


def of_trace(path: Path) -> Findings:
    """What a recorded trace shows. Raises ``SelftestError``."""
    try:
        return find(read_trace(path), path.name)
    except TraceError as error:
        raise SelftestError(str(error)) from error


def show(found: Findings, json_out: Path | None = None) -> int:
    """Print the report, write the files; returns the exit code. Raises ``SelftestError``."""
    kept = promises(found)
    print(to_text(found, kept))
    if json_out is not None:
        _write(json_out, json.dumps(to_json(found, kept), indent=1) + "\n")
    return exit_code(kept)


def to_json(found: Findings, kept: tuple[Promise, ...]) -> dict[str, Any]:
    """All figures, with the names that ``Findings`` gives them, and the promises."""
    judged = [{**one._asdict(), "verdict": one.verdict.value} for one in kept]
    devices = [
        {**asdict(d), "counter": d.counter._asdict(), "decode": [r._asdict() for r in d.decode],
         **{n: v and v._asdict() for n, v in
            (("foreseen", d.foreseen), ("alone", d.alone), ("sweep", d.sweep))}}
        for d in found.devices
    ]  # fmt: skip
    told = asdict(found) | {
        "devices": devices,
        "repeats": found.repeats and found.repeats._asdict(),
    }
    return {"promises": judged, "exit_code": exit_code(kept), **told}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SelftestError(f"cannot write {path}: {error.strerror}") from error
