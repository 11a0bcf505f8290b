"""``joulemeter top`` as a process: on a real terminal, in a pipe, and with nobody to look at."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from meter.top.feed import Feed, FeedError, Query, listen
from tests.page.meter import Meter

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "meter.cli", "top"]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-B0]")
WAIT_S = 60.0


@pytest.fixture
def meter():
    meter = Meter().serve()
    yield meter
    meter.stop()


class Terminal:
    """A process on a terminal of its own, of 80 × 24 cells."""

    def __init__(self, *arguments):
        self.near, self.far = pty.openpty()
        fcntl.ioctl(self.far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.far)
        environ = {**os.environ, "TERM": "xterm-256color"}
        environ.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=self.far,
            stdout=self.far,
            stderr=self.far,
            env=environ,
            start_new_session=True,
        )
        self.seen = ""

    def send(self, keys):
        os.write(self.near, keys.encode())

    def read(self):
        """What came since, without the terminal's own codes; waits a little for more."""
        ready, _, _ = select.select([self.near], [], [], 0.2)
        data = os.read(self.near, 65536).decode(errors="replace") if ready else ""
        return _ESCAPES.sub("", data)

    def wait_for(self, text):
        """Read on until this has been shown since the last wait."""
        deadline_s = time.monotonic() + WAIT_S
        while text not in self.seen:
            assert time.monotonic() < deadline_s, f"{text!r} is not in {self.seen[-2000:]!r}"
            self.seen += self.read()
        self.seen = self.seen.split(text)[-1]

    def end(self):
        """The exit code, and whether the terminal is as it was."""
        deadline_s = time.monotonic() + WAIT_S
        while self.process.poll() is None and time.monotonic() < deadline_s:
            self.read()
        code = self.process.wait(1)
        as_it_was = termios.tcgetattr(self.far) == self.before
        os.close(self.near)
        os.close(self.far)
        return code, as_it_was


def test_a_session_on_a_terminal(meter):
    """It follows, sorts, filters, freezes, changes units, and leaves the terminal as it was."""
    terminal = Terminal("--url", meter.url)
    terminal.wait_for("● live")
    terminal.wait_for("chatcmpl-19")
    terminal.send("s")
    terminal.wait_for("sort: token")
    terminal.send("u")
    terminal.wait_for("unit: kWh")
    terminal.send("/tenant-3")
    terminal.wait_for("filter: tenant-3")
    terminal.send("\r")
    terminal.wait_for("4 match")
    terminal.send("f")
    terminal.wait_for("frozen")
    terminal.send("?")
    terminal.wait_for("freeze what is shown")
    terminal.send("q")
    assert terminal.end() == (0, True)


@pytest.mark.parametrize("how", ["\x03", signal.SIGTERM])
def test_an_abrupt_end_leaves_the_terminal_in_order(meter, how):
    """Ctrl-C, or a signal."""
    terminal = Terminal("--url", meter.url)
    terminal.wait_for("● live")
    if isinstance(how, str):
        terminal.send(how)
    else:
        terminal.process.send_signal(how)
    assert terminal.end() == (0, True)


def test_a_meter_that_does_not_answer_blocks_no_key():
    """A port that accepts and says nothing: the screen is there, and q quits."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        terminal = Terminal("--url", f"http://127.0.0.1:{silent.getsockname()[1]}")
        terminal.wait_for("connecting")
        terminal.send("u")
        terminal.wait_for("unit: kWh")
        terminal.send("q")
        assert terminal.end() == (0, True)


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_once_prints_one_look(meter):
    """Plain text in a pipe: the figures, the sum, the requests."""
    done = run("--url", meter.url, "--once")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    for text in ("live", "measured =", "✓", "chatcmpl-19", "GPU 0"):
        assert text in done.stdout
    assert run("--url", meter.url).stdout.count("measured =") == 1


def test_json_is_the_streams_message(meter):
    """One with ``--once``; filter and order are the meter's."""
    done = run("--url", meter.url, "--once", "--json", "--match", "tenant-3", "--sort", "newest")
    told = json.loads(done.stdout)
    assert told["running"]["total"] == 20
    assert [row["id"] for row in told["running"]["rows"]][:2] == ["chatcmpl-3", "chatcmpl-8"]


def test_without_a_meter_it_says_what_to_do():
    """Exit code 1, and no traceback."""
    done = run("--url", "http://127.0.0.1:9", "--once")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("joulemeter: no meter answers at http://127.0.0.1:9 (")
    assert "--url" in done.stderr


@pytest.mark.parametrize("wrong", [("--sort", "x"), ("--unit", "BTU")])
def test_a_bad_choice_is_refused(wrong):
    """With what it may be."""
    done = run(*wrong)
    assert done.returncode == 2
    assert "one of" in done.stderr


def wait_until(true):
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_the_feed_takes_up_a_broken_stream():
    """The last message stays, the trouble is named, and it goes on when the meter is back."""
    meter = Meter().serve()
    feed = Feed(meter.url, Query())
    feed.start()
    wait_until(lambda: feed.heard().message)
    port = meter.stop()
    wait_until(lambda: feed.heard().trouble)
    assert feed.heard().message is not None
    meter.serve(port)
    wait_until(lambda: not feed.heard().trouble)
    meter.ended = True
    wait_until(lambda: feed.heard().ended)
    feed.stop()
    meter.stop()


def test_the_feed_asks_anew_at_once(meter):
    """Another filter is another stream; the minutes before are still there."""
    feed = Feed(meter.url, Query())
    feed.start()
    wait_until(lambda: feed.heard().message)
    feed.ask(Query(match="tenant-3"))
    wait_until(lambda: feed.heard().message["running"]["matching"] == 4)
    assert len(feed.heard().series.moments) > 100
    feed.stop()


def test_an_address_without_a_stream_is_named(meter):
    """An older meter, or something else: what it answered is said."""
    with pytest.raises(FeedError, match="answers 404 Not Found"):
        next(listen(f"{meter.url}/elsewhere", Query()))
    with pytest.raises(FeedError, match="answers 400 Bad Request: Give one of"):
        next(listen(meter.url, Query("x")))
