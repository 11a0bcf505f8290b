"""Lines of traces, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

META = json.dumps(
    {
        "type": "meta",
        "version": 1,
        "engines": {"0": {"devices": ["GPU-0"], "model": "m"}},
        "devices": {"GPU-0": {"name": "H100", "quality": "measured"}},
    }
)


def line(type: str, **fields: Any) -> str:
    """One line. ``from`` is written ``from_``."""
    said = {"type": type} | {name.rstrip("_"): value for name, value in fields.items()}
    return json.dumps(said, separators=(",", ":"))


def clock(t: float, **fields: Any) -> str:
    """A line that says nothing but its time."""
    return line("clock", t=t, utc_ns=5, **fields)


def reading(t: float, energy_j: float = 5, device: str = "GPU-0", **fields: Any) -> str:
    return line("reading", t=t, device=device, energy_j=energy_j, **fields)


def step(seq: int, t1: float = 1, **fields: Any) -> str:
    """A step of a hundredth of a second, in which ``r`` decodes, unless told otherwise."""
    said: dict[str, Any] = {"t0": round(t1 - 0.01, 9), "t1": t1, "work": [["r", 1, 7, "d"]]}
    said |= fields
    return line("step", seq=seq, **{name: v for name, v in said.items() if v is not None})


def opened(id: str, t: float = 1, **fields: Any) -> str:
    return line("request", **({"event": "open", "id": id, "t": t} | fields))


def closed(id: str, t: float = 1, **fields: Any) -> str:
    return line("request", **({"event": "close", "id": id, "t": t} | fields))


def put(path: Path, *lines: str | bytes) -> Path:
    """A file of these lines."""
    data = b"\n".join(text.encode() if isinstance(text, str) else text for text in lines)
    path.write_bytes(data + b"\n")
    return path
