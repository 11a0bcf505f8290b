"""What was learned survives restarts: real files, and the real core before and after."""

import json
import math
import os
import stat
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.attribution import Attributor, Fit, Learned, from_facts, to_facts
from meter.attribution.coefficients import Coefficients
from meter.attribution.fit import SIZE, Window
from meter.config import CalibrationSettings
from meter.model import Device, DeviceFound, DeviceState, Engine, Layout, Quality, Snapshot
from meter.replay import CalibrationMode, replay
from meter.runtime.memory import Memory, state_directory
from meter.runtime.meter import _memory, _recall, _record
from tests.attribution.scenes import ENGINE, GPU, Scene

pytestmark = pytest.mark.slow

CARD = Device(
    "GPU-a/1",
    "NVIDIA H100 80GB HBM3",
    Quality.MEASURED,
    power_limit_w=700.0,
    driver="570.1",
    clocks_mhz=(1980, 2619),
)
OTHER = replace(CARD, id="GPU-b")
TP2 = Layout(tp=2)


def make_fit(static_w: float = 115.1) -> Fit:
    return Fit(
        (Coefficients(static_w, 2.0, 16.5e-3, 0.75e-6, 30e-3, 24e-6),),
        np.diag([0.1 / (k + 1) for k in range(SIZE)]),
        0.03,
        1234,
        converged=True,
        window=Window(0.0501, 0.02, 0.001),
    )


def snapshot(*devices: Device, layout: Layout | None = None) -> Snapshot:
    """Of an engine with these devices."""
    states = tuple(DeviceState(d, 0.0, 0.0, None, None, None, {}, {}, 0, 0, None) for d in devices)
    engine = Engine("0", tuple(d.id for d in devices), model="m", layout=layout)
    return Snapshot(0, None, devices=states, engines=(engine,))


def keep(directory, *learned: Learned, device=CARD, layout=None, now_s=1e9) -> Memory:
    """A meter's life in which this was learned."""
    memory = Memory(directory, lambda: now_s)
    memory.keep(learned, snapshot(device, layout=layout))
    return memory


def file_of(directory: Path) -> Path:
    (path,) = directory.glob("*.json")
    return path


def same(one: Fit, other: Fit) -> bool:
    """To the last bit, but for whether it has converged."""
    return to_facts(Learned("", "", replace(one, converged=False))) == to_facts(
        Learned("", "", replace(other, converged=False))
    )


# --- facts

finite = st.floats(-1e12, 1e12)
positive = st.floats(0.0, 1e12)
coefficients = st.tuples(st.builds(Coefficients, *[positive] * SIZE))
fits = st.builds(
    Fit,
    coefficients,
    st.lists(finite, min_size=SIZE**2, max_size=SIZE**2).map(
        lambda values: np.array(values).reshape(SIZE, SIZE)
    ),
    positive,
    st.integers(0, 2**53),
    st.booleans(),
    st.builds(Window, finite, positive, st.none() | positive),
    coefficients,
    positive,
)
learned = st.builds(Learned, st.text(min_size=1), st.text(min_size=1), fits)


def bits(value):
    """Distinct for every float, -0.0 included."""
    if isinstance(value, dict):
        return {key: bits(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [bits(inner) for inner in value]
    return value.hex() if isinstance(value, float) else value


@given(learned)
def test_facts_read_back_to_the_last_bit(known):
    """As JSON text and back, every float is the same float."""
    facts = to_facts(known)
    again = from_facts(json.loads(json.dumps(facts, allow_nan=False)))
    assert bits(to_facts(again)) == bits(facts)
    assert again.fit.covariance.tobytes() == known.fit.covariance.tobytes()
    assert (again.device, again.model) == (known.device, known.model)


@settings(max_examples=25)
@given(fits, st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40))
def test_a_file_reads_back_to_the_last_bit(tmp_path_factory, fit, model):
    """Whatever the numbers and the model's name."""
    directory = tmp_path_factory.mktemp("state")
    keep(directory, Learned(CARD.id, model, fit))
    (known,) = Memory(directory).restore([CARD])
    assert (known.device, known.model) == (CARD.id, model)
    facts = to_facts(Learned("", "", replace(fit, converged=False)))
    assert bits(to_facts(known) | {"device": "", "model": ""}) == bits(facts)


# --- terms


def test_what_was_kept_is_restored(tmp_path):
    """For the same device, on the same terms, each model by itself; and as not converged."""
    one, two = make_fit(100.0), make_fit(120.0)
    keep(tmp_path, Learned(CARD.id, "m", one), Learned(CARD.id, "n", two))
    restored = Memory(tmp_path).restore([CARD])
    assert {known.model: known.fit.coefficients[0].static_w for known in restored} == {
        "m": 100.0,
        "n": 120.0,
    }
    assert all(known.device == CARD.id for known in restored)
    assert not any(known.fit.converged for known in restored)
    assert same(restored[0].fit, one)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"driver": "580.2"}, "driver was 570.1, is 580.2"),
        ({"driver": None}, "driver was 570.1, is None"),
        ({"power_limit_w": 500.0}, "power_limit_w was 700.0, is 500.0"),
        ({"clocks_mhz": (1500, 2619)}, "clocks_mhz was (1980, 2619), is (1500, 2619)"),
        ({"clocks_mhz": None}, "clocks_mhz was (1980, 2619), is None"),
        ({"quality": Quality.SIMULATED}, "quality was measured, is simulated"),
    ],
)
def test_on_other_terms_it_is_dropped(tmp_path, change, says):
    """One line says why; the next calibration takes its place."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit()), Learned(CARD.id, "old", make_fit()))
    changed = replace(CARD, **change)
    with structlog.testing.capture_logs() as logs:
        assert Memory(tmp_path).restore([changed]) == []
    assert [line["event"] for line in logs] == ["calibration_dropped"]
    assert logs[0]["devices"] == {CARD.id: says}
    keep(tmp_path, Learned(CARD.id, "m", make_fit(77.0)), device=changed)
    assert Memory(tmp_path).restore([CARD]) == []
    (known,) = Memory(tmp_path).restore([changed])
    assert known.fit.coefficients[0].static_w == 77.0


def test_another_card_of_the_kind_is_a_seed(tmp_path):
    """Half as sure, and the counter's delay is to be found anew; the newest of several."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit(1.0)), now_s=1e9)
    third = replace(CARD, id="GPU-c")
    keep(tmp_path, Learned("GPU-c", "m", make_fit(2.0)), device=third, now_s=2e9)
    (known,) = Memory(tmp_path).restore([OTHER])
    assert (known.device, known.model) == (OTHER.id, "m")
    assert known.fit.coefficients[0].static_w == 2.0
    assert (known.fit.covariance == 2 * make_fit().covariance).all()
    assert known.fit.window == Window(0.0501, 0.02, None)


def test_its_own_comes_before_a_seed(tmp_path):
    """Even where it is older; for another model the seed still serves."""
    keep(tmp_path, Learned(OTHER.id, "m", make_fit(1.0)), device=OTHER, now_s=1e9)
    keep(
        tmp_path,
        *(Learned(CARD.id, model, make_fit(2.0)) for model in ("m", "n")),
        now_s=2e9,
    )
    restored = {known.model: known.fit for known in Memory(tmp_path).restore([OTHER])}
    assert restored["m"].coefficients[0].static_w == 1.0
    assert restored["m"].window.doubt_s == 0.001
    assert restored["n"].window.doubt_s is None


@pytest.mark.parametrize("change", [{"name": "NVIDIA L4"}, {"driver": "1"}, {"power_limit_w": 1.0}])
def test_a_card_of_another_kind_is_no_seed(tmp_path, change):
    """And nothing is said of it: it was never this card's."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit()))
    with structlog.testing.capture_logs() as logs:
        assert Memory(tmp_path).restore([replace(OTHER, **change)]) == []
    assert logs == []


def test_a_seed_that_taught_nothing_is_not_kept_as_its_own(tmp_path):
    """Nor is anything written anew that is known already."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit()))
    memory = Memory(tmp_path)
    seeds = memory.restore([OTHER])
    memory.keep(seeds, snapshot(OTHER))
    assert len(list(tmp_path.iterdir())) == 1
    learned_now = Learned(OTHER.id, "m", make_fit(3.0))
    memory.keep([learned_now], snapshot(OTHER))
    assert len(list(tmp_path.iterdir())) == 2
    written = (tmp_path / "GPU-b.json").stat().st_mtime_ns
    memory.keep([learned_now], snapshot(OTHER))
    assert (tmp_path / "GPU-b.json").stat().st_mtime_ns == written


def test_each_layout_has_an_entry(tmp_path):
    """And the newest of them is offered."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit(1.0)), layout=TP2, now_s=1e9)
    keep(tmp_path, Learned(CARD.id, "m", make_fit(2.0)), now_s=2e9)
    keep(tmp_path, Learned(CARD.id, "m", make_fit(3.0)), layout=TP2, now_s=3e9)
    entries = json.loads(file_of(tmp_path).read_text())["entries"]
    assert [entry["layout"] and entry["layout"]["tp"] for entry in entries] == [2, None]
    (known,) = Memory(tmp_path).restore([CARD])
    assert known.fit.coefficients[0].static_w == 3.0


def test_without_a_models_name_nothing_is_kept(tmp_path):
    """It would stand before the right one at the next start."""
    keep(tmp_path, Learned(CARD.id, "", make_fit()))
    assert list(tmp_path.iterdir()) == []


# --- files


def test_a_file_says_what_it_is(tmp_path):
    """Device, model, layout, terms, when; for its owner alone to read."""
    keep(tmp_path / "new" / "state", Learned(CARD.id, "m", make_fit()), layout=TP2)
    path = file_of(tmp_path / "new" / "state")
    assert path.name == "GPU-a%2F1.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (entry,) = json.loads(path.read_text())["entries"]
    assert entry.pop("facts")["coefficients"]["static_w"] == 115.1
    assert entry == {
        "device": CARD.id,
        "model": "m",
        "layout": {"tp": 2, "pp": 1, "dp": 1, "ep": 1},
        "terms": {
            "name": CARD.name,
            "quality": "measured",
            "driver": "570.1",
            "power_limit_w": 700.0,
            "clocks_mhz": [1980, 2619],
        },
        "utc": "2001-09-09T01:46:40Z",
    }


def test_a_file_stays_small(tmp_path):
    """However many models were served; the newest stay."""
    for number in range(40):
        keep(tmp_path, Learned(CARD.id, f"m{number}", make_fit()), now_s=1e9 + number)
    models = {known.model for known in Memory(tmp_path).restore([CARD])}
    assert models == {f"m{number}" for number in range(24, 40)}


def broken(text: str) -> dict[str, bytes]:
    """Files that cannot be used, of one that can."""
    whole = json.loads(text)
    odd = json.loads(text)
    odd["entries"][0]["facts"]["noise"] = -1
    long = text.replace("1234", "9" * 400)
    return {
        "empty": b"",
        "cut": text.encode()[:200],
        "not JSON": b"\x00\xff\xfe",
        "a list": b"[]",
        "nested": b"[" * 100_000,
        "large": text.encode() + b" " * (1 << 20),
        "version": json.dumps(whole | {"version": 99}).encode(),
        "no facts": json.dumps({"version": 1, "entries": [{"device": "x"}]}).encode(),
        "odd facts": json.dumps(odd).encode(),
        "NaN": text.replace("0.03", "NaN").encode(),
        "infinity": text.replace("0.03", "1e999").encode(),
        "absurd": text.replace("115.1", "1e300").encode(),
        "absurd covariance": text.replace("0.1,", "1e300,").encode(),
        "negative intervals": text.replace("1234", "-1234").encode(),
        "huge number": text.replace("0.03", "9" * 400).encode(),
        "long number": long.replace("115.1", "9" * 400).encode(),
        "not UTF-8": text.encode().replace(b"H100", b"\xff\xfe\xfd\xfc"),
    }


@pytest.mark.parametrize("kind", list(broken('{"entries":[{"facts":{}}]}')))
def test_a_file_that_cannot_be_used_is_named_and_set_aside(tmp_path, kind):
    """One short warning, whatever is wrong with it; other files are used all the same. A file of
    another version is no damage: it stays until it is overwritten."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit()))
    path = file_of(tmp_path)
    keep(tmp_path, Learned(OTHER.id, "m", make_fit(5.0)), device=OTHER)
    path.write_bytes(broken(path.read_text())[kind])
    with structlog.testing.capture_logs() as logs:
        memory = Memory(tmp_path)
        restored = memory.restore([CARD, OTHER])
        assert [known.fit.coefficients[0].static_w for known in restored] == [5.0, 5.0]
        memory.keep([Learned(CARD.id, "m", make_fit(6.0))], snapshot(CARD))
    assert [(line["event"], line["file"]) for line in logs] == [
        ("calibration_unreadable", str(path))
    ]
    assert 0 < len(logs[0]["reason"]) <= 300
    aside = [path.with_name(path.name + ".refused")] if kind != "version" else []
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "GPU-b.json", *aside])
    assert {k.fit.coefficients[0].static_w for k in Memory(tmp_path).restore([CARD])} == {6.0}


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.binary(max_size=4), st.integers(0, 40))
def test_no_damage_raises(tmp_path_factory, where, what, length):
    """Bytes overwritten, cut out or put in anywhere."""
    directory = tmp_path_factory.mktemp("state")
    keep(directory, Learned(CARD.id, "m", make_fit()))
    path = file_of(directory)
    data = path.read_bytes()
    where %= len(data)
    path.write_bytes(data[:where] + what + data[where + length :])
    with structlog.testing.capture_logs() as logs:
        for known in Memory(directory).restore([CARD]):
            assert all(map(math.isfinite, known.fit.coefficients[0]))
    assert "calibration_not_restored" not in {line["event"] for line in logs}


def test_no_folder_is_nothing_known(tmp_path):
    """The first start of all: no warning."""
    with structlog.testing.capture_logs() as logs:
        assert Memory(tmp_path / "none").restore([CARD]) == []
    assert logs == []


def test_what_is_no_file_is_passed_over(tmp_path):
    """A folder or a pipe of such a name: nobody waits on it."""
    (tmp_path / "GPU-x.json").mkdir()
    os.mkfifo(tmp_path / "GPU-y.json")
    (tmp_path / "notes.txt").write_text("mine")
    assert Memory(tmp_path).restore([CARD]) == []


def test_a_folder_that_cannot_be_used_is_said_once(tmp_path):
    """And never raises: a file stands in its place."""
    (tmp_path / "state").write_text("")
    with structlog.testing.capture_logs() as logs:
        memory = Memory(tmp_path / "state")
        assert memory.restore([CARD]) == []
        for static_w in (1.0, 2.0):
            memory.keep([Learned(CARD.id, "m", make_fit(static_w))], snapshot(CARD))
    events = [line["event"] for line in logs]
    assert events == ["calibration_not_restored", "calibration_not_kept"]
    assert all("calibration.directory" in line["remedy"] for line in logs)


@pytest.mark.parametrize("step", ["fsync", "replace", "fdopen"])
@pytest.mark.parametrize("after", [False, True])
def test_a_failing_step_leaves_a_whole_file(tmp_path, monkeypatch, step, after):
    """Each durable step fails, and also fails although it was done; then it works again."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit(1.0)))
    real = getattr(os, step)

    def fails(*words, **options):
        if after:
            done = real(*words, **options)
            if step == "fdopen":
                done.close()
        raise OSError("no space left on device")

    memory = Memory(tmp_path)
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(os, step, fails)
        memory.keep([Learned(CARD.id, "m", make_fit(2.0))], snapshot(CARD))
    assert [line["event"] for line in logs] == ["calibration_not_kept"]
    (known,) = Memory(tmp_path).restore([CARD])
    assert known.fit.coefficients[0].static_w in (1.0, 2.0)
    assert len(list(tmp_path.iterdir())) == 1
    memory.keep([Learned(CARD.id, "m", make_fit(3.0))], snapshot(CARD))
    (known,) = Memory(tmp_path).restore([CARD])
    assert known.fit.coefficients[0].static_w == 3.0


@pytest.mark.parametrize(
    ("set_", "environ", "found"),
    [
        ("/s", {"STATE_DIRECTORY": "/d", "HOME": "/h"}, "/s"),
        (None, {"STATE_DIRECTORY": "/d:/e", "XDG_STATE_HOME": "/x"}, "/d"),
        (None, {"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/joulemeter"),
        (None, {"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/joulemeter"),
        (None, {"HOME": "/h"}, "/h/.local/state/joulemeter"),
        (None, {}, None),
    ],
)
def test_where_it_is_kept(set_, environ, found):
    """As set, else systemd's, else XDG's, else under home."""
    place = state_directory(Path(set_) if set_ else None, environ)
    assert place == (Path(found) if found else None)


def test_without_a_place_or_a_wish_nothing_is_kept(tmp_path):
    """Switched off it is silent; without a home it says what to set."""
    with structlog.testing.capture_logs() as logs:
        assert _memory(CalibrationSettings(remember=False), {"HOME": "/h"}) is None
    assert logs == []
    with structlog.testing.capture_logs() as logs:
        assert _memory(CalibrationSettings(), {}) is None
    assert "calibration.directory" in logs[0]["remedy"]
    assert _memory(CalibrationSettings(directory=tmp_path), {}) is not None


# --- the core, before and after a restart


def life(scene: Scene, restored=()) -> Attributor:
    """A whole life of the meter."""
    core = Attributor((GPU,), (ENGINE,), restored=restored)
    for event in scene.events:
        core.feed(event)
    core.finish()
    return core


def mean_error(scene: Scene, receipts, from_s: float, to_s: float) -> float:
    """Over the requests that closed then; the scene begins at 1 s."""
    ended = [r for r in receipts if from_s <= r.closed_ns / 1e9 - 1 < to_s]
    assert len(ended) > 40
    return fmean(abs(r.energy_j / scene.truth_j[r.id] - 1) for r in ended)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The folder after a first life of a minute and a half."""
    directory = tmp_path_factory.mktemp("state")
    core = life(Scene(seed=1, seconds=90))
    Memory(directory).keep(core.learned(), core.snapshot())
    return directory


@pytest.fixture(scope="module")
def next_day():
    """The same engine and card, another day's requests; and the receipts of a meter without
    memory."""
    scene = Scene(seed=2, seconds=100)
    return scene, life(scene).drain()


def test_after_a_restart_the_first_receipts_are_good(state, next_day):
    """Far better than without, from the first seconds on, and never worse."""
    scene, without = next_day
    core = life(scene, Memory(state).restore([GPU]))
    receipts = core.drain()
    early = mean_error(scene, receipts, 0, 10)
    assert early < 0.5 * mean_error(scene, without, 0, 10)
    assert mean_error(scene, receipts, 0, 60) < mean_error(scene, without, 0, 60)
    assert mean_error(scene, receipts, 60, 999) < 1.15 * mean_error(scene, without, 60, 999)
    assert core.snapshot().total_j("unattributed") == 0


def test_a_new_card_of_the_kind_begins_better_too(state, next_day):
    """With the other card's calibration as a seed."""
    scene, without = next_day
    new = replace(GPU, id="GPU-new")
    (seed,) = Memory(state).restore([new])
    receipts = life(scene, [seed._replace(device=GPU.id)]).drain()
    assert mean_error(scene, receipts, 0, 10) < 0.5 * mean_error(scene, without, 0, 10)


def late(scene: Scene, found: DeviceFound, devices=(), **options) -> Attributor:
    """A life in which the card comes when the core runs already; the engine's ``devices``."""
    core = Attributor((), (replace(ENGINE, devices=devices),), **options)
    for event in (found, *scene.events):
        core.feed(event)
    core.finish()
    return core


def test_a_card_that_comes_late_begins_as_one_that_was_there(state, tmp_path):
    """To the microjoule, and so does the replay of its record."""
    scene, memory = Scene(seed=3, seconds=20), Memory(state)
    there = {r.id: r.energy_j for r in life(scene, memory.restore([GPU])).drain()}
    found = _recall(memory, DeviceFound(900_000_000, GPU))
    for devices in ((), (GPU.id,)):  # the second: from another meter, whose it was
        came = {r.id: r.energy_j for r in late(scene, found, devices).drain()}
        assert came == pytest.approx(there, abs=1e-6, rel=0)
    without = late(scene, replace(found, learned=()))
    assert {r.id: r.energy_j for r in without.drain()} != pytest.approx(there, abs=1e-6, rel=0)
    record = _record(tmp_path / "t.jsonl", (), replace(ENGINE, devices=()), [])
    for event in (found, *scene.events):
        record.write(event)
    record.close()
    again = replay(tmp_path / "t.jsonl", calibration=CalibrationMode.ONLINE).receipts
    assert {r.id: r.energy_j for r in again} == pytest.approx(there, abs=1e-6, rel=0)


def test_with_hindsight_a_late_cards_own_trace_teaches(state):
    """What it knew when it came is not needed."""
    scene, found = Scene(seed=3, seconds=20), _recall(Memory(state), DeviceFound(1, GPU))
    one, other = (late(scene, f, hindsight=True) for f in (found, replace(found, learned=())))
    assert one.drain() == other.drain() != []


def test_what_is_known_of_a_late_card_and_odd_is_left_out(state):
    """The rest of it is used."""
    (facts,) = _recall(Memory(state), DeviceFound(1, GPU)).learned
    found = DeviceFound(1, GPU, learned=({}, facts | {"noise": -1}, facts, {"device": 3}))
    core = late(Scene(seed=3, seconds=1.5), found)
    assert core.fits()[GPU.id].coefficients == from_facts(facts).fit.coefficients


def test_a_card_that_comes_late_does_not_forget_the_others(tmp_path):
    """What is known of them is not written anew."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit()))
    keep(tmp_path, Learned(OTHER.id, "m", make_fit(5.0)), device=OTHER)
    memory = Memory(tmp_path)
    first = memory.restore([CARD])
    memory.restore([OTHER])
    (path,) = tmp_path.glob("GPU-a*")
    written = path.stat().st_mtime_ns
    memory.keep(first, snapshot(CARD))
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("factor", [0.8, 2.0])
def test_a_wrong_calibration_is_put_right_in_the_first_minute(state, next_day, tmp_path, factor):
    """Too high or too low: after that the receipts are as good as without, and the work is not
    called a stranger's."""
    scene, without = next_day
    (right,) = Memory(state).restore([GPU])
    values = Coefficients(*(factor * value for value in right.fit.coefficients[0]))
    wrong = right._replace(fit=replace(right.fit, coefficients=(values,)))
    keep(tmp_path, wrong, device=GPU)
    core = life(scene, Memory(tmp_path).restore([GPU]))
    receipts = core.drain()
    assert mean_error(scene, receipts, 60, 999) < 1.25 * mean_error(scene, without, 60, 999)
    assert mean_error(scene, receipts, 0, 60) < 0.05
    snapshot = core.snapshot()
    assert snapshot.total_j("unattributed") < 0.01 * snapshot.measured_j
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)


def test_a_record_replays_from_where_the_live_core_began(state, tmp_path):
    """To the microjoule; without the calibration in its meta line it would not."""
    restored = Memory(state).restore([GPU])
    scene = Scene(seed=3, seconds=20)
    path = tmp_path / "t.jsonl"
    record = _record(path, (GPU,), ENGINE, restored)
    for event in scene.events:
        record.write(event)
    record.close()
    live = {r.id: r.energy_j for r in life(scene, restored).drain()}
    again = {r.id: r.energy_j for r in replay(path, calibration=CalibrationMode.ONLINE).receipts}
    assert again == pytest.approx(live, abs=1e-6, rel=0)
    assert {r.id: r.energy_j for r in life(scene).drain()} != pytest.approx(live, abs=1e-6, rel=0)


# --- odd numbers


def test_a_librarys_numbers_are_kept_as_pythons(tmp_path):
    """Wherever one comes from: what was learned is not lost for its type."""
    known = make_fit()
    odd = replace(
        known,
        window=Window(np.float64(0.0501), np.float32(0.25), np.float64(0.001)),
        intervals=np.int64(1234),
        noise=np.float64(0.03),
    )
    with structlog.testing.capture_logs() as logs:
        keep(tmp_path, Learned(CARD.id, "m", odd))
    assert logs == []
    (restored,) = Memory(tmp_path).restore([CARD])
    assert same(restored.fit, replace(known, window=Window(0.0501, 0.25, 0.001)))


@pytest.mark.parametrize(
    "spoilt",
    [
        {"noise": math.nan},
        {"misfit": math.inf},
        {"covariance": np.full((SIZE, SIZE), math.nan)},
        {"coefficients": (Coefficients(1e300, 2.0, 0.0, 0.0, 0.0, 0.0),)},
    ],
)
def test_what_is_no_number_is_not_kept(tmp_path, spoilt):
    """One model's fit was spoilt: it is said once, the other's is written, and what the file had of
    the first stays."""
    keep(tmp_path, Learned(CARD.id, "m", make_fit(1.0)))
    bad = Learned(CARD.id, "m", replace(make_fit(2.0), **spoilt))
    with structlog.testing.capture_logs() as logs:
        memory = keep(tmp_path, bad, Learned(CARD.id, "n", make_fit(3.0)))
        memory.keep([bad._replace(fit=replace(bad.fit))], snapshot(CARD))
    assert [line["event"] for line in logs] == ["calibration_not_kept"]
    restored = {known.model: known.fit for known in Memory(tmp_path).restore([CARD])}
    assert {model: fit.coefficients[0].static_w for model, fit in restored.items()} == {
        "m": 1.0,
        "n": 3.0,
    }
