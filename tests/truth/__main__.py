"""``python -m tests.truth``: every scenario in a table, beside the rules that others use."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.truth.report import Row, print_coverage, print_table, run
from tests.truth.scenarios import SCENARIOS, build


def main() -> None:
    asked = _arguments()
    names = [name for name in SCENARIOS if fnmatch(name, asked.only)]
    if asked.write:
        _write(names, asked.seconds, asked.write)
        return
    console, progress = Console(width=140, highlight=False), Console(stderr=True)
    rows = []
    for row in _rows(names, asked.seconds, asked.jobs, asked.plots):
        progress.print(f"{row.name}: {row.seconds:.1f} s", style="dim", highlight=False)
        rows.append(row)
    print_table(rows, console)
    print_coverage(rows, console)
    for row in rows:
        if row.missed:
            console.print(f"{row.name} misses: {', '.join(row.missed)}")
    if asked.json:
        asked.json.write_text(json.dumps([row.json() for row in rows], indent=1))


def _rows(names: list[str], seconds: float | None, jobs: int, plots: Path | None) -> Iterator[Row]:
    task = partial(run, seconds=seconds, plots=plots)
    if jobs < 2:
        yield from map(task, names)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(task, names)


def _write(names: list[str], seconds: float | None, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(build(name, seconds=seconds).write(folder))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.truth", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help="scenarios of this name")
    parser.add_argument("--seconds", type=float, help="how long each runs (usual: its own length)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (usual: 2)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw each scenario there")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    parser.add_argument("--write", type=Path, metavar="DIR", help="only write the traces there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
