"""The port against clients that mean harm: slow, silent, many; and a process out of files."""

import asyncio
import errno
import http.client
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack

import pytest
import structlog

from meter.runtime import http_server
from meter.runtime.port import Port

_OK = {"type": "http.response.start", "status": 200, "headers": []}


class App:
    """Says hello; on ``/flood`` more than a client can take, on ``/wait`` nothing until told."""

    def __init__(self):
        self.go_on = threading.Event()
        self.left = threading.Event()

    async def __call__(self, scope, receive, send):
        await send(_OK)
        if scope["path"] == "/flood":
            try:
                for _ in range(1000):
                    body = {"type": "http.response.body", "body": b"x" * 100_000, "more_body": True}
                    await send(body)
            finally:
                self.left.set()
        while scope["path"] == "/wait" and not self.go_on.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def app():
    return App()


@pytest.fixture
def port(app):
    port = Port(app, "127.0.0.1", 0)
    port.start()
    yield port
    app.go_on.set()
    port.stop()


@pytest.fixture
def sockets():
    """Opens connections that say so much and no more; all are closed at the end."""
    with ExitStack() as stack:

        def call(port, said=b"", count=1):
            host, number = port.url.removeprefix("http://").split(":")
            made = []
            for _ in range(count):
                one = stack.enter_context(socket.create_connection((host, int(number)), 30))
                one.sendall(said)
                made.append(one)
            return made

        yield call


def ask(port, path="/"):
    """What an honest client gets."""
    client = http.client.HTTPConnection(port.url.removeprefix("http://"), timeout=30)
    client.request("GET", path)
    answer = client.getresponse()
    body = answer.read()
    client.close()
    return answer.status, body


def ends(one):
    """Waits until the other side has hung up."""
    try:
        while one.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "])
def test_a_request_that_does_not_come_is_not_waited_for(app, sockets, monkeypatch, said):
    """Nothing, a half line, headers without end: each is hung up on."""
    monkeypatch.setattr(http_server, "HEADER_S", 0.2)
    port = Port(app, "127.0.0.1", 0)
    port.start()
    (slow,) = sockets(port, said)
    assert ends(slow)
    port.stop()


def test_headers_that_dribble_are_hung_up_on(app, sockets, monkeypatch):
    """The time is from the first byte on, not from the last; on a used connection, too."""
    monkeypatch.setattr(http_server, "HEADER_S", 0.3)
    port = Port(app, "127.0.0.1", 0)
    port.start()
    (slow,) = sockets(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert slow.recv(1000).startswith(b"HTTP/1.1 200")
    started_s = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - started_s < 30:
            slow.sendall(b"G")
            time.sleep(0.02)
    port.stop()


def test_an_idle_connection_is_closed(app, sockets, monkeypatch):
    """After its answer it is kept for a while, for the next scrape."""
    assert http_server.IDLE_S > 60, "longer than a common scrape interval"
    monkeypatch.setattr(http_server, "IDLE_S", 1)
    port = Port(app, "127.0.0.1", 0)
    port.start()
    (idle,) = sockets(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert ends(idle)
    port.stop()


def test_an_answer_that_nobody_reads_is_given_up(app, sockets, monkeypatch):
    """It would lie in memory, and a stream would keep one of the few places."""
    monkeypatch.setattr(http_server, "STALL_S", 0.2)
    port = Port(app, "127.0.0.1", 0)
    port.start()
    sockets(port, b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
    assert app.left.wait(30)
    port.stop()


@pytest.mark.parametrize(
    "said",
    [
        b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
        b"GET /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000\r\n\r\n" + b"x" * 200_000,
    ],
)
def test_a_request_without_end_is_not_kept(port, sockets, said):
    """A long line, many headers, a body: this port only reads."""
    try:
        (greedy,) = sockets(port, said)
        assert ends(greedy)
    except (ConnectionResetError, BrokenPipeError):
        pass
    assert ask(port) == (200, b"hello")


def test_connections_that_only_wait_make_room(port, sockets, monkeypatch):
    """However many there are, an honest client is served at once."""
    silent = sockets(port, b"GET", http_server.connections_max() + 20)
    assert ask(port) == (200, b"hello")
    assert ends(silent[0]), "the one that was unused for longest went first"


def test_where_all_are_answered_the_next_is_told_so(app, sockets, monkeypatch):
    """None that is being served is cut off for it."""
    monkeypatch.setattr(http_server, "connections_max", lambda: 3)
    port = Port(app, "127.0.0.1", 0)
    with structlog.testing.capture_logs() as logs:
        port.start()
        busy = sockets(port, b"GET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 3)
        for one in busy:
            assert one.recv(12) == b"HTTP/1.1 200"
        (more,) = sockets(port)
        answer = more.recv(1000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"too many connections: ask again later")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        app.go_on.set()
        assert all(ends(one) for one in busy)
        assert ask(port) == (200, b"hello")
        port.stop()
    assert [line["event"] for line in logs] == ["http_is_full"]


class OutOfFiles:
    """A listening socket whose process has no file left, until it has."""

    def __init__(self, listening):
        self.listening = listening
        self.calls = 0
        self.out = True

    def accept(self):
        self.calls += 1
        if self.out:
            raise OSError(errno.EMFILE, "Too many open files")
        return self.listening.accept()

    def fileno(self):
        return self.listening.fileno()

    def setblocking(self, flag):
        self.listening.setblocking(flag)

    def close(self):
        self.listening.close()


def test_without_files_it_waits_and_says_so(app, monkeypatch):
    """It tries again twice a second, not at once and for ever; then it serves."""
    monkeypatch.setattr(http_server, "_ACCEPT_AGAIN_S", 0.05)
    port = Port(app, "127.0.0.1", 0)
    out = OutOfFiles(port._socket)
    port._socket = out
    port._thread._kwargs["sockets"] = [out]
    with structlog.testing.capture_logs() as logs:
        port.start()
        answers = []
        client = threading.Thread(target=lambda: answers.append(ask(port)))
        started_s = time.monotonic()
        client.start()
        while out.calls < 3:
            time.sleep(0.01)
        assert out.calls <= 2 + (time.monotonic() - started_s) / 0.05
        out.out = False
        client.join(30)
        port.stop()
    assert answers == [(200, b"hello")]
    assert {line["event"] for line in logs} == {"http_accepts_nothing"}
    assert "ulimit -n" in logs[0]["remedy"]


def test_a_process_out_of_files_neither_spins_nor_floods_the_log():
    """Sixty half-open connections and 32 files, as a real process has it."""
    code = textwrap.dedent(
        """
        import resource, socket, sys, time
        from meter.runtime.logs import configure_logs
        from meter.runtime.port import Port

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

        configure_logs("warning")
        port = Port(app, "127.0.0.1", 0)
        port.start()
        time.sleep(0.5)
        used = len(__import__("os").listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, used + 2))
        print(port.url, flush=True)
        sys.stdin.readline()
        print(time.process_time(), flush=True)
        """
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ExitStack() as stack,
    ):
        number = int(process.stdout.readline().rpartition(":")[2])
        for _ in range(60):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", number))
        time.sleep(2.0)
        out, said = process.communicate("\n", 30)
    assert 1 <= len(said.splitlines()) <= 10, said[:2000]
    assert "http_accepts_nothing" in said
    assert float(out) < 20, "seconds of CPU, start included"


def test_a_burst_of_silent_connections_is_no_full_house(app, sockets, monkeypatch):
    """Those that came before it, and say nothing, make room for all of it."""
    monkeypatch.setattr(http_server, "connections_max", lambda: 8)
    port = Port(app, "127.0.0.1", 0)
    with structlog.testing.capture_logs() as logs:
        sockets(port, b"GET", 60)  # wait in the socket's queue, all at once
        port.start()
        assert ask(port) == (200, b"hello")
        port.stop()
    assert logs == []
