"""What the core costs, against what it is meant to cost.

    python tests/bench/core_scale.py [--only NAME] [--seconds 60] [--json OUT]

``scale``      8 engines × 1024 running × 40 steps/s, 5 % turnover a second: share of one core
``memory``     the same for an hour of simulated time: does what it holds grow?
``batch``      cost per step at 64, 512 and 4096 running
``precision``  thirty simulated days: digits lost
``replay``     time of a replay / time of parsing the same file with json

Prints ratios from one run; absolute times depend on the machine. All of it takes about a quarter of
an hour; ``--profile`` shows instead where the time of ``scale`` goes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from meter.runtime.one_thread import import_numpy

import_numpy()  # as the commands do, before anything else does

from bench_core import batch, memory, profile, scale  # noqa: E402
from bench_figure import HEADER, Figure  # noqa: E402
from bench_precision import precision  # noqa: E402
from bench_replay import against_json  # noqa: E402

Benchmark = Callable[[argparse.Namespace], Iterator[Figure]]
BENCHMARKS: dict[str, Benchmark] = {
    "scale": lambda given: scale(given.seconds),
    "batch": lambda given: batch(4 * given.seconds),
    "replay": lambda given: against_json(given.megabytes),
    "precision": lambda given: precision(given.days),
    "memory": lambda given: memory(given.minutes),
}


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.profile:
        profile(given.seconds)
        return 0
    figures: list[Figure] = []
    print(HEADER, flush=True)
    for name in given.only or BENCHMARKS:
        for figure in BENCHMARKS[name](given):
            figures.append(figure)
            print(figure.row(), flush=True)
    if given.json:
        lines = [json.dumps(figure._asdict(), ensure_ascii=False) for figure in figures]
        given.json.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What the core costs, measured against target.")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="may be repeated")
    parser.add_argument("--seconds", type=float, default=60, help="simulated: scale and batch")
    parser.add_argument("--minutes", type=float, default=60, help="simulated: memory")
    parser.add_argument("--days", type=float, default=30, help="simulated: precision")
    parser.add_argument("--megabytes", type=float, default=20, help="of each trace: replay")
    parser.add_argument("--profile", action="store_true", help="profile scale instead")
    parser.add_argument("--json", type=Path, help="write the figures here, one JSON line each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
