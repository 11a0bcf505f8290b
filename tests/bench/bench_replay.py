"""How long a replay takes, beside parsing the same file with ``json`` alone.

Both in this process and in turns; of each the fastest round counts, in CPU seconds of the process
and its children. Traces as the meter records them: one engine, in full and in change form.

Two traces of 20 MB on a busy 2-core machine, 2026-11-25, as multiples of json: whole 3.8 (full
form) and 5.8 (change form), online 15 and 25. The target of 2.5 is not met. In change form json
takes 2.9 µs a line, so it would leave 7.2. Of 15.7 µs in another such run reading took 2.3, the
order 0.6, taking events in 3.9, and settlement 8.8: of that about half for the requests that end
(each ninth line), a quarter to see each interval's work three times, and most of the rest for two
searches of the counter's window. In full form, of 3.3 times json: reading 0.9, the order 0.1,
taking events in 1.0 (64 rows a step), settlement 1.3. Online settles four times a second of the
trace, as live, at some 2.5 ms each.
"""

from __future__ import annotations

import gc
import json
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench_figure import Figure
from bench_load import Fleet, Load

from meter.replay import CalibrationMode, replay
from meter.trace import TraceWriter, read_trace

TARGET = 2.5
ROUNDS = 3
LOADS = {
    "full form, 64 running": Load(running=64, turnover_per_s=3.2, change_form=False),
    "change form, 256 running": Load(running=256, turnover_per_s=12.8),
}


def write_trace(path: Path, load: Load, megabytes: float) -> None:
    """Record the load until the file is so big."""
    fleet = Fleet(load)
    writer = TraceWriter(
        path,
        tuple(e.device for e in fleet.engines),
        tuple(e.engine for e in fleet.engines),
    )
    while path.stat().st_size < megabytes * 1e6:
        for event in fleet.block(1.0):
            writer.write(event)
        writer.flush()
    writer.close()


def parse(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        for line in file:
            json.loads(line)


def whole(path: Path) -> None:
    replay(path)


def online(path: Path) -> None:
    replay(path, calibration=CalibrationMode.ONLINE)


_RUNS: dict[str, Callable[[Path], object]] = {
    "json": parse,
    "read_trace": read_trace,
    "replay, whole": whole,
    "replay, online": online,
}


def against_json(megabytes: float) -> Iterator[Figure]:
    """Replay / json for both forms of trace."""
    with tempfile.TemporaryDirectory() as folder:
        for n, (name, load) in enumerate(LOADS.items()):
            path = Path(folder) / f"{n}.jsonl"
            write_trace(path, load, megabytes)
            best = _fastest(path)
            yield Figure("replay", f"{name}: json", best["json"] / megabytes * 1e3, "ms a MB")
            yield from (
                Figure("replay", f"{name}: {run} / json", best[run] / best["json"], "", target)
                for run, target in (
                    ("read_trace", None),
                    ("replay, whole", TARGET),
                    ("replay, online", TARGET),
                )
            )


def _fastest(path: Path) -> dict[str, float]:
    best = dict.fromkeys(_RUNS, float("inf"))
    for _ in range(ROUNDS):
        for name, run in _RUNS.items():
            gc.collect()
            start = _cpu_s()
            run(path)
            best[name] = min(best[name], _cpu_s() - start)
    return best


def _cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
