"""Many faults at once, drawn by a seed: whatever comes, every joule is in one account, none is
invented, and no more is lost than the faults can hide."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter.demo.card import Card, CardSpec, Fault
from tests.power.rig import REFRESH_S, closes, hidden_s, rig

pytestmark = pytest.mark.slow

A, B = "GPU-aaaa-0", "GPU-bbbb-1"
POWER_W = 500.0
_MS = 1_000_000
#: A fault after which the counter goes on as if nothing had been; the others hide what was drawn
#: around them.
_HARMLESS = (Fault.HANG, Fault.LOST, Fault.STUCK, Fault.ERROR)


@pytest.fixture
def card(tmp_path: Path, card: Card) -> Iterator[Card]:
    specs = [CardSpec(uuid=uuid, refresh_s=REFRESH_S, seed=3) for uuid in (A, B)]
    made = Card.create(tmp_path / "card", specs)
    yield made
    made.close()


def script(card: Card, seed: int, from_ns: int) -> dict[int, list[int]]:
    """Power that varies and some six faults on each card over three seconds; by card, the moments
    around which what was drawn may be lost."""
    rnd = random.Random(seed)
    hidden: dict[int, list[int]] = {0: [], 1: []}
    for device in (0, 1):
        for step in range(60):
            card.post(device, rnd.uniform(60, POWER_W), from_ns + step * 50 * _MS)
        for slot in range(6):
            begin_ns = from_ns + (200 + 450 * slot) * _MS
            end_ns = begin_ns + rnd.randrange(20, 200) * _MS
            kind = rnd.choice((*_HARMLESS, Fault.JUMP, Fault.RESET))
            leap_mj = rnd.choice((-80_000, 300_000_000)) if kind is Fault.JUMP else 999
            card.fault(device, kind, begin_ns, end_ns, value=leap_mj)
            if kind not in _HARMLESS:
                hidden[device].append(begin_ns)
    if rnd.random() < 0.5:
        begin_ns = from_ns + 2950 * _MS
        card.reload_driver(begin_ns, begin_ns + 100 * _MS)
        for moments in hidden.values():
            moments.append(begin_ns)
    return hidden


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_the_sum_holds(
    library: str, card: Card, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accounts close to the microjoule; what is measured is at most what was drawn, and lacks no
    more than was hidden; both cards are read again in the end."""
    monkeypatch.setattr("meter.power.lane._MOMENT_S", 0.1)
    for device in (0, 1):
        card.post(device, 100.0, time.monotonic_ns() - 10**9)
    with rig(library, card) as running:
        for id in (A, B):
            running.more(id, 5)
        begun_ns = time.monotonic_ns() + 100 * _MS
        hidden = script(card, seed, begun_ns)
        time.sleep(max(0.0, (begun_ns + 3_400 * _MS - time.monotonic_ns()) / 1e9))
        for id in (A, B):
            running.more(id, 5)
        snapshot = running.end()
        assert closes(snapshot), f"seed {seed}"
        for state in snapshot.devices:
            device = (A, B).index(state.device.id)
            good = running.of(state.device.id, good=True)
            drawn_j = card.energy_j(device, good[-1].t_ns) - card.energy_j(device, good[0].t_ns)
            edges_j = 2 * POWER_W * REFRESH_S + 1.0
            lacks_j = drawn_j - state.measured_j
            most_j = POWER_W * hidden_s(hidden[device], good) + edges_j
            assert -edges_j < lacks_j < most_j, f"seed {seed}"
