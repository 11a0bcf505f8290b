"""The command line: parse, call, print. What a command does lives in the rooms."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from meter.runtime.become import without_us

try:
    import typer
    import typer.core

    from meter import __version__
    from meter.config import ConfigError, Settings, load
    from meter.config.load import PREFIX
    from meter.config.show import commented
except Exception as error:  # a broken package, no memory: the server is started all the same
    without_us(sys.argv, error)
    raise

T = TypeVar("T", bound=StrEnum)

app = typer.Typer(
    name="joulemeter",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(no_args_is_help=True, help="Look at the settings in force.")
app.add_typer(config_app, name="config")

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S

# Options stop at the first word of the command, so that its own options need no "--" before it.
_BEFORE_COMMAND = {"allow_interspersed_args": False}

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file of settings (or JOULEMETER_CONFIG)."),
]
# Defaults that the settings hold are named here: in a help text, [words] would be taken for markup.
PortNumber = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Port of the meter's metrics, receipts and page. If it is taken and was not set, "
        "the next free one is used.",
        show_default="29401",
    ),
]
Host = Annotated[str | None, typer.Option(help="Address of that port.", show_default="127.0.0.1")]
Source = Annotated[
    str | None,
    typer.Option(help="Where joules come from: auto, nvml or cpu.", show_default="auto"),
]
NvmlLibrary = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Path of libnvidia-ml.so.1, if not the system's."),
]
LogLevel = Annotated[
    str | None,
    typer.Option(help="Least severe message of the meter that is shown.", show_default="warning"),
]
RecordTo = Annotated[
    Path | None,
    typer.Option("--record", metavar="TRACE", help="Write all events there (.gz, .zst compress)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Command = Annotated[
    list[str], typer.Argument(metavar="-- CMD...", help="The server's command, as without us.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """The live energy meter for LLM inference: every joule in one account."""


@app.command(context_settings=_BEFORE_COMMAND)
def run(
    command: Command,
    config: ConfigFile = None,
    port: PortNumber = None,
    host: Host = None,
    record: RecordTo = None,
    source: Source = None,
    nvml_library: NvmlLibrary = None,
    log_level: LogLevel = None,
) -> None:
    """Start a server and meter it; exits with the server's code.

    For example: joulemeter run -- vllm serve MODEL --port 8000
    """
    _run(command, config, port, host, record, source, nvml_library, log_level)


class _BehindDashes(typer.core.TyperCommand):
    """A command with words of its own before the server's: that begins behind ``--``, and options
    come anywhere before."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        head, dashes, command = _split(args)
        rest: list[str] = super().parse_args(ctx, [*head, "--", _HERE, _HERE])
        # Without a word before the "--", the command would be written over.
        if not (dashes and command) or ctx.params["command"] != [_HERE, _HERE]:
            _fail("record: give TRACE -- CMD…, as in: record trace.jsonl.zst -- vllm serve MODEL")
        ctx.params["command"] = command
        return rest


_HERE = "-- CMD"


def _split(args: list[str]) -> tuple[list[str], bool, list[str]]:
    """What stands before the first ``--``, whether it is there, and what stands behind it."""
    at = args.index("--") if "--" in args else len(args)
    return args[:at], at < len(args), args[at + 1 :]


@app.command("record", cls=_BehindDashes)
def record_(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="File to write (.gz, .zst compress).")
    ],
    command: Command,
    config: ConfigFile = None,
    port: PortNumber = None,
    host: Host = None,
    source: Source = None,
    nvml_library: NvmlLibrary = None,
    log_level: LogLevel = None,
) -> None:
    """Start a server, meter it, and write down what the sources saw, for replay."""
    _check_outputs({"TRACE": trace}, {})
    _run(command, config, port, host, trace, source, nvml_library, log_level)


def _run(
    command: list[str],
    config: Path | None,
    port: int | None,
    host: str | None,
    record: Path | None,
    source: str | None,
    nvml_library: Path | None,
    log_level: str | None,
) -> None:
    settings = _settings_of_run(config, _flags(port, host, record, source, nvml_library, log_level))
    from meter.runtime.signals import block_signals

    # Before numpy is imported: its threads would take the signals that we wait for.
    mask = block_signals()
    witness = None
    try:
        from meter.runtime import probe

        if probe.is_limited() and not probe.can(_import_numpy):
            raise MemoryError("the limit on memory (ulimit -v) is too low for the meter")
        from meter.runtime.witness import Witness

        witness = Witness.start()
        _import_numpy()
        from meter.runtime.run import run as run_command
    except Exception as error:
        _say(f"cannot meter: {_shortly(error)}; the command runs without")
        if witness is not None:
            witness.stop()
        _become(command, mask)
    raise typer.Exit(run_command(command, settings, mask, witness))


def _shortly(error: Exception) -> str:
    """In one line, whatever a package has to say."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")[:300]


def _become(command: list[str], mask: set[int]) -> NoReturn:
    """The command in our place: not even what the meter is made of can be had."""
    from meter.runtime.become import become

    try:
        become(command, os.environ, mask)
    except OSError as error:
        _say(f"{command[0]}: {error.strerror}")
        raise typer.Exit(127 if isinstance(error, FileNotFoundError) else 126) from error


@app.command()
def attach(
    target: Annotated[
        str | None, typer.Argument(metavar="[PID|URL]", help="The running server.")
    ] = None,
    socket: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Listen there for engines (JOULEMETER_SOCKET)."),
    ] = None,
    config: ConfigFile = None,
    port: PortNumber = None,
    host: Host = None,
    record: RecordTo = None,
    source: Source = None,
    nvml_library: NvmlLibrary = None,
    log_level: LogLevel = None,
) -> None:
    """Meter a server that runs already, until it ends or Ctrl-C.

    Also one whose meter was killed. Without the plugin in it: totals by model, no receipts.
    """
    if target is None and socket is None:
        _fail("attach: name the server by its pid or URL, or a --socket to listen on")
    _is_socket(socket)
    settings = _settings(config, _flags(port, host, record, source, nvml_library, log_level))
    from meter.runtime.signals import ENDING, block_signals

    block_signals(ENDING)
    _import_numpy()
    from meter.runtime.attach import attach as attach_to

    raise typer.Exit(attach_to(target, socket, settings))


@app.command()
def plugin(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for it, made anew.")],
    socket: Annotated[
        Path, typer.Option(metavar="PATH", help="Where the meter will listen.")
    ] = Path("/run/joulemeter/meter.sock"),
) -> None:
    """Put the plugin beside a vLLM that is started without joulemeter; prints its environment.

    Then: joulemeter attach --socket PATH
    """
    from meter.work import beside

    _is_socket(socket)
    try:
        beside.directory(folder)
    except OSError as error:
        _fail(f"{folder}: {error.strerror}")
    print(f"PYTHONPATH={folder.absolute()}")
    print(f"JOULEMETER_SOCKET={socket.absolute()}")


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A recorded trace.")],
    receipts: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write one JSON line a receipt.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write the accounts as JSON.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Who pays: shapley, or tokens, time, inflight to compare.")
    ] = "shapley",
    calibration: Annotated[
        str, typer.Option(help="whole: may look at all of the trace; online: only at the past.")
    ] = "whole",
    strict: Annotated[bool, typer.Option(help="Exit with 2 when a line is bad.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the attribution over a recorded trace. Exits with 2 where nothing is usable."""
    _import_numpy()
    from meter import replay as room
    from meter.trace import TraceError

    rule = _choice(room.Policy, policy, "--policy")
    mode = _choice(room.CalibrationMode, calibration, "--calibration")
    _check_outputs({"--receipts": receipts, "--summary": summary}, {"TRACE": trace})
    try:
        replayed = room.replay(trace, rule, mode)
    except TraceError as error:
        _fail(str(error))
    for bad in replayed.bad_lines:
        print(f"{trace}:{bad.number}: {bad.reason}", file=sys.stderr)
    if replayed.bad_unlisted:
        print(f"{trace}: and {replayed.bad_unlisted:,} more bad lines", file=sys.stderr)
    for hole in room.not_covered(replayed.snapshot):
        print(f"{trace}: {hole}", file=sys.stderr)
    figures = room.summary(replayed)
    try:
        if receipts is not None:
            room.write_receipts(replayed, receipts)
        if summary is not None:
            summary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        _fail(f"cannot write {str(error.filename or 'it all')[:200]}: {error.strerror}")
    _print_replay(figures, as_json)
    if strict and replayed.bad_lines:
        raise typer.Exit(2)


def _print_replay(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    from meter.export.figures import TERMS, count, sum_line

    accounts_j = {name: figures[f"{name}_j"] for name in TERMS}
    said = sum_line(figures["measured_j"], accounts_j, figures["quality"])
    print(f"{said}; {count(figures['requests'])} request{'s' * (figures['requests'] != 1)}")


@app.command()
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1.0, max=WEEK_S, help="Stop after so many seconds; otherwise with Ctrl-C."
        ),
    ] = None,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="The real vLLM on this CPU (tests/vllm_cpu/setup.sh).")
    ] = False,
    port: PortNumber = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="TRACE", help="Keep a trace of it, for replay and report."),
    ] = None,
) -> None:
    """Meter an engine under traffic: vLLM on a GPU if both are here, else a simulated one."""
    _check_outputs({"--record": record}, {})
    from meter.demo.demo import main as run_demo

    raise typer.Exit(run_demo(seconds=seconds, vllm=vllm, port=port, record=record))


@app.command()
def top(
    url: Annotated[
        str | None,
        typer.Option(help="Where the meter's port is.", show_default="the meter of this machine"),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one look and exit.")] = False,
    sort: Annotated[
        str, typer.Option(help="energy, token (energy per token), tokens, prompt, age or newest.")
    ] = "energy",
    match: Annotated[str, typer.Option(help="Only requests whose id or model contains this.")] = "",
    unit: Annotated[str, typer.Option(help="J, kWh or cost.")] = "J",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each message of /v1/live, or with --once one.")
    ] = False,
) -> None:
    """Watch a running meter: power, the sum, every running request. Exits with 1 if none is there.

    Press ? for the keys.
    """
    from meter.top import run as room
    from meter.top.view import ORDERS, UNITS

    if sort not in ORDERS:
        _fail(f"--sort: one of {', '.join(ORDERS)}, not {sort!r}")
    if unit not in UNITS:
        _fail(f"--unit: one of {', '.join(UNITS)}, not {unit!r}")
    _is_url("--url", url)
    address = url if url is not None else _meter_here("--url", 1)
    raise typer.Exit(room.top(address, room.view_of(sort, match, unit), once, as_json))


@app.command()
def doctor(
    config: ConfigFile = None,
    nvml_library: NvmlLibrary = None,
    python: Annotated[
        Path | None,
        typer.Option(help="Where vLLM is: a Python, a virtual environment or its vllm command."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can measure, at which quality, and the next step to better.

    Exits with 0 if nothing could be better, 1 if it could, 2 if no energy can be had.
    """
    settings = _settings(config, {"power.nvml_library": nvml_library})
    from meter.doctor import examine
    from meter.doctor.machine import Machine
    from meter.doctor.show import show as show_diagnosis

    diagnosis = examine(Machine(settings.power, named=python))
    if as_json:
        print(json.dumps(diagnosis.as_json()))
    else:
        show_diagnosis(diagnosis)
    raise typer.Exit(diagnosis.exit_code)


@app.command()
def report(
    trace: Annotated[
        Path | None, typer.Argument(metavar="[TRACE]", help="A recorded trace.")
    ] = None,
    html: Annotated[Path, typer.Option(metavar="OUT", help="The page to write.")] = Path(
        "joulemeter-report.html"
    ),
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="A Prometheus that scrapes meters, instead.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="With --prometheus: from when, 2026-11-25T08:00Z, or -24h before --to.",
            show_default="-24h",
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="With --prometheus: until when, a time like --from, or now.",
            show_default="now",
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON, and write no page.")
    ] = False,
) -> None:
    """Write what was used, by whom, what it cost, when and how sure, as one HTML page.

    For a PDF, print the page. Exits with 2 where nothing is usable.
    """
    _import_numpy()
    from meter.report import make

    if (trace is None) == (prometheus is None):
        _fail("report: give a TRACE or --prometheus URL, one of the two")
    if trace is not None and (start or end):
        _fail("report: a TRACE is told as a whole: leave out --from and --to")
    if prometheus is not None and config is not None:
        _fail("report: what Prometheus has is priced already: leave out --config")
    _is_url("--prometheus", prometheus)
    if not as_json:
        _check_outputs({"--html": html}, {"TRACE": trace})
    try:
        if trace is not None:
            made = make.from_trace(trace, make.Tariff(**_settings(config, {}).pricing.model_dump()))
        else:
            made = make.from_prometheus(
                prometheus or "", *make.window(start or "-24h", end or "now")
            )
        if as_json:
            print(make.to_json(made))
            return
        make.write(made, html)
    except make.ReportError as error:
        _fail(f"report: {error}")
    except OverflowError:
        _fail("report: --from or --to is out of the calendar: give a time such as -24h")
    print(f"wrote {html}")


@app.command(context_settings=_BEFORE_COMMAND)
def selftest(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- CMD...]", help="Start this server, judge it, and end it."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Where the server is. Without CMD: one that runs, under a meter that records.",
            show_default="by CMD's --port, or 8000",
        ),
    ] = None,
    meter: Annotated[
        str | None,
        typer.Option(
            help="Without CMD: where the running server's meter has its port.",
            show_default="the meter of this machine",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep CMD's record there. With --url: what `run --record` writes. Alone: judge "
            "this.",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="On the demo's engine and simulated card instead.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Of the server.", show_default="its first")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1.0, max=DAY_S, help="About how long the load is played.")
    ] = 120.0,
    pairs: Annotated[
        int,
        typer.Option(
            min=0,
            max=100,
            help="Measure what metering costs: start CMD so often with and without it, in turn.",
        ),
    ] = 0,
    start_timeout: Annotated[
        float,
        typer.Option(
            min=1.0, max=86400.0, metavar="SECONDS", help="How long CMD may take until it serves."
        ),
    ] = 1800.0,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The variable with the server's API key; it is never shown.",
            show_default="CMD's --api-key, or VLLM_API_KEY",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificates to trust, for a server with TLS.",
            show_default="CMD's --ssl-certfile, or the system's",
        ),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write all figures there.")
    ] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help="Write a page with plots there.")
    ] = None,
) -> None:
    """Find how truly this meter measures here, and hold the README's promises against it.

    For example: joulemeter selftest -- vllm serve MODEL

    Exits with 0 where none is broken, 1 where one is, 2 where it could not be run.
    """
    _import_numpy()
    from meter.selftest import run as room

    _is_url("--url", url)
    _is_url("--meter", meter)
    if demo and (command or url or trace):
        _fail("selftest: --demo brings its own server; leave out CMD, --url and --trace")
    if pairs and not (demo or command):
        _fail("selftest: --pairs starts the server itself; give -- CMD or --demo")
    _check_outputs({"--json": json_out, "--html": html_out}, {"--trace": trace})
    try:
        if demo:
            found = room.of_demo(seconds, pairs)
        elif command:
            reach = room.Reach.of(command, os.environ, api_key_env, ca_file, start_timeout)
            found = room.of_command(command, url, model, seconds, trace, pairs, reach=reach)
        elif trace is None:
            _fail("selftest: give -- CMD, --demo, --trace FILE, or --url URL with the --trace FILE")
        elif url is not None:
            reach = room.Reach.of((), os.environ, api_key_env, ca_file, start_timeout)
            address = meter if meter is not None else _meter_here("--meter", 2)
            found = room.of_server(url, address, model, seconds, trace, reach=reach)
        else:
            found = room.of_trace(trace)
        code = room.show(found, json_out, html_out)
    except room.SelftestError as error:
        _fail(f"selftest: {error}")
    raise typer.Exit(code)


@config_app.command()
def check(config: ConfigFile = None) -> None:
    """Check the settings; exits with 2 and names each problem where they cannot be used."""
    _settings(config, {})
    print("the settings are valid")


@config_app.command()
def show(
    config: ConfigFile = None,
    defaults: Annotated[bool, typer.Option(help="Show the defaults alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the settings in force, with what each means."""
    settings = Settings() if defaults else _settings(config, {})
    print(json.dumps(settings.model_dump(mode="json")) if as_json else commented(settings))


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    print(json.dumps({"version": __version__}) if as_json else __version__)


def _meter_here(option: str, code: int) -> str:
    """Of the one meter of this machine; else says what to do, and stops with ``code``."""
    from meter.top.nearby import NearbyError, the_meter

    try:
        return the_meter()
    except NearbyError as error:
        print(f"joulemeter: {error} ({option})", file=sys.stderr)
        raise typer.Exit(code) from error


def _import_numpy() -> None:
    """Before anything else imports it."""
    from meter.runtime.one_thread import import_numpy

    import_numpy()


def _settings(config: Path | None, flags: Mapping[str, object]) -> Settings:
    try:
        return load(config, flags)
    except ConfigError as error:
        _fail(str(error))


def _settings_of_run(config: Path | None, flags: Mapping[str, object]) -> Settings:
    """Those in force. A command line that is wrong is refused; what is wrong in the environment
    (a variable, a file that it names) is left out, for a server's start must not hang on it."""
    try:
        return load(config, flags)
    except ConfigError as error:
        reason = str(error)
    ours = {name: os.environ[name] for name in os.environ if name.startswith(PREFIX)}
    try:
        for name in ours:
            del os.environ[name]
        settings = _settings(config, flags)
        for name in sorted(ours):
            os.environ[name] = ours[name]
            try:
                settings = load(config, flags)
            except ConfigError:
                del os.environ[name]
    finally:
        os.environ.update(ours)
    for line in reason.splitlines():
        _say(f"{line} (left out: the server is started all the same)")
    return settings


def _flags(
    port: int | None,
    host: str | None,
    record: Path | None,
    source: str | None,
    nvml_library: Path | None,
    log_level: str | None,
) -> dict[str, object]:
    return {
        "http.port": port,
        "http.host": host,
        "record": record,
        "power.source": source,
        "power.nvml_library": nvml_library,
        "log_level": log_level,
    }


def _check_outputs(outputs: Mapping[str, Path | None], others: Mapping[str, Path | None]) -> None:
    """What is to be written can be, and over nothing else: said before the work, not after it."""
    taken = {name: path for name, path in others.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        try:
            problem = _not_writable(path)
            for name, other in taken.items():
                if path.absolute() == other.absolute() or (
                    path.is_file() and other.exists() and path.samefile(other)
                ):
                    problem = f"it is also {name}: name another file"
        except (OSError, ValueError) as error:  # too long a name, or one with a NUL
            problem = getattr(error, "strerror", None) or str(error)
        if problem is not None:
            _fail(f"cannot write {option} {str(path)[:200]!r}: {problem}")
        taken[option] = path


def _not_writable(path: Path) -> str | None:
    """Why a file cannot be written there; ``None`` where it can."""
    folder = path.absolute().parent
    if path.is_dir():
        return "it is a folder"
    if not folder.is_dir():
        return f"there is no folder {str(folder)[:200]}; make it, or name another file"
    # To root every place says that it can be written, /proc and a read-only disk too.
    try:
        if path.is_file():
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        elif not path.exists():  # a pipe or a device is opened when it is written
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            path.unlink()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _is_url(option: str, url: str | None) -> None:
    """Refuse what is none before anything is started for it."""
    from meter.work.ask import checked_url

    try:
        if url is not None:
            checked_url(url)
    except ValueError as error:
        _fail(f"{option}: {error}")


def _is_socket(path: Path | None) -> None:
    """Refuse a path that can be no engine's."""
    from meter.work.listener import PATH_BYTES

    if path is None:
        return
    if (size := len(os.fsencode(path.absolute()))) > PATH_BYTES:
        _fail(
            f"--socket: a path of {size} bytes, and a socket's may be {PATH_BYTES}: give a shorter "
            f"one than {str(path)[:60]}…"
        )
    if os.path.lexists(path) and not path.is_socket():
        _fail(f"--socket: {path} exists and is no socket: give another path")


def _choice(kind: type[T], value: str, option: str) -> T:
    try:
        return kind(value)
    except ValueError:
        _fail(f"{option}: one of {', '.join(kind)}, not {value!r}")


_LINE_MAX = 2000


def _fail(message: str) -> NoReturn:
    """Say what is wrong and stop with 2."""
    _say(message)
    raise typer.Exit(2)


def _say(message: str) -> None:
    """Every line says whose it is: a server may write between them. Of lines as long as a command
    line may be their beginning."""
    lines = message.splitlines()
    cut = (line if len(line) <= _LINE_MAX else f"{line[:_LINE_MAX]}…" for line in lines)
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(f"joulemeter: {line}" for line in cut), file=sys.stderr)


def main() -> None:
    """The console script."""
    from meter.runtime.stdio import fill, settle

    fill()
    try:
        app()
    finally:
        settle()


if __name__ == "__main__":
    main()
