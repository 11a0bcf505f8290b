"""Where the load is played: on a server that is started for it, on one that runs already, or on the
demo's simulated card."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import psutil

from meter.demo import process, stage
from meter.selftest import zeus
from meter.selftest.access import Access, Reach
from meter.selftest.findings import Findings, SelftestError, find
from meter.selftest.load import Load, LoadError, Size
from meter.selftest.price import Run, order, price
from meter.selftest.server import Server, url_of
from meter.selftest.steady import Streams
from meter.trace import TraceError, read_trace

T = TypeVar("T")
_TRACE = "trace.jsonl.gz"
_PAIR_S, _COLD_S = 10.0, 6.0
_PAIR_COMPANY = 64
_SETTLE_S = 20.0
_FLUSHED_S = 3.0
#: What the demo's engine holds at once (``meter.demo.engine.Limits``).
_DEMO_SIZE = Size(company=32, held=9000)


def of_trace(path: Path, window: zeus.Window | None = None) -> Findings:
    """What a recorded trace shows. Raises ``SelftestError``."""
    try:
        return find(read_trace(path), path.name, window)
    except TraceError as error:
        raise SelftestError(str(error)) from error


def of_demo(seconds: float, pairs: int = 0, size: Size | None = None) -> Findings:
    """The embedded engine on a simulated card. Raises ``SelftestError``."""
    with tempfile.TemporaryDirectory(prefix="joulemeter-selftest-") as name:
        folder = Path(name)
        made = stage.simulated(folder, process.free_port(8000))
        environ = {**os.environ, **made.environment, "JOULEMETER_CALIBRATION__REMEMBER": "false"}
        with (folder / "log.txt").open("wb") as log:
            server = Server(made.command, made.base_url, environ, made.options, log.fileno())
            return _judge(server, made.model, seconds, folder / _TRACE, pairs, size or _DEMO_SIZE)


def of_command(
    command: Sequence[str],
    url: str | None,
    model: str | None,
    seconds: float,
    trace: Path | None,
    pairs: int = 0,
    size: Size | None = None,
    reach: Reach | None = None,
) -> Findings:
    """A server that is started by ``command``, metered, and ended. Raises ``SelftestError``.

    ``url``: where it will serve, if its ``--port`` does not say; ``trace``: where to keep the
    record; ``pairs``: how often it is started with and without the meter in turn (``price``);
    ``reach``: how it is reached (by default as the command says). What server and meter say goes to
    stderr.
    """
    if trace is not None and not trace.parent.is_dir():
        raise SelftestError(f"--trace {trace}: there is no folder {trace.parent}; make it first")
    reach = reach or Reach.of(command, os.environ)
    server = Server(command, (url or url_of(command)).rstrip("/"), os.environ, reach=reach)
    with tempfile.TemporaryDirectory(prefix="joulemeter-selftest-") as name:
        return _judge(server, model, seconds, trace or Path(name) / _TRACE, pairs, size)


def _judge(
    server: Server, model: str | None, seconds: float, trace: Path, pairs: int, size: Size | None
) -> Findings:
    """The designed load on the metered server, then the pairs."""
    with server.metered("--record", str(trace)) as (life, meter), zeus.window() as opened:
        before_s, start_s = _cpu_s(life), time.monotonic()
        _play_on(server.access, meter, model, seconds, size)
        cpu_share = (_cpu_s(life) - before_s) / (time.monotonic() - start_s)
    found = of_trace(trace, opened.closed)
    priced = price(play_pairs(server, model, pairs, size))
    return replace(found, meter_cpu_share=cpu_share, price=priced)


def play_pairs(
    server: Server,
    model: str | None,
    pairs: int,
    size: Size | None,
    done: int = 0,
    keep: Callable[[Run], None] = lambda run: None,
    until_s: float = math.inf,
) -> list[Run]:
    """Metered and bare lives of the server in turn, each under the same streams.

    ``done``: runs that an earlier call has played; ``keep``: gets each when it is there;
    ``until_s``: no life is begun that would last longer, by the longest so far (monotonic).
    Raises ``SelftestError``.
    """
    runs: list[Run] = []
    longest_s = 0.0
    for metered, same in groupby(order(pairs)[done:]):
        start_s = time.monotonic()
        if start_s + longest_s > until_s:
            break
        with server.metered() if metered else server.bare():
            access = server.access
            served = access.model()
            chosen = size or _size(served)
            company = min(_PAIR_COMPANY, chosen.company)
            streams = Streams(access, model or served["id"], company, chosen.words)
            _broken_off(streams.run(metered, _COLD_S))  # a fresh server's first answers are slower
            for _ in same:
                print(f"streams, {'metered' if metered else 'bare'} …", file=sys.stderr)
                runs.append(_broken_off(streams.run(metered, _PAIR_S)))
                keep(runs[-1])
        longest_s = max(longest_s, time.monotonic() - start_s)
    return runs


def _cpu_s(life: subprocess.Popen[bytes]) -> float:
    """Of the meter's own process, without the server's."""
    times = psutil.Process(life.pid).cpu_times()
    return float(times.user + times.system)


def of_server(
    url: str,
    meter: str,
    model: str | None,
    seconds: float,
    trace: Path,
    size: Size | None = None,
    reach: Reach | None = None,
) -> Findings:
    """A server that runs under a meter that records to ``trace``. Raises ``SelftestError``."""
    url, meter = url.rstrip("/"), meter.rstrip("/")
    if _summary(meter) is None:
        raise SelftestError(
            f"no meter answers at {meter}: start the server with "
            f"`joulemeter run --record {trace} -- …`"
        )
    if not trace.exists():
        raise SelftestError(
            f"{trace} is not there: start the server with `joulemeter run --record {trace} -- …`"
        )
    with zeus.window() as opened:
        _play_on(Access(url, reach or Reach.of((), os.environ)), meter, model, seconds, size)
    time.sleep(_FLUSHED_S)
    return of_trace(trace, opened.closed)


def _play_on(
    server: Access, meter: str, model: str | None, seconds: float, size: Size | None
) -> None:
    served = server.model()
    load = Load(server, model or served["id"], size or _size(served))
    print(f"playing the designed load for about {seconds:.0f} s …", file=sys.stderr)
    _broken_off(load.play(seconds))
    _settle(meter)


def _summary(meter: str) -> dict[str, Any] | None:
    """What a meter says of itself; ``None`` where none answers there."""
    try:
        found = process.get_json(f"{meter}/v1/summary")
    except ValueError:
        return None
    return found if isinstance(found, dict) and "receipts_open" in found else None


def _broken_off(playing: Coroutine[Any, Any, T]) -> T:
    """Run it; raises ``SelftestError`` where the server does not take the load."""
    try:
        return asyncio.run(playing)
    except LoadError as error:
        raise SelftestError(f"the load broke off: {error}") from error


def _size(served: dict[str, Any]) -> Size:
    """Smaller prompts for a model with a short context."""
    longest = served.get("max_model_len")
    return Size(words=min(1.0, longest / 4096)) if isinstance(longest, int) else Size()


def _settle(meter: str) -> None:
    """Wait until every receipt is final."""

    def settled() -> bool:
        summary = _summary(meter)
        return summary is not None and not summary["receipts_open"]

    process.wait_until(settled, _SETTLE_S, pause_s=0.5)
