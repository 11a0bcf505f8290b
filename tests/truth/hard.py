"""One scenario for each hard case that the issue names, on the H100 where nothing else is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.truth.board import Thermal
from tests.truth.card import Counter
from tests.truth.costs import H100, LIGHT, LLAMA_8B, MOE, Setup, Terms
from tests.truth.engine import Limits
from tests.truth.layouts import Pace
from tests.truth.moderate import CHAT, EVEN, LIGHT_CHAT, bursty, waving
from tests.truth.spec import Scenario, Stranger
from tests.truth.telling import Telling
from tests.truth.workload import Choice, Either, LogNormal, Mix, Profile, Uniform

#: What the scenarios below change one thing of.
BASE = Scenario("base", "", mix=CHAT, profile=waving(8.0), seed=7)
_SHARP = Counter(lag_s=0.0, smear_s=0.0)
_EVERY = Telling(full_every=1)


def _like(name: str, about: str, base: Scenario = BASE, **changed: object) -> Scenario:
    return replace(base, name=name, about=about, **changed)  # type: ignore[arg-type]


def loads() -> Iterator[Scenario]:
    """Arrivals from idle to saturation, and what it does to queues."""
    yield _like("idle", "a request now and then", profile=Profile(((20.0, 0.15), (10.0, 0.6))))
    yield _like(
        "ramp",
        "from idle to beyond saturation and back, with queueing",
        profile=Profile(
            ((15.0, 0.3), (15.0, 3.0), (15.0, 8.0), (15.0, 16.0), (15.0, 40.0), (60.0, 2.0))
        ),
        limits=Limits(budget=2048, seqs=128),
    )
    yield _like(
        "saturated",
        "always busy: static power cannot be seen",
        mix=replace(CHAT, output=LogNormal(180, 0.6, 10, 800)),
        profile=Profile(((1000.0, 30.0),)),
        limits=Limits(budget=2048, seqs=128),
        seconds=120.0,
    )
    yield _like("steady", "one rate, never idle", profile=Profile(((1000.0, 9.0),)))


def work() -> Iterator[Scenario]:
    """What requests ask, and how the engine goes about it."""
    yield _like("chunked", "a budget of 256 tokens a step", limits=Limits(budget=256))
    yield _like("cached", "most prompts largely cached", mix=replace(CHAT, cached=0.8))
    yield _like(
        "speculative", "three drafts a step, 60 % accepted", limits=Limits(drafts=3, accept=0.6)
    )
    yield _like(
        "preempted",
        "a small KV cache: preemption and recompute",
        limits=Limits(kv_tokens=20_000),
        mix=Mix(LogNormal(400, 0.8, 8, 3000), LogNormal(250, 0.6, 20, 800)),
        profile=waving(6.0),
    )
    yield _like("aborted", "a quarter goes away", mix=replace(CHAT, aborted=0.25))
    yield _like("overrun", "ends are seen a step late", limits=Limits(overrun=0.7))
    yield _like("gaps", "1.5 ms between steps", pace=Pace(gap_s=0.0015, late=0.02))
    yield _like(
        "long",
        "contexts up to 128k beside short ones",
        mix=Mix(
            Either(LogNormal(500, 1.0, 8, 8000), Uniform(60_000, 131_072), 0.02),
            LogNormal(120, 0.7, 1, 600),
        ),
        profile=Profile(((20.0, 2.0), (10.0, 0.3))),
        limits=Limits(budget=2048),
    )
    yield _like(
        "adapters",
        "three LoRA adapters, up to 9 % dearer",
        mix=replace(CHAT, adapters=(1.0, 1.03, 1.06, 1.09)),
    )
    yield _like(
        "embeddings",
        "prefill only",
        mix=Mix(LogNormal(250, 1.0, 8, 2000), Choice((0,))),
        profile=waving(40.0),
        limits=Limits(prefill_only=True),
    )
    yield _like("full-form", "every step told in full", telling=_EVERY)


def hardware() -> Iterator[Scenario]:
    """Cards and counters of every kind."""
    yield _like("noiseless", "no noise at all", noise=0.0, pace=Pace(noise=0.0, late=0.0))
    yield _like("short-chunks", "small chunks cost up to 25 % more", short_chunks=0.25)
    yield _like("thermal", "static power rises by 15 % when warm", thermal=Thermal())
    yield _like("capped", "a limit of 430 W is met in most steps", limit_w=430.0)
    yield _like(
        "capped-light",
        "a limit of 58 W on the light card",
        setup=LIGHT,
        mix=LIGHT_CHAT,
        profile=Profile(((12.0, 1.5), (15.0, 3.0), (10.0, 0.03))),
        limit_w=58.0,
    )
    for ms in (10, 20, 50):
        yield _like(f"refresh-{ms}ms", "a faster counter", counter=Counter(refresh_s=ms / 1000))
    yield _like("sharp", "neither lag nor smear", counter=_SHARP)
    yield _like("lag", "150 ms late", counter=Counter(lag_s=0.15, smear_s=0.0))
    yield _like("smear", "150 ms wide", counter=Counter(lag_s=0.0, smear_s=0.15))
    yield _like("lag-smear", "150 ms late and wide", counter=Counter(lag_s=0.15, smear_s=0.15))
    yield _like("coarse", "a counter in steps of 5 J", counter=Counter(step_uj=5_000_000))
    yield _like("jitter", "ticks that wander by 4 ms", counter=Counter(jitter_s=0.004))
    for hz in (9, 20, 100):
        yield _like(f"polls-{hz}hz", "polled so often", counter=Counter(poll_s=1.0 / hz))
    yield _alias()


def _alias() -> Scenario:
    """Steps of 20 ms, five to a tick and one to a poll, for as long as nobody comes or goes."""
    periodic = replace(
        H100,
        joules=Terms(5.0, 16.5e-3, 0.75e-6, 30e-3, 24e-6),
        seconds=Terms(20e-3, 29e-6, 1.1e-9, 0.0, 0.0),
    )
    return _like(
        "alias",
        "steps of 20 ms, in step with polls and ticks",
        setup=periodic,
        mix=Mix(LogNormal(300, 0.8, 8, 2000), Uniform(100, 400)),
        profile=Profile(((10.0, 2.0), (8.0, 0.03))),
        pace=Pace(noise=0.0, late=0.0),
        counter=Counter(poll_noise=0.0, late=0.0),
    )


def _larger(times: int) -> Setup:
    """A model so many times as large, for as many boards: each does what one H100 does for 8B."""
    model = replace(
        LLAMA_8B,
        name=f"llama-{8 * times}b",
        params=times * LLAMA_8B.params,
        weight_bytes=times * LLAMA_8B.weight_bytes,
        kv_bytes_per_token=times * LLAMA_8B.kv_bytes_per_token,
        heads=times * LLAMA_8B.heads,
    )
    return replace(H100, model=model)


def layouts() -> Iterator[Scenario]:
    """Engines over several devices, and devices under several engines."""
    yield _like("tp8", "eight devices, ticks out of phase", setup=_larger(8), layout="tp8")
    for stages in (2, 4):
        yield _like(
            f"pp{stages}",
            f"a pipeline of {stages} stages",
            setup=_larger(stages),
            layout=f"pp{stages}",
            telling=_EVERY,
        )
    yield _like(
        "dp2-experts",
        "two ranks share experts; dummy steps",
        setup=MOE,
        layout="dp2",
        facts="experts",
        profile=Profile(((10.0, 5.0), (8.0, 0.7), (6.0, 0.05))),
    )
    yield _like("handover", "prefill and decode on two engines", layout="handover")
    light = Profile(((12.0, 2.5), (15.0, 6.0), (6.0, 0.2), (9.0, 4.0)))
    for name, about in (
        ("shared", "two engines on one GPU"),
        ("shared-slow", "the same, slowing each other down"),
        ("shared-mixed", "a large and a small model on one GPU"),
        ("mig", "two slices on one board's counter"),
    ):
        yield _like(name, about, targets="shared", layout=name, profile=light)
    yield _like("two-node", "two nodes, readings in time", layout="tp2")
    yield _like(
        "two-node-late",
        "the same run, the second node's readings up to 0.5 s late",
        layout="tp2",
        late_readings_s=0.5,
    )


def faults() -> Iterator[Scenario]:
    """Strangers, losses and broken counters."""
    for seed in (1, 2):
        yield _like(
            f"stranger-{seed}",
            "150 to 250 W of somebody else, a quarter of the time",
            targets="stranger",
            mix=CHAT if seed == 2 else EVEN,
            profile=waving(9.0) if seed == 2 else bursty(11.0),
            stranger=Stranger(),
            seed=seed,
        )
    lossy = replace(_EVERY, lost=0.02)
    yield _like("lost-steps", "2 % of the lines lost", targets="lost", telling=lossy)
    yield _like(
        "lost-changes",
        "2 % of the lines lost, change form",
        targets="lost",
        telling=Telling(full_every=20, lost=0.02, lost_run=10.0),
    )
    yield _like(
        "startup",
        "from the first process to ready in 20 s",
        startup_s=(3.0, 23.0),
        levels=((-5.0, 70 / 115), (3.0, 150 / 115), (23.0, 1.0)),
    )
    yield _like("reset", "the counter starts over", counter=Counter(reset_s=80.0))
    yield _like("failed", "a fifth of the readings fail", counter=Counter(failed=0.2))
    yield _like("jump", "the counter leaps by 500 kJ", counter=Counter(jump_s=80.0))
