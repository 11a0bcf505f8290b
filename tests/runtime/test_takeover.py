"""A meter is killed in mid-run: the engine goes on, the next meter takes over and says what is
missing."""

import json
import signal
from pathlib import Path

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import ENGINE, UUID, closes, poll, the_command

from meter.model import Clock, Device, DeviceState, Quality, Reading, Snapshot
from meter.runtime.takeover import Gate, Note, Notes, Stood, boot_id
from meter.trace import read_trace

pytestmark = pytest.mark.slow


def engine_of(run):
    """The engine that a ``joulemeter run`` has started."""
    return the_command(run.process.pid)


def killed_in_mid_run(metered, *words):
    """A meter that has seen some requests, killed; its engine, and what it said last."""
    run = metered(*words, "--", *ENGINE, 60, 0)
    summary = poll(run.started(), lambda s: s["receipts_closed"] >= 4 and closes(s))
    engine = engine_of(run)
    run.process.kill()
    run.process.wait(30)
    return run, engine, summary


def test_the_next_meter_says_what_was_missed_and_nothing_else(metered, tmp_path):
    """What the counter moved between the two is unattributed, ``meter_down``; the sums hold, the
    engine has noticed nothing, and receipts come again with exact tokens."""
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    killed, engine, before = killed_in_mid_run(metered, "--record", old)
    assert engine.is_running()
    note = json.loads(
        (Path(engine.environ()["JOULEMETER_SOCKET"]).parent / "counters.json").read_text()
    )
    stood_uj = note["counters"][UUID][1]
    run = metered("--record", new, engine.pid, command="attach")
    url = run.started()
    summary = poll(url, lambda s: s["receipts_closed"] >= 6 and closes(s))
    ids = {r["id"] for r in poll(url, lambda r: r["receipts"], "/v1/receipts")["receipts"]}
    receipt = poll(url, lambda r: r["final"], f"/v1/receipts/{sorted(ids)[-1]}")
    assert (receipt["prompt_tokens"], receipt["completion_tokens"]) == (50, 10)
    assert receipt["fidelity"] == "step"
    assert receipt["missed"] is None
    engine.terminate()
    code, _ = run.end()
    assert code == 0, "the server has ended, and so does the meter"
    assert any("took_over" in line for line in run.lines), run.lines
    assert any("its steps" in line for line in run.lines), run.lines
    assert run.lines[-1].startswith("joulemeter: ")
    first = next(e for e in read_trace(new).events if isinstance(e, Reading))
    assert (first.missed, first.energy_uj - first.missed_uj) == ("meter_down", stood_uj)
    missed_j = first.missed_uj / 1e6
    assert missed_j > 0
    reasons = summary["unattributed_by_reason"]
    assert set(reasons) <= {"meter_down", "lost_steps"}
    assert reasons["meter_down"] == pytest.approx(missed_j, abs=1e-5)
    began_uj = next(e.energy_uj for e in read_trace(old).events if isinstance(e, Reading))
    settled_j = before["measured_j"] - before["pending_j"]
    assert stood_uj >= began_uj + round(settled_j * 1e6) - 1, "no joule is in both accounts"
    killed.end()


def test_a_socket_that_a_meter_listens_on_is_left_to_it(metered):
    """A second meter on one engine says so, and takes nothing from the first."""
    first = metered("--", *ENGINE, 60, 0)
    poll(first.started(), lambda s: s["receipts_closed"] >= 1)
    second = metered(engine_of(first).pid, command="attach")
    second.started()
    second.process.send_signal(signal.SIGTERM)
    assert second.end()[0] == 0
    assert any("another meter listens" in line for line in second.lines), second.lines
    seen = poll(first.url, lambda s: s["receipts_closed"] >= 3)["receipts_closed"]
    poll(first.url, lambda s: s["receipts_closed"] > seen)
    engine_of(first).terminate()
    first.end()


def test_a_meter_that_leaves_can_come_back(metered):
    """The server does not notice; the time without a meter is unattributed."""
    killed, engine, _ = killed_in_mid_run(metered)
    for _ in range(2):
        run = metered(engine.pid, command="attach")
        summary = poll(run.started(), lambda s: s["receipts_closed"] >= 2 and closes(s))
        assert summary["unattributed_by_reason"]["meter_down"] > 0
        run.process.send_signal(signal.SIGINT)
        assert run.end()[0] == 0
        assert engine.is_running()
    folder = Path(engine.environ()["JOULEMETER_SOCKET"]).parent
    assert (folder / "beside").exists(), "what the engine imports from stays"
    engine.terminate()
    killed.end()


# --- the note and the gate


def state(counter_uj, pending_j=0.0):
    device = Device(UUID, "card", Quality.SIMULATED)
    return DeviceState(
        device=device,
        measured_j=10.0,
        pending_j=pending_j,
        power_w=None,
        refresh_s=None,
        latency_s=None,
        coefficients={},
        coefficient_sd={},
        intervals=0,
        resets=0,
        last_reading_ns=5,
        counter_uj=counter_uj,
    )


def test_a_note_says_what_is_in_an_account(tmp_path):
    """What was pending when the meter died is missed as well."""
    Notes(tmp_path).write(Snapshot(9, 7, devices=(state(8_000_000, 1.5),)), ["a"])
    note = Notes(tmp_path).read()
    assert note == Note(boot_id(), frozenset("a"), {UUID: Stood(7, 6_500_000)})
    assert note.missed_by(["b", "a"]) == {UUID: Stood(7, 6_500_000)}


def test_a_note_of_other_engines_or_another_boot_counts_for_nothing(tmp_path):
    """Three days between two servers are nobody's loss."""
    note = Note(boot_id(), frozenset("a"), {UUID: Stood(7, 1)})
    assert note.missed_by(["b"]) == {}
    assert Note("another", frozenset("a"), note.counters).missed_by(["a"]) == {}


def test_a_meter_that_knows_nothing_yet_keeps_the_last_ones_note(tmp_path):
    """It may be killed as well before its first reading."""
    Notes(tmp_path).write(Snapshot(9, 7, devices=(state(8_000_000),)), ["a"])
    Notes(tmp_path).write(Snapshot(9, 7, devices=(state(None),)), [])
    assert Notes(tmp_path).read().sources == {"a"}


def noted(counters, sources=("a",)):
    return json.dumps({"boot": boot_id(), "sources": sources, "counters": counters})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "7", '{"boot": 1}', '{"counters": {"x": 1}}', "[" * 100_000, "9" * 9999),
        noted({UUID: [1e999, 5]}),
        noted({UUID: [5, float("nan")]}),
        noted({UUID: [5, 10**400]}),
        noted({UUID: [-1, 5]}),
        noted({UUID: [True, 5]}),
        noted({UUID: "57"}),
        noted({"x" * 9999: [0.5, 1]}),
        noted({}, [7]),
        noted({}, "a"),
    ],
    ids=range(17),
)
def test_a_damaged_note_is_none(tmp_path, text):
    """And said in one short line."""
    (tmp_path / "counters.json").write_text(text)
    with structlog.testing.capture_logs() as logs:
        assert Notes(tmp_path).read() is None
    (line,) = logs
    assert line["event"] == "note_not_read"
    assert len(line["reason"]) < 250


def test_where_there_is_no_note_nothing_is_said(tmp_path):
    with structlog.testing.capture_logs() as logs:
        assert Notes(tmp_path).read() is None
    assert logs == []


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_ALIKE = st.fixed_dictionaries(
    {
        "boot": st.just(boot_id()) | _ANY,
        "sources": st.just(["a"]) | _ANY,
        "counters": st.dictionaries(st.just(UUID) | st.text(), st.tuples(_ANY, _ANY) | _ANY),
    }
)


@given(_ANY | _ALIKE)
@settings(deadline=None)
def test_any_note_is_read_or_left(tmp_path_factory, found):
    """Whatever stands there: no error, neither then nor with the first reading."""
    folder = tmp_path_factory.mktemp("note")
    (folder / "counters.json").write_text(json.dumps(found))
    passed = []
    gate = Gate(passed.append)
    with structlog.testing.capture_logs() as logs:
        note = Notes(folder).read()
        gate.open(note.missed_by(["a"]) if note is not None else {})
        gate.push(Reading(UUID, 10**12, 10**9))
    assert len(passed) == 1
    assert (note is None) == any(line["event"] == "note_not_read" for line in logs)


def test_the_gate_holds_readings_back_and_the_first_one_says_what_was_missed():
    """Other events pass at once; a failed reading says nothing; each device says it once."""
    passed = []
    gate = Gate(passed.append)
    gate.push(Reading(UUID, 1, 5))
    gate.push(Clock(1, 2))
    assert passed == [Clock(1, 2)]
    gate.open({UUID: Stood(0, 3)})
    gate.push(Reading(UUID, 2, None, error="lost"))
    gate.push(Reading(UUID, 3, 10))
    gate.push(Reading(UUID, 4, 11))
    gate.push(Reading("other", 4, 1))
    assert passed[1:] == [
        Reading(UUID, 2, None, error="lost"),
        Reading(UUID, 3, 10, missed="meter_down", missed_uj=7),
        Reading(UUID, 4, 11),
        Reading("other", 4, 1),
    ]


def test_a_counter_that_was_reset_meanwhile_says_nothing():
    passed = []
    gate = Gate(passed.append)
    gate.open({UUID: Stood(0, 3)})
    gate.push(Reading(UUID, 3, 1))
    assert passed == [Reading(UUID, 3, 1)]
