"""The meter's own lines: one form, few of them, and no harm where nobody reads."""

import io
import json
import logging
import subprocess
import sys
import textwrap

import pytest
import structlog

from meter.runtime import logs
from meter.runtime.logs import Seldom


def script(code, *arguments, stderr=subprocess.PIPE):
    """Runs ``code`` in a process of its own, whose logging is the meter's; what it said."""
    head = "import sys; from meter.runtime.logs import configure_logs, say\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
    )


def through(seldom, name="full", **more):
    """Whether an event is let through, with what."""
    try:
        return seldom(None, "warning", {"event": name, **more})
    except structlog.DropEvent:
        return None


def test_what_repeats_is_said_a_few_times_and_counted():
    """Whatever it is; another event is not held back by it."""
    now = 0.0
    seldom = Seldom(often=2, period_s=60, now_s=lambda: now)
    assert [through(seldom) is not None for _ in range(5)] == [True, True, False, False, False]
    assert through(seldom, "other") == {"event": "other"}
    assert through(seldom, part="another") == {"event": "full", "part": "another"}
    now = 61.0
    assert through(seldom) == {"event": "full", "left_unsaid": 3}
    assert through(seldom) == {"event": "full"}


def test_it_remembers_so_many_events():
    """Should names ever be made up by others."""
    seldom = Seldom(often=1)
    for i in range(5000):
        through(seldom, f"event-{i}")
    assert len(seldom._said) <= 1000


SAY = """
    import logging, threading, warnings
    import structlog
    configure_logs("warning", sys.argv[1])
    say("joulemeter: metering a card; http://127.0.0.1:1")
    structlog.get_logger("joulemeter").warning("gpu_left_out", gpu="1", remedy="do this", part="x")
    logging.getLogger("uvicorn.error").error("it broke")
    warnings.warn("old")
    thread = threading.Thread(target=lambda: 1 / 0, name="lane")
    thread.start(); thread.join()
    try:
        {}["nothing"]
    except KeyError:
        structlog.get_logger("joulemeter").exception("part_left_out", part="the record")
"""


def test_every_line_is_text_that_says_whose_it_is():
    """The server's own log is text; libraries, warnings, threads and traces come in our form."""
    lines = script(SAY, "text").stderr.splitlines()
    assert all(line.startswith("joulemeter: ") for line in lines), lines
    assert lines[0] == "joulemeter: metering a card; http://127.0.0.1:1"
    assert lines[1].startswith(
        'joulemeter: warning: gpu_left_out: gpu=1 part=x remedy="do this" at=20'
    )
    said = "\n".join(lines)
    for part in ("uvicorn.error", "it broke", "old", "thread_died", "part=lane", "KeyError"):
        assert part in said


def test_every_line_is_json_where_it_is_asked_for():
    """The sentences too."""
    lines = [json.loads(line) for line in script(SAY, "json").stderr.splitlines()]
    assert lines[0]["event"] == "metering a card; http://127.0.0.1:1"
    assert [line["event"] for line in lines[1:]] == [
        *("gpu_left_out", "library", "library", "thread_died", "part_left_out")
    ]
    assert all(line["timestamp"] and line["level"] for line in lines)
    assert "KeyError" in lines[-1]["exception"]


def test_nothing_that_others_chose_reaches_a_terminal_as_a_command():
    """Escapes, line ends and quotes in a value are shown as such; and it is no endless text."""
    hostile = 'a\x1b[31m\nb\u202e\x9b2J"c\ud800'
    code = f"""
    import structlog
    configure_logs("warning", sys.argv[1])
    structlog.get_logger().warning("refused", host={hostile!r}, long="x" * 100_000)
    """
    for form in ("text", "json"):
        said = script(code, form).stderr
        assert said.count("\n") == 1
        assert said.strip().isprintable()
        assert len(said) < 10_000


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "1>&- 2>&-"])
def test_where_nobody_can_be_told_nothing_fails(closed):
    """Without a stderr, or on a full disk; and stdout is the engine's."""
    code = (
        "import structlog; from meter.runtime.logs import configure_logs, say; "
        "configure_logs('warning'); say('joulemeter: x'); "
        "structlog.get_logger().warning('y'); open('/dev/null')"
    )
    shell = f'"$0" -c "$1" {closed}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, code], stdout=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")


def test_what_a_library_says_has_a_level(monkeypatch):
    """Below ours nothing of it is shown."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with structlog.testing.capture_logs() as said:
        record = logging.LogRecord("lib", logging.ERROR, "f", 1, "no %s", ("room",), None)
        logs._Others().emit(record)
    assert said == [{"event": "library", "part": "lib", "reason": "no room", "log_level": "error"}]
