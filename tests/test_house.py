"""The rule of the house: a room imports only from rooms above it, the core from `model` alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METER = ROOT / "meter"

# Top to bottom. What stands on one line may not import each other upwards.
ROOMS = (
    "model",
    "system",
    "trace",
    "power",
    "work",
    "attribution",
    "pricing",
    "green",
    "ledger",
    "export",
    "top",
    "replay",
    "report",
    "demo",
    "config",
    "selftest",
    "runtime",
    "doctor",
    "cli",
)
PURE = {"attribution": {"model"}, "pricing": {"model"}}
# The demo runs the product as its users do, and is started by its command line.
ALLOWED = {("demo", "runtime"), ("demo", "config"), ("runtime", "config")}


def room_of(path: Path) -> str:
    return path.relative_to(METER).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a module imports, however it writes it."""
    rooms = set()
    package = ["meter", *path.relative_to(METER).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if module != "meter" else [f"meter.{a.name}" for a in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("meter.")}
    return rooms - {"__version__"}


MODULES = sorted(p for p in METER.rglob("*.py") if p.name != "__init__.py" or p.parent != METER)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(METER)))
def test_imports_go_upwards(path: Path) -> None:
    """No module imports from a room below its own."""
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert other in ROOMS, f"{other} is no room of the house"
        above = ROOMS.index(other) < ROOMS.index(room)
        assert above or (room, other) in ALLOWED, f"{room} imports {other}, which is below it"
        if room in PURE:
            assert other in PURE[room], f"{room} is pure: it may not import {other}"


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_touch_nothing(room: str) -> None:
    """No clock, file, thread, log or network in the pure core."""
    forbidden = {"time", "os", "io", "pathlib", "threading", "logging", "structlog", "socket"}
    for path in (METER / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {a.name.split(".")[0] for a in node.names} & forbidden, path
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] not in forbidden, path


def test_the_plugin_needs_nothing() -> None:
    """What vLLM loads imports the standard library alone, and no other room of the meter."""
    code = (
        "import sys; import meter.work.vllm; "
        "bad = [m for m in sys.modules if m.split('.')[0] not in sys.stdlib_module_names "
        "and not m.startswith(('meter', '_', 'sitecustomize'))]; "
        "rooms = [m for m in sys.modules "
        "if m.startswith('meter.') and not m.startswith('meter.work')]; "
        "print(bad, rooms); sys.exit(bool(bad or rooms))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(METER.parent)!r}); {code}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sidecar_never_imports_vllm() -> None:
    """Outside the plugin nobody imports vllm or torch."""
    for path in METER.rglob("*.py"):
        if (METER / "work" / "vllm") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not {n.split(".")[0] for n in names} & {"vllm", "torch"}, path


def test_there_is_one_private_key_and_it_is_the_tests() -> None:
    """Whoever finds a key in here need not ask which of several it is, nor what it opens."""
    begin = "-----BEGIN " + "PRIVATE KEY-----"
    files = [path for path in (ROOT / "tests").rglob("*") if path.suffix in (".pem", ".py")]
    files += (ROOT / "meter").rglob("*.py")
    with_key = [path for path in files if begin in path.read_text(encoding="utf-8")]
    assert with_key == [ROOT / "tests" / "localhost.pem"]
