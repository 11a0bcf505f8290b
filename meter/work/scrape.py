"""What a server's own ``/metrics`` tells of its work: totals by model, no requests (``counter``).

For a vLLM without the plugin. Its counters are read twice a second; what they grew by in between is
told as one step of one stand-in request for each engine, so that the joules of the time go to the
model's prefill and decode by tokens, and to idle where nothing ran. Stand-ins open and close as the
server's requests finish, so that these are counted too; they have no receipts.
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import structlog
from prometheus_client.parser import text_string_to_metric_families

from meter.model import (
    Engine,
    EngineEvent,
    Event,
    Fidelity,
    Phase,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.trace.errors import LineError
from meter.trace.fields import ROWS_MAX, STEP_NS_MAX, as_amount, clean
from meter.work.ask import opener, remedy, request

EVERY_S = 0.5
#: No server's metrics are longer, and it has no more engines.
TEXT_BYTES_MAX = 16 << 20
ENGINES_MAX = 64
#: Who grew by more between two readings has not worked so much: its counters are others now.
_TOKENS_MAX, _FINISHED_MAX = 10**8, 10**5
_REASONS_MAX = 100
_TIMEOUT_S = 5.0
#: What is not there, or not understood; a server that starts may say 503.
_NO_ENGINES = {*range(400, 500), 501}
_CHUNK = 512
#: What is told must not come later than events may stand out of order.
_BACK_NS = 1_000_000_000
_SUMS = {
    "vllm:prompt_tokens_total": "prompt",
    "vllm:prompt_tokens_cached_total": "cached",
    "vllm:generation_tokens_total": "output",
}
_RUNNING = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_FINISHED = "vllm:request_success_total"


class ScrapeError(Exception):
    """The server's counters cannot be had; the message says why."""


class RefusedError(ScrapeError):
    """It does not let us in; the message says what to do. Waiting is of no use."""


class NoCountersError(ScrapeError):
    """It answers, and shows no counters of an engine."""


@dataclass
class Totals:
    """One engine's counters: tokens since its start, requests now, requests finished by reason."""

    model: str | None = None
    tokens: dict[str, float] = field(default_factory=dict)
    requests: float = 0.0
    finished: Counter[str] = field(default_factory=Counter)


def fetch(url: str, timeout_s: float = _TIMEOUT_S, is_known: bool = False) -> str:
    """The text of ``url``'s ``/metrics``. Raises ``ScrapeError``.

    ``is_known``: the kernel says whose socket it is, so that no certificate is asked for it.
    """
    try:
        ask = request(f"{url.rstrip('/')}/metrics")
        with opener(is_known).open(ask, timeout=timeout_s) as answer:
            data: bytes = answer.read(TEXT_BYTES_MAX + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = f"{url}/metrics: {error}"
        if (what := remedy(error)) is not None:
            raise RefusedError(f"{said}: {what}") from error
        is_other = isinstance(error, urllib.error.HTTPError) and error.code in _NO_ENGINES
        raise (NoCountersError if is_other else ScrapeError)(said) from error
    if len(data) > TEXT_BYTES_MAX:
        raise ScrapeError(f"{url}/metrics is longer than {TEXT_BYTES_MAX >> 20} MiB")
    return data.decode("utf-8", errors="replace")


def read(text: str) -> dict[str, Totals]:
    """Each engine's totals in a text of metrics. Raises ``ScrapeError`` where there are none."""
    wanted = (line for line in text.splitlines() if line.lstrip("# ").startswith(_NAMES))
    found: dict[str, Totals] = {}
    try:
        families = list(text_string_to_metric_families("\n".join(wanted) + "\n"))
    except ValueError as error:
        raise ScrapeError(f"the server's metrics cannot be read: {error}") from error
    for sample in (sample for family in families for sample in family.samples):
        try:
            value = as_amount(sample.value, sample.name)
        except LineError as error:
            raise ScrapeError(f"the server's metrics cannot be read: {error}") from error
        labels = {name: clean(label) for name, label in sample.labels.items()}
        totals = found.setdefault(labels.get("engine", "0"), Totals())
        totals.model = labels.get("model_name", totals.model)
        if sample.name in _SUMS:
            kind = _SUMS[sample.name]
            totals.tokens[kind] = totals.tokens.get(kind, 0.0) + value
        elif sample.name in _RUNNING:
            totals.requests += value
        elif sample.name == _FINISHED:
            totals.finished[labels.get("finished_reason", "unknown")] += int(value)
        if len(found) > ENGINES_MAX or len(totals.finished) > _REASONS_MAX:
            raise ScrapeError(
                f"the server's metrics name more than {ENGINES_MAX} engines or {_REASONS_MAX} "
                "reasons why requests end: these are no vLLM's"
            )
    if not any(totals.tokens for totals in found.values()):
        raise NoCountersError(f"the server shows no counter of tokens ({', '.join(_SUMS)})")
    return found


_NAMES = tuple(
    f"{word}{name}" for name in (*_SUMS, *_RUNNING, _FINISHED) for word in ("", "HELP ", "TYPE ")
)


class Counted:
    """One engine as its counters show it: readings of them in, events out."""

    def __init__(self, label: str, devices: tuple[str, ...]) -> None:
        self._label = label
        self._devices = devices
        self._epoch = self._seq = self._number = 0
        self._before: Totals | None = None
        self._t_ns = 0
        self._standing: str | None = None

    def take(self, now: Totals, t_ns: int) -> Iterator[Event]:
        """What happened up to ``t_ns``, the time of the reading."""
        before, since_ns = self._before, self._t_ns
        self._before, self._t_ns = now, t_ns
        if before is None or _fell(before, now) or _leapt(before, now):
            if before is not None:  # the server has started anew
                yield from self.end(t_ns)
                self._epoch += 1
                self._seq = 0
            info = Engine(self._label, self._devices, now.model, Fidelity.COUNTER)
            yield EngineEvent(self._label, t_ns, "ready", self._epoch, info)
            return
        work = {kind: int(now.tokens[kind] - before.tokens.get(kind, 0.0)) for kind in now.tokens}
        finished = list((now.finished - before.finished).elements())
        if not (any(work.values()) or finished or before.requests or now.requests):
            return
        if self._standing is None:
            yield self._open(max(since_ns, t_ns - _BACK_NS))
        yield self._step(work, max(since_ns, t_ns - STEP_NS_MAX), t_ns)
        for reason in finished:
            if self._standing is None:
                yield self._open(t_ns)
            yield self._close(t_ns, reason)
        if self._standing is not None and not now.requests:
            yield self._close(t_ns, "unknown")
        elif self._standing is None and now.requests:
            yield self._open(t_ns)

    def end(self, t_ns: int) -> Iterator[Event]:
        """The engine is gone, or is heard better elsewhere."""
        if self._standing is not None:
            yield self._close(t_ns, "unknown")
        yield EngineEvent(self._label, t_ns, "down", self._epoch)

    def _open(self, t_ns: int) -> RequestOpened:
        self._standing = f"counters-{self._label}-{self._epoch}-{self._number}"
        self._number += 1
        return RequestOpened(self._label, self._standing, t_ns)

    def _close(self, t_ns: int, reason: str) -> RequestClosed:
        standing, self._standing = str(self._standing), None
        return RequestClosed(self._label, standing, t_ns, reason)

    def _step(self, work: Mapping[str, int], t0_ns: int, t1_ns: int) -> Step:
        """In chunks: what attention costs grows with a prompt's square, not with all prompts'.

        So many and so large as a trace may hold them.
        """
        name = str(self._standing)
        computed = max(0, work.get("prompt", 0) - work.get("cached", 0))
        chunk = max(_CHUNK, -(-computed // (ROWS_MAX - 2)))
        sizes = [chunk] * (computed // chunk) + [computed % chunk]
        rows = [Work(name, size, 0, Phase.PREFILL) for size in sizes if size]
        if output := work.get("output", 0):
            rows.append(Work(name, output, 0, Phase.DECODE, output))
        seq, self._seq = self._seq, self._seq + 1
        return Step(self._label, self._epoch, seq, t0_ns, t1_ns, tuple(rows))


def _fell(before: Totals, now: Totals) -> bool:
    return any(now.tokens.get(kind, 0.0) < value for kind, value in before.tokens.items())


def _leapt(before: Totals, now: Totals) -> bool:
    """More than any server does between two readings: it was another that was read before."""
    grown = sum(now.tokens.values()) - sum(before.tokens.values())
    finished = now.finished.total() - before.finished.total()
    return grown > _TOKENS_MAX or finished > _FINISHED_MAX


class Scraper:
    """Reads the counters at ``url`` in a thread of its own, and pushes what they tell.

    ``devices``: those of the server's engines; each of several owns all of them.
    """

    def __init__(
        self,
        url: str,
        push: Callable[[Event], None],
        devices: tuple[str, ...],
        every_s: float = EVERY_S,
        is_known: bool = False,
    ) -> None:
        self._url = self.url = url
        self._push = push
        self._devices = devices
        self._every_s = every_s
        self._is_known = is_known
        self._engines: dict[str, Counted] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="joulemeter-scrape", daemon=True)
        self._log = structlog.get_logger("joulemeter.scrape")
        self.errors = 0

    def start(self) -> None:
        """Read once, then go on in the thread. Raises ``ScrapeError`` where that fails."""
        self._read()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and tell the end of every engine."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for engine in self._engines.values():
            for event in engine.end(time.monotonic_ns()):
                self._push(event)
        self._engines.clear()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._read()
            except ScrapeError:  # it may be busy, or gone: the next reading covers the time
                self.errors += 1
            except Exception:
                self.errors += 1
                if self.errors <= 3:
                    self._log.exception("scrape_failed", remedy="please report this")

    def _read(self) -> None:
        before_ns = time.monotonic_ns()
        text = fetch(self._url, is_known=self._is_known)
        now_ns = time.monotonic_ns()
        t_ns = max((before_ns + now_ns) // 2, now_ns - _BACK_NS)
        for label, totals in read(text).items():
            if label not in self._engines and len(self._engines) >= ENGINES_MAX:
                raise ScrapeError(f"the server has named more than {ENGINES_MAX} engines")
            engine = self._engines.setdefault(label, Counted(label, self._devices))
            for event in engine.take(totals, t_ns):
                self._push(event)
