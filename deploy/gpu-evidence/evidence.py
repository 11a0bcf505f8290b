"""Everything that a GPU host can show of this meter, in stages: see README.md beside this file.

python3 evidence.py OUT [--stage look|selftest|pairs|plugin|report] … -- vllm serve MODEL …
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from meter import __version__
from meter.demo.card_source import CARD_VARIABLE
from meter.selftest import run as selftest
from meter.selftest.access import without_key
from meter.selftest.price import Counted, Price, Run, Slot, order, price
from meter.selftest.promises import Promise, prices
from meter.selftest.server import Server, url_of
from meter.selftest.stage import play_pairs
from meter.selftest.text import limit, value

Json = dict[str, Any]

STAGES = ("look", "selftest", "pairs", "plugin", "report")
_TRACE = "trace.jsonl.zst"
_RUNS = "runs.jsonl.gz"
_PLUGIN = "plugin.md"
_PLUGIN_COST = Path(__file__).parents[2] / "tests/bench/plugin_cost.py"
_PACKAGES = ("joulemeter", "vllm", "torch", "transformers", "zeus", "nvidia-ml-py")
_QUERY = (
    "name,driver_version,vbios_version,power.limit,clocks.max.sm,clocks.max.mem,persistence_mode"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages that were named, or all; one that fails costs only itself. 0: none did."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    place = words.index("--") if "--" in words else len(words)
    options, command = _parser().parse_args(words[:place]), words[place + 1 :]
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    stages = options.stage or list(STAGES)
    # What a CPU is said to draw is no evidence of a GPU: without NVML it fails in the first second.
    os.environ.setdefault("JOULEMETER_POWER__SOURCE", "nvml")
    if not command and {"selftest", "pairs", "plugin"} & set(stages):
        print("evidence: after -- name the command that serves, as in the README", file=sys.stderr)
        return 2
    code = 0
    for stage in stages:
        print(f"--- {stage}", flush=True)
        start_s = time.monotonic()
        try:
            if stage == "look":
                _look(out, command)
            elif stage == "selftest":
                _selftest(out, command, options.seconds)
            elif stage == "pairs":
                _pairs(out, command, options.pairs, start_s + 60 * options.minutes)
            elif stage == "plugin":
                _plugin(out, command)
            else:
                _report(out)
        except (selftest.SelftestError, subprocess.CalledProcessError) as error:
            print(f"evidence: {stage}: {error}", file=sys.stderr)
            code = 2
        except Exception:  # the host is lent: the other stages are worth more than a clean end
            traceback.print_exc()
            code = 2
        print(f"--- {stage}: {time.monotonic() - start_s:.0f} s", flush=True)
    return code


def _look(out: Path, command: Sequence[str]) -> None:
    """In a process of its own: its context on the GPU must be gone when the server starts."""
    program = [sys.executable, str(Path(__file__).with_name("look.py"))]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    looked = json.loads(done.stdout)
    found = {"host": host(command, looked["gpu"]["uuid"]), **looked}
    _write(out / "look.json", found)
    print(json.dumps(found, indent=1))


def host(command: Sequence[str], uuid: str | None = None) -> dict[str, Any]:
    """Date, card, driver, versions and the command: what each figure has to carry. ``uuid``: the
    GPU that was measured, where there are several."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "card": _nvidia_smi(uuid),
        "simulated": CARD_VARIABLE in os.environ,
        "python": platform.python_version(),
        "versions": {"joulemeter": __version__, **versions},
        "command": shlex.join(without_key(command)),
    }


def _looked_at(out: Path) -> str | None:
    """The GPU of the first stage, where that has been."""
    try:
        return str(json.loads((out / "look.json").read_text())["gpu"]["uuid"])
    except (OSError, ValueError, KeyError):
        return None


def _nvidia_smi(uuid: str | None) -> dict[str, str] | None:
    query = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    query += ["-i", uuid] if uuid is not None else []
    if shutil.which(query[0]) is None:
        return None
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    names, values = _QUERY.split(","), done.stdout.partition("\n")[0].split(", ")
    if done.returncode or len(values) != len(names):
        return None
    return dict(zip(names, values, strict=True))


def _selftest(out: Path, command: Sequence[str], seconds: float) -> None:
    trace, part = out / _TRACE, out / f"part-{_TRACE}"
    found = selftest.of_command(command, None, None, seconds, part)
    part.replace(trace)
    text = out / "selftest.txt"
    with text.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        selftest.show(found, out / "selftest.json", out / "selftest.html")
    print(text.read_text(encoding="utf-8"))
    facts = {
        **host(command, _looked_at(out)),
        "seconds": found.seconds,
        "requests": found.requests,
        "quality": found.quality,
        "sha256": hashlib.sha256(trace.read_bytes()).hexdigest(),
    }
    _write(out / "trace.meta.json", facts)


def _pairs(out: Path, command: Sequence[str], pairs: int, until_s: float) -> None:
    """Goes on where an earlier call stopped, and stops before its time is over."""
    kept, whose = out / _RUNS, _whose(host(command))
    done = _runs(kept, whose)

    def keep(run: Run) -> None:
        """All of them anew, whole or not at all: time may be over at any moment."""
        done.append(run)
        part = kept.with_name(kept.name + ".part")
        with gzip.open(part, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for one in (whose, *done))
        part.replace(kept)

    reach = selftest.Reach.of(command, os.environ)
    server = Server(command, url_of(command), os.environ, reach=reach)
    play_pairs(server, None, pairs, None, len(done), keep, until_s)
    print(f"{len(done)} of {len(order(pairs))} runs are there")
    for one in prices(price(done)):
        print(f"{one.verdict}: {one.says}: {one.note}")


def _plugin(out: Path, command: Sequence[str]) -> None:
    """What the plugin costs per step, beside vLLM's own scheduler, with nothing computed."""
    model = model_of(command)
    if model is None:
        print("left out: no folder with a model's configuration is named in the command")
        return
    program = [sys.executable, str(_PLUGIN_COST), "--python", sys.executable, "--model", str(model)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    (out / _PLUGIN).write_text(done.stdout, encoding="utf-8")
    print(done.stdout)


def model_of(command: Sequence[str]) -> Path | None:
    """The folder of the model that a command serves, where it names one."""
    for before, word in itertools.pairwise(command):
        if before in ("serve", "--model") and Path(word, "config.json").is_file():
            return Path(word)
    return None


def _whose(facts: Json) -> Json:
    """What runs that are compared must have in common: card, command, versions."""
    return {name: facts.get(name) for name in ("card", "simulated", "command", "versions")}


def _runs(path: Path, whose: Json | None = None) -> list[Run]:
    """The runs in a file, which says in its first line whose they are. Raises ``SelftestError``
    where that is not ``whose``."""
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        first, *lines = [json.loads(line) for line in file] or [None]
    if not isinstance(first, dict):
        raise selftest.SelftestError(
            f"{path} does not say of which card and command its runs are: move it away"
        )
    if whose is not None:
        _same(path, first, whose)
    return [
        Run(metered, tuple(Slot(tokens, tuple(gaps)) for tokens, gaps in slots), Counted(counted))
        for metered, slots, counted in lines
    ]


def _same(path: Path, found: Json, whose: Json) -> None:
    """Raises ``SelftestError`` where these are of another card, command or version."""
    for name, ours in whose.items():
        if found.get(name) != ours:
            raise selftest.SelftestError(
                f"{path} is not of the same {name}: {found.get(name)!r:.200} there, {ours!r:.200} "
                "here; name another folder, or move it away"
            )


def _report(out: Path) -> None:
    """``results.json``, ``results.md`` and the plots, of what is there."""
    parts = {
        name: json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("look", "selftest")
        if (out / f"{name}.json").exists()
    }
    meta = out / "trace.meta.json"
    facts = json.loads(meta.read_text(encoding="utf-8")) if meta.exists() else None
    facts = facts or parts.get("look", {}).get("host", {})
    whose, looked, kept = _whose(facts), parts.get("look", {}).get("host"), _kept(out)
    if looked:  # it may have been called without a command
        _same(out / "look.json", looked, {name: whose[name] for name in ("card", "simulated")})
    if kept:
        _same(out / _RUNS, kept, whose)
    priced = price(_runs(out / _RUNS))
    told = table(facts, parts.get("look"), parts.get("selftest"), priced)
    plugin = out / _PLUGIN
    if plugin.exists():
        told += "\n" + plugin.read_text(encoding="utf-8")
    as_json = None if priced is None else selftest.price_json(priced)
    _write(out / "results.json", {"host": facts, **parts, "price": as_json})
    (out / "results.md").write_text(told, encoding="utf-8")
    print(told)
    page = out / "selftest.html"
    if page.exists():
        for number, plot in enumerate(plots(page.read_text(encoding="utf-8")), start=1):
            (out / f"plot-{number}.svg").write_text(plot, encoding="utf-8")


def _kept(out: Path) -> Json | None:
    """Whose the runs are."""
    path = out / _RUNS
    if not path.exists():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        first = json.loads(file.readline() or "null")
    return first if isinstance(first, dict) else None


def plots(page: str) -> list[str]:
    """Each plot of a page, with the page's colours in it."""
    style = re.findall(r"<style>.*?</style>", page, re.DOTALL)[0]
    found = []
    for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        head, rest = plot.split(">", 1)
        found.append(f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n')
    return found


def table(facts: Json, looked: Json | None, tested: Json | None, priced: Price | None) -> str:
    """Markdown: where, when and how, then each figure with its limit."""
    card = (facts.get("card") or {}).get("name") or "card not known"
    versions = ", ".join(f"{name} {value}" for name, value in facts.get("versions", {}).items())
    driver = (facts.get("card") or {}).get("driver_version", "not known")
    rows = ["| what | figure | limit | |", "|---|---|---|---|"]
    rows += [f"| {name} | {value} | | |" for name, value in _looked(looked)]
    ours = [Promise(**{k: v for k, v in p.items() if k != "verdict"}) for p in _promises(tested)]
    if priced is not None:
        ours = [one for one in ours if one.id not in {p.id for p in prices(priced)}]
        ours += prices(priced)
    rows += [f"| {p.says}: {p.note} | {value(p)} | {limit(p)} | {p.verdict} |" for p in ours]
    return "\n".join(
        (
            f"{card}, {facts.get('date')}{', simulated' if facts.get('simulated') else ''}; driver "
            f"{driver}; {versions}; `{facts.get('command')}`",
            "",
            *rows,
            *_tokens(tested),
            "",
        )
    )


def _promises(tested: Json | None) -> list[Json]:
    return list((tested or {}).get("promises", []))


def _looked(looked: Json | None) -> list[tuple[str, str]]:
    if looked is None:
        return []
    call, energy, square = looked["call_us"], looked["energy_call_us"], looked["square"]
    rows = [
        ("one call, counter and power", f"{call['median']:.0f} µs (p99 {call['p99']:.0f})"),
        ("one call, counter alone", f"{energy['median']:.0f} µs (p99 {energy['p99']:.0f})"),
        ("the counter moves every", f"{1e3 * looked['tick_s']:.2f} ms"),
        ("idle, bare", f"{looked['bare_idle_w']:.1f} W"),
    ]
    if square is not None:
        rows += [
            ("idle, with a context", f"{looked['context_idle_w']:.1f} W"),
            (
                "a square load as long as the tick, by where in the tick it begins: the most less "
                "the least, of the mean",
                f"{100 * square['swing']:.2f} %",
            ),
        ]
    return rows


def _tokens(tested: Json | None) -> list[str]:
    rows = []
    for device in (tested or {}).get("devices", []):
        for kind, read in (("decode", "context"), ("prefill", "prompt")):
            rows += ["", f"| {kind}, requests | {read} | J a token | floor |", "|---|---|---|---|"]
            for row in device[kind]:
                floor = "" if row["floor_j"] is None else f"{row['floor_j']:.3g}"
                told = f"{row['batch']:.1f} | {row[read]:.0f} | {row['token_j']:.3g}"
                rows.append(f"| {told} | {floor} |")
    return rows


def _write(path: Path, what: object) -> None:
    path.write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    usage = "evidence.py OUT [options] -- CMD…"
    parser = argparse.ArgumentParser(usage=usage, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for all that is found")
    parser.add_argument("--stage", action="append", choices=STAGES, help="only this (repeatable)")
    parser.add_argument("--seconds", type=float, default=240.0, help="of the designed load")
    parser.add_argument("--pairs", type=int, default=6, help="metered and bare, in turn")
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="that one call of pairs may take"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
