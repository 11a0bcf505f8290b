"""What the meter has not seen yet it does not judge: work of another kind, or by more at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from meter.attribution import Attributor
from meter.model import Engine, Event, Phase, Reading, RequestClosed, RequestOpened, Step, Work

from .scenes import GPU

CARD = replace(GPU, mem_bandwidth=3.35e12, power_limit_w=700.0)
ENGINE = Engine(
    "0",
    ("GPU-0",),
    model="m",
    params=1.35e8,
    active_params=1.35e8,
    weight_bytes=5.4e8,
    kv_bytes_per_token=46080.0,
    layers=30,
    heads=9,
    head_dim=64,
)
_TICK_S, _POLL_S = 0.1, 0.02
_REST_W = 110.0


class Joined:
    """Six requests that decode for ``decode_s``; then one after the other is prefilled and done.
    Before all of them one decodes alone for ``alone_s``, at 200 W instead of 300.

    A decode step takes some 66 ms and 20 J, slower as contexts grow and at times by a half; a
    prefill comes in 5 chunks of 50 tokens, each 0.12 s and 108 J: far from any prior, and more than
    the first one takes.
    """

    def __init__(self, decode_s: float, prefills: int, alone_s: float = 0.0) -> None:
        self._random = random.Random(4)
        self.events: list[Event] = []
        self._drawn: list[tuple[float, float]] = [(0.0, 0.0)]  # time, joules up to it
        self._seq = 0
        self._now = 1.0
        self._draw(1.0, _REST_W)
        self._decode(alone_s, ["alone"], 200.0)
        self._decode(decode_s, [f"d{i}" for i in range(6)], 300.0)
        for number in range(prefills):
            self._request(f"p{number}")
        self._read()
        self.events.sort(key=lambda event: event.t_ns)

    def _decode(self, seconds: float, names: list[str], power_w: float) -> None:
        for name in names:
            self.events.append(RequestOpened("0", name, _ns(self._now), prompt_tokens=30))
        context = 30
        end = self._now + seconds
        while self._now < end:
            context += 1
            took = 0.066 + 1e-5 * context
            took *= self._random.choice([1.0, 1.0, 1.0, 1.0, 1.5]) * self._random.gauss(1, 0.03)
            work = [Work(name, 1, context, Phase.DECODE) for name in names]
            self._step(work, took, power_w * self._random.gauss(1, 0.03))
        for name in names:
            self.events.append(RequestClosed("0", name, _ns(self._now), "length", 30, 0, context))

    def _request(self, name: str) -> None:
        self.events.append(RequestOpened("0", name, _ns(self._now), prompt_tokens=250))
        for chunk in range(5):
            took = 0.12 * self._random.gauss(1, 0.03)
            power_w = 500.0 if name == "p0" else 900.0
            self._step([Work(name, 50, 50 * chunk, Phase.PREFILL)], took, power_w)
        for k in range(20):
            took = 0.066 * self._random.gauss(1, 0.03)
            self._step([Work(name, 1, 250 + k, Phase.DECODE)], took, 300.0)
        self.events.append(RequestClosed("0", name, _ns(self._now), "length", 250, 0, 21))

    def _step(self, work: list[Work], took: float, power_w: float) -> None:
        start = self._now + 0.0005
        self._draw(start, _REST_W)
        self._draw(start + took, power_w)
        self.events.append(Step("0", 0, self._seq, _ns(start), _ns(start + took), tuple(work)))
        self._seq += 1

    def _draw(self, until: float, power_w: float) -> None:
        t, joules = self._drawn[-1]
        self._drawn.append((until, joules + power_w * (until - t)))
        self._now = until

    def _read(self) -> None:
        ticks = list(self._ticks())
        for number in range(int(self._now / _POLL_S)):
            t = number * _POLL_S
            self.events.append(Reading("GPU-0", _ns(t), ticks[int(t / _TICK_S)]))

    def _ticks(self) -> Iterator[int]:
        """The counter in microjoules, at each of its ticks."""
        place = 0
        for number in range(int(self._now / _TICK_S) + 1):
            tick = number * _TICK_S
            while place + 2 < len(self._drawn) and self._drawn[place + 1][0] < tick:
                place += 1
            (t0, j0), (t1, j1) = self._drawn[place : place + 2]
            yield round(1e6 * (100 + j0 + (j1 - j0) * (tick - t0) / (t1 - t0)))


def play(joined: Joined) -> Attributor:
    core = Attributor([CARD], [ENGINE])
    for event in joined.events:
        core.feed(event)
    core.finish()
    return core


def test_work_of_a_new_kind_is_no_strangers() -> None:
    """Prefill comes when only decoding was learned: it is dear, and charged to who asked for it.

    Once taken for a stranger's it would teach nothing, and so would be one for ever.
    """
    core = play(Joined(decode_s=25.0, prefills=12))
    snapshot = core.snapshot()
    assert "foreign_load" not in snapshot.unattributed
    last = core.receipt("p11")
    assert last is not None
    assert abs(last.prefill_j / 540.0 - 1) < 0.1


def test_a_larger_batch_is_no_strangers() -> None:
    """One request alone tells nothing of what a second one adds: only the data sheet does, and the
    requests of an engine that is far from it pay for their own work."""
    core = play(Joined(decode_s=10.0, prefills=0, alone_s=10.0))
    assert "foreign_load" not in core.snapshot().unattributed


def test_steady_load_finds_no_window() -> None:
    """Nothing tells how late or how smeared the counter is: what was believed stays."""
    (known,) = play(Joined(decode_s=40.0, prefills=0)).learned()
    assert known.fit.window[:2] == (0.0, 0.0)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
