"""The one command for a GPU host, on the simulated card: every stage, and where it goes on."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from meter.demo import process, stage
from meter.demo.card import Card, CardSpec
from meter.demo.nvml_build import build
from meter.power.nvml_calls import start, use_library
from meter.selftest.findings import SelftestError
from meter.selftest.price import Counted, Run, Slot
from meter.trace import read_trace
from tests.grafana.promql import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "deploy" / "gpu-evidence"
# The real sizes are for a GPU; the demo's engine holds less, and a test has less time.
SMALL = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import evidence
from meter.selftest import stage, steady
from meter.selftest.load import Size
stage._size = lambda served: Size(1, 1, 1.0, 4, 9000, 1, 2)
stage._PAIR_S, stage._COLD_S, steady._WARM_S = 0.5, 0.5, 0.1
sys.exit(evidence.main(sys.argv[1:]))
"""


MODEL_OF = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import evidence
print(evidence.model_of(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A simulated card whose NVML any program finds, and what serves on it."""
    folder = tmp_path_factory.mktemp("evidence")
    made = stage.simulated(folder, process.free_port())
    library = Path(made.options[-1])
    environ = {
        **os.environ,
        **made.environment,
        "LD_LIBRARY_PATH": str(library.parent),
        "JOULEMETER_POWER__SOURCE": "nvml",
        "JOULEMETER_POWER__NVML_LIBRARY": str(library),
        "JOULEMETER_CALIBRATION__REMEMBER": "false",
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SMALL, str(folder / "out"), *words, "--", *made.command],
            env=environ, capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return folder / "out", run


def test_look_and_selftest_leave_what_a_reader_needs(rig):
    """The card before any server; the judged load; a trace that can be read, with its facts."""
    out, run = rig
    run("--stage", "look", "--stage", "selftest", "--seconds", "1")
    looked = json.loads((out / "look.json").read_text())
    assert looked["gpu"]["uuid"].startswith("GPU-")
    assert looked["tick_s"] == pytest.approx(0.1, rel=0.05)
    assert looked["call_us"]["median"] > 0
    assert looked["bare_idle_w"] == pytest.approx(70.0, rel=0.02)
    assert looked["context_idle_w"] == pytest.approx(115.0, rel=0.02)
    assert len(looked["square"]["by_phase_j"]) == 8
    assert 0 <= looked["square"]["swing"] < 1
    facts = json.loads((out / "trace.meta.json").read_text())
    trace = out / "trace.jsonl.zst"
    assert facts["sha256"] == hashlib.sha256(trace.read_bytes()).hexdigest()
    assert facts["simulated"] is True and facts["quality"] == "simulated"
    assert "meter.demo.serve" in facts["command"] and facts["versions"]["joulemeter"]
    assert len(read_trace(trace).events) > 100
    assert json.loads((out / "selftest.json").read_text())["requests"] > 10


def test_pairs_go_on_where_they_stopped(rig):
    """A call whose time is over plays one life; the next ones play the rest, and no run twice."""
    _, run = rig
    said = run("--stage", "pairs", "--pairs", "4", "--minutes", "0.001")
    assert "1 of 8 runs are there" in said
    said = run("--stage", "pairs", "--pairs", "4", "--minutes", "5")
    assert "8 of 8 runs are there" in said
    assert "between" in said
    assert "8 of 8 runs are there" in run("--stage", "pairs", "--pairs", "4")


def test_the_plugin_stage_names_the_model_it_needs(rig, tmp_path):
    """The demo's engine has no folder with a configuration: it says so, and goes on."""
    _, run = rig
    assert "left out: no folder" in run("--stage", "plugin")
    (tmp_path / "config.json").write_text("{}")
    found = subprocess.run(
        [sys.executable, "-c", MODEL_OF, "vllm", "serve", str(tmp_path), "--port", "1"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    assert found.strip() == str(tmp_path)


def test_the_report_holds_all_of_it(rig):
    """A table with date, versions and command; every promise once; plots that stand alone."""
    out, run = rig
    run("--stage", "report")
    told = json.loads((out / "results.json").read_text())
    assert {"host", "look", "selftest", "price"} <= set(told)
    table = (out / "results.md").read_text()
    for words in ("simulated", told["host"]["date"], "meter.demo.serve", "idle, bare", "J a token"):
        assert words in table
    for promise in told["selftest"]["promises"]:
        assert table.count(f"| {promise['says']}") == 1
    plots = sorted(out.glob("plot-*.svg"))
    assert len(plots) >= 1
    assert all('xmlns="http://www.w3.org/2000/svg"' in plot.read_text() for plot in plots)


def test_its_page_names_every_stage():
    """And no option that is not there."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    usage = subprocess.run(
        [sys.executable, str(FOLDER / "evidence.py"), "--help"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    for stage_ in ("look", "selftest", "pairs", "plugin", "report"):
        assert f"`{stage_}`" in page and stage_ in usage
    assert "--stage" in usage


def test_without_a_command_it_says_so(tmp_path):
    """Only look and report need none."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "evidence.py"), str(tmp_path), "--stage", "selftest"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "after -- name the command" in done.stderr


def test_a_server_that_does_not_start_costs_only_its_stage(tmp_path):
    """No traceback; what is there is reported."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "evidence.py"), str(tmp_path), "--stage", "selftest",
         "--stage", "report", "--", "sh", "-c", "exit 7", "--port", str(process.free_port())],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "evidence: selftest: the server ended with code 7" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "results.md").exists()


def test_what_nobody_foresaw_costs_only_its_stage(tmp_path, monkeypatch, capsys):
    """On a lent machine the other stages are worth more than a clean end."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import evidence

    monkeypatch.setenv("JOULEMETER_POWER__SOURCE", "nvml")  # it would set it for good
    monkeypatch.setattr(evidence, "_look", lambda *_: 1 / 0)
    assert evidence.main([str(tmp_path), "--stage", "look", "--stage", "report"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert "card not known" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_runs_come_back_as_they_were_kept(tmp_path, monkeypatch):
    """What is appended by one call is what the next one reads."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import evidence

    slots = (Slot(3, (0.01, 0.02)), Slot(0, ()))
    runs = [Run(metered, slots, Counted.ENDS) for metered in (True, False)]
    left = iter(runs)
    monkeypatch.setattr(evidence, "play_pairs", lambda *said: said[-2](next(left)))
    evidence._pairs(tmp_path, ["serve"], 4, 0.0)
    evidence._pairs(tmp_path, ["serve"], 4, 0.0)
    assert evidence._runs(tmp_path / "runs.jsonl.gz") == runs


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """``look.py``, over an NVML that shows two cards."""
    path = tmp_path / "card"
    Card.create(path, [CardSpec(uuid="GPU-aaaa"), CardSpec(uuid="GPU-bbbb")]).close()
    monkeypatch.setenv("JOULEMETER_FAKE_NVML", str(path))
    start(str(build(tmp_path)))
    spec = importlib.util.spec_from_file_location("look", FOLDER / "look.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    pynvml.nvmlShutdown()
    use_library(None)


@pytest.mark.parametrize(
    ("cuda", "environ", "uuid", "by"),
    [
        ({"uuid": "bbbb"}, {}, "GPU-bbbb", "CUDA's UUID"),
        ({"uuid": "GPU-bbbb"}, {"CUDA_VISIBLE_DEVICES": "0"}, "GPU-bbbb", "CUDA's UUID"),
        ({"uuid": "", "place": [0, 2, 0]}, {}, "GPU-bbbb", "CUDA's PCI address"),
        ({"uuid": "zzz", "place": [0, 1, 0]}, {}, "GPU-aaaa", "CUDA's PCI address"),
        ({"place": [None] * 3}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}, "GPU-bbbb", "CUDA_VISIBLE"),
        (None, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "GPU-bbbb", "PCI"),
    ],
)
def test_what_is_measured_is_cudas_first_gpu(two_gpus, cuda, environ, uuid, by):
    """The load runs on CUDA's device 0, which need not be NVML's: by its UUID, its place, or what
    the variable names."""
    handle, found_by = two_gpus.gpu_of(cuda, environ)
    assert pynvml.nvmlDeviceGetUUID(handle) == uuid
    assert by in found_by


@pytest.mark.parametrize("environ", [{}, {"CUDA_VISIBLE_DEVICES": "1"}])
def test_a_gpu_is_not_guessed(two_gpus, environ):
    """Of two, where CUDA cannot be asked: it ends with what to set."""
    with pytest.raises(SystemExit, match="CUDA_VISIBLE_DEVICES"):
        two_gpus.gpu_of(None, environ)


def test_cuda_is_asked_in_a_process_of_its_own(two_gpus, tmp_path, monkeypatch):
    """So that no context is there when idle power is measured; without torch nothing is told."""
    torch = tmp_path / "with" / "torch.py"
    torch.parent.mkdir()
    torch.write_text(
        "class cuda:\n"
        "    @staticmethod\n"
        "    def get_device_properties(index):\n"
        "        class P: uuid='bbbb'; pci_domain_id=0; pci_bus_id=2; pci_device_id=0\n"
        "        return P\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(torch.parent))
    assert two_gpus.cudas_first() == {"uuid": "bbbb", "place": [0, 2, 0]}
    torch.write_text("raise ImportError")
    assert two_gpus.cudas_first() is None


CARD = {"card": {"name": "H100"}, "simulated": False, "command": "serve", "versions": {"vllm": "1"}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"card": {"name": "L4"}},
            "is not of the same card: {'name': 'H100'} there, {'name': 'L4'} here",
        ),
        (
            {"command": "serve --port 1"},
            "is not of the same command: 'serve' there, 'serve --port 1' here",
        ),
        ({"versions": {"vllm": "2"}}, "is not of the same versions"),
        ({"simulated": True}, "is not of the same simulated"),
    ],
)
def test_runs_of_another_card_or_command_are_not_mixed(tmp_path, monkeypatch, change, says):
    """The file says whose its runs are; what goes on with others is refused, and the runs stay."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import evidence

    played = []
    monkeypatch.setattr(
        evidence, "play_pairs", lambda *said: (played.append(1), said[-2](Run(True, ())))
    )
    monkeypatch.setattr(evidence, "host", lambda command: CARD | {"date": "today"})
    evidence._pairs(tmp_path, ["serve"], 4, 0.0)
    monkeypatch.setattr(evidence, "host", lambda command: CARD | change | {"date": "tomorrow"})
    with pytest.raises(SelftestError, match="name another folder, or move it away") as raised:
        evidence._pairs(tmp_path, ["serve"], 4, 0.0)
    assert says in str(raised.value)
    assert len(played) == 1
    assert evidence._runs(tmp_path / "runs.jsonl.gz") == [Run(True, ())]
    (tmp_path / "trace.meta.json").write_text(json.dumps(CARD | change))
    with pytest.raises(SelftestError, match="is not of the same"):
        evidence._report(tmp_path)


def test_runs_that_do_not_say_whose_they_are_are_refused(tmp_path, monkeypatch):
    """As an earlier version wrote them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import evidence

    with gzip.open(tmp_path / "runs.jsonl.gz", "wt") as file:
        file.write("[true, []]\n")
    with pytest.raises(SelftestError, match="does not say of which card and command"):
        evidence._runs(tmp_path / "runs.jsonl.gz")


def test_a_look_at_another_card_is_not_mixed_in(tmp_path, monkeypatch):
    """It may have been called without the command."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import evidence

    (tmp_path / "trace.meta.json").write_text(json.dumps(CARD))
    other = CARD | {"card": {"name": "L4"}, "command": ""}
    (tmp_path / "look.json").write_text(json.dumps({"host": other}))
    with pytest.raises(SelftestError, match=r"look\.json is not of the same card"):
        evidence._report(tmp_path)


def test_the_key_of_a_server_is_written_nowhere(monkeypatch):
    """The command is, without it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import evidence

    command = ["vllm", "serve", "m", "--api-key", "sk-secret"]
    assert "sk-secret" not in json.dumps(evidence.host(command))
