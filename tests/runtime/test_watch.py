"""What a person is told of engines that are silent, hang, or are of a version nobody has tested."""

from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from meter.export.state import State
from meter.model import Snapshot
from meter.pricing import Tariff
from meter.runtime.watch import Watch
from meter.work.hello import Hello
from meter.work.peer import Peer
from meter.work.wire import Source

S = 1_000_000_000


class Scene:
    """A watch whose time, engines and requests a test sets."""

    def __init__(self):
        self.now_ns = self.last_ns = 0
        self.running = 0
        self.listener = SimpleNamespace(sources=())
        self.watch = Watch(
            self.listener, self.state, lambda: self.last_ns, now_ns=lambda: self.now_ns
        )

    def state(self):
        return State(Snapshot(0, 0, running={"0": self.running}), Tariff("EUR"))

    def look(self, at_s):
        self.now_ns = at_s * S
        with capture_logs() as logs:
            self.watch.look()
        return [line["event"] for line in logs]


def speaking(version):
    return (Source("1-1", Hello("1-1", engine_version=version), "0", 0),)


def test_an_engine_that_never_speaks_is_named_once():
    """After three minutes: a large model may load so long, but the plugin speaks before."""
    scene = Scene()
    assert [scene.look(s) for s in (1, 170, 181, 300)] == [[], [], ["no_engine_heard"], []]


def test_an_engine_that_has_spoken_is_not_missed():
    scene = Scene()
    scene.listener.sources = speaking("vllm 0.32.0")
    assert scene.look(1) == []
    scene.listener.sources = ()
    assert scene.look(400) == []


def test_an_engine_that_hangs_is_named_once_each_time():
    """It has requests, and no step ends for half a minute; an idle one does not hang."""
    scene = Scene()
    scene.listener.sources = speaking("vllm 0.32.0")
    assert scene.look(100) == [], "it is idle"
    scene.running = 3
    assert [scene.look(s) for s in (101, 102)] == [["engine_hangs"], []]
    scene.last_ns = 110 * S
    assert [scene.look(s) for s in (111, 141)] == [[], ["engine_hangs"]]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("vllm 0.20.0", []),
        ("vllm 0.33.1", []),
        ("vllm 0.34.0rc1", ["untested_version"]),
        ("vllm 1.0", ["untested_version"]),
        ("vllm 0.19.1", ["untested_version"]),
        ("vllm", []),
        ("another engine 3", []),
    ],
)
def test_a_version_that_nobody_has_tested_is_named_once(version, said):
    """It is metered all the same, as far as it is like the others."""
    scene = Scene()
    scene.listener.sources = speaking(version)
    assert [scene.look(s) for s in (1, 2)] == [said, []]


@pytest.mark.parametrize(
    ("peer", "cuda", "said"),
    [
        (Peer(None, 0), None, ["engine_hidden"]),
        (Peer(None, 0), "1", []),
        (Peer(77, 0), None, []),
        (None, None, []),
    ],
)
def test_an_engine_that_cannot_be_seen_is_named_once(peer, cuda, said):
    """Of another PID namespace: the driver's list cannot tell its GPUs, so all are its own."""
    scene = Scene()
    hello = Hello("1-1", engine_version="vllm 0.32.0", cuda_visible_devices=cuda)
    scene.listener.sources = (Source("1-1", hello, "0", 0, peer),)
    assert [scene.look(s) for s in (1, 2)] == [said, []]


def test_engines_that_are_gone_are_not_remembered():
    """A meter lives for months, and engines come and go."""
    scene = Scene()
    for k in range(100):
        hello = Hello(f"{k}", engine_version="vllm 0.32.0")
        scene.listener.sources = (Source(f"{k}", hello, "0", k),)
        scene.look(k)
    assert len(scene.watch._met) == 1
