"""``joulemeter demo``: the whole meter at work, on this machine, in one command.

The address of the page comes first, then a live table, at the end the sum that a sceptic can check
and how true the receipts are. ``stage.py`` says what is started; ``process.py`` starts it, exactly
as ``joulemeter run`` would for a user.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from meter.demo import closing
from meter.demo.load import Load
from meter.demo.process import EndedError, Metered, answers, free_port, page_port
from meter.demo.stage import (
    Stage,
    StageError,
    gpu,
    has_gpu,
    simulated,
    vllm_command,
    vllm_cpu,
)
from meter.demo.table import Frame, draw
from meter.demo.truth import read_truth
from meter.trace import TraceError

_FRAME_S = 0.5
_DRAIN_S = 60.0
_SETTLE_S = 15.0
_RECEIPTS_SHOWN = 6
_RECEIPTS_FETCHED = 200
_RECEIPTS_KEPT = 20_000
# About two hours; reading it all takes a minute.
_TRACE_BYTES = 24_000_000


def main(
    seconds: float | None = None,
    vllm: bool = False,
    port: int | None = None,
    record: Path | None = None,
) -> int:
    """Run the demo for ``seconds`` of traffic, or until Ctrl-C; returns the exit code.

    ``vllm``: the real vLLM on the CPU. ``port``: the page's (default: 29401, or the next free one).
    ``record``: where its trace is kept.
    """
    console = Console()
    if record is not None and not record.parent.is_dir():
        print(f"joulemeter: no trace can be kept in {record.parent}: no folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="joulemeter-demo-") as name, _Stopping() as stopping:
        try:
            stage = choose(Path(name), vllm)
            Demo(stage, Path(name), console, stopping, record).run(seconds, port)
        except (StageError, EndedError) as error:
            print(f"joulemeter: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


def choose(folder: Path, vllm: bool) -> Stage:
    """The best that this machine can show. Raises ``StageError``."""
    port = free_port(8000)
    if vllm:
        return vllm_cpu(port)
    if not has_gpu():
        return simulated(folder, port)
    command = vllm_command()
    if command is not None:
        return gpu(port, command)
    stage = simulated(folder, port)
    return replace(stage, notes=(*stage.notes, "there is a GPU here: with vLLM it is metered"))


class _Stopping:
    """Set by the first Ctrl-C, SIGTERM or SIGHUP: the demo ends in order; by a second, at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> threading.Event:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._stop)
        return self.event

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()


class Demo:
    """One run of a stage, from its start to its closing line."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        console: Console,
        stopping: threading.Event,
        record: Path | None = None,
    ) -> None:
        self._stage = stage
        self._folder = folder
        self._console = console
        self._stopping = stopping
        self._record = record
        self._start_s = time.monotonic()
        self._power_w: deque[float] = deque(maxlen=90)
        self._receipts: dict[str, dict[str, Any]] = {}
        self._newest: list[dict[str, Any]] = []
        self.load = Load(stage.base_url, stage.model, stage.profile)
        self.summary: dict[str, Any] | None = None

    @property
    def receipts(self) -> dict[str, dict[str, Any]]:
        """The final receipts, by id; the last 20,000 of a long run."""
        return self._receipts

    def run(self, seconds: float | None, port: int | None) -> closing.Comparison | None:
        """Everything; returns what the closing table shows. Raises ``EndedError``."""
        page = page_port() if port is None else free_port(port)
        if port and page != port:
            raise EndedError(
                f"port {port} cannot be had: choose another (--port), 0 for any free one"
            )
        self._console.print(f"joulemeter demo: {self._stage.title}", highlight=False)
        self._console.print(f"page and metrics: http://127.0.0.1:{page}", highlight=False)
        metered = Metered.start(self._stage, self._folder, page, self._record)
        try:
            with Live(console=self._console, auto_refresh=False, transient=False) as live:
                self._play(metered, live, seconds)
        finally:
            metered.stop()
        return self._close(metered)

    # --- while it runs

    def _play(self, metered: Metered, live: Live, seconds: float | None) -> None:
        def show(state: str) -> None:
            metered.check()
            self._look(metered)
            frame = self._frame(metered, state)
            live.update(draw(frame, self._console.width), refresh=True)

        if not self._wait("the engine starts", show, self._is_up, self._stage.start_s):
            if self._stopping.is_set():
                return
            raise EndedError(f"the engine does not serve:\n{metered.last_words()}")
        self.load.start()
        until_s = None if seconds is None else time.monotonic() + seconds
        while not self._stopping.is_set() and (until_s is None or time.monotonic() < until_s):
            show("traffic from idle to busy")
            self._stopping.wait(_FRAME_S)
        self._stopping.clear()  # from now on Ctrl-C cuts short what is left
        self.load.end()
        self._wait("the last answers", show, lambda: self.load.wait(0.0), _DRAIN_S)
        self._wait("the last joules settle", show, self._is_settled, _SETTLE_S)

    def _wait(
        self, state: str, show: Callable[[str], None], done: Callable[[], bool], seconds: float
    ) -> bool:
        """Show frames until something is done; false where it takes too long, or Ctrl-C came."""
        until_s = time.monotonic() + seconds
        while not done():
            show(state)
            if self._stopping.wait(_FRAME_S) or time.monotonic() >= until_s:
                return False
        show(state)
        return True

    def _is_up(self) -> bool:
        return answers(f"{self._stage.base_url}/health")

    def _is_settled(self) -> bool:
        """Whether every receipt is final."""
        summary = self.summary or {}
        return summary.get("receipts_open") == 0 and summary.get("requests_running") == 0

    def _look(self, metered: Metered) -> None:
        """What the meter publishes now."""
        summary = metered.summary()
        if summary is None:
            return
        self.summary = summary
        power = [d["power_w"] for d in summary["devices"] if d["power_w"] is not None]
        if power:
            self._power_w.append(sum(power))
        self._newest = metered.receipts(_RECEIPTS_FETCHED)
        self._receipts |= {receipt["id"]: receipt for receipt in self._newest}
        while len(self._receipts) > _RECEIPTS_KEPT:
            del self._receipts[next(iter(self._receipts))]

    def _frame(self, metered: Metered, state: str) -> Frame:
        return Frame(
            title=self._stage.title,
            url=metered.url,
            state=state,
            elapsed_s=time.monotonic() - self._start_s,
            requests_sent=self.load.sent,
            summary=self.summary,
            power_w=tuple(self._power_w),
            receipts=self._newest[:_RECEIPTS_SHOWN],
            notes=(*self._stage.notes, *self._problems()),
        )

    def _problems(self) -> list[str]:
        """What keeps the meter from doing its work, each with its remedy."""
        return list((self.summary or {}).get("health", {}).get("problems", ()))

    # --- at its end

    def _close(self, metered: Metered) -> closing.Comparison | None:
        self._say("")
        if self.summary is None or not self.summary["devices"]:
            reasons = self._problems() or ["it ended before the first reading"]
            raise EndedError(f"nothing was measured: {'; '.join(reasons)}")
        total = closing.add_up(self.summary)
        self._say(closing.sum_line(total, self.summary["quality"]))
        if metered.trace.exists() and metered.trace.stat().st_size > _TRACE_BYTES:
            self._say("no comparison with other rules: the record of so long a run is too large")
            return None
        try:
            comparison = self._compare(metered)
        except (TraceError, OSError) as error:
            self._say(f"no comparison: {error}")
            return None
        self._say_comparison(comparison)
        return comparison

    def _compare(self, metered: Metered) -> closing.Comparison:
        rules, order = closing.charge_by_rules(metered.trace)
        truth = None if self._stage.truth is None else read_truth(self._stage.truth)
        receipts_j = {id: receipt["energy_j"] for id, receipt in self._receipts.items()}
        return closing.compare(receipts_j, rules, order, truth)

    def _say_comparison(self, comparison: closing.Comparison) -> None:
        known = comparison.against == "truth"
        count = max((e.requests for e in comparison.by_rule.values()), default=0)
        self._say(
            f"error per request against the simulation's truth, {count} requests:"
            if known
            else f"how far other rules charge from these receipts, {count} requests "
            "(nobody knows the truth here):"
        )
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        columns = ["", "mean", "p99", f"after {closing.WARM_UP}: mean", "p99"]
        shown = len(columns) if comparison.warm else 3
        for name in columns[:shown]:
            table.add_column(name, justify="right" if name else "left")
        for row in closing.comparison_rows(comparison):
            table.add_row(*row[:shown], style="bold" if row[0] == "joulemeter" else None)
        self._console.print(table)

    def _say(self, line: str) -> None:
        # In a file a line stays one line; on a terminal it breaks between words.
        self._console.print(line, highlight=False, soft_wrap=not self._console.is_terminal)
