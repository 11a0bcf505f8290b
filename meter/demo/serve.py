"""``python -m meter.demo.serve``: the embedded engine as a process of its own.

Under ``joulemeter run`` it finds the meter by ``JOULEMETER_SOCKET``, as vLLM's plugin does; without
it, it serves all the same and nobody meters it. ``--card`` names the control file of the simulated
card that it draws power from.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import uvicorn

from meter.demo.announce import FACTS, Announcer, Wire
from meter.demo.card import Card
from meter.demo.engine import Engine, Limits
from meter.demo.loop import Card as AnyCard
from meter.demo.loop import EngineLoop, NoCard
from meter.demo.physics import Hardware, Physics
from meter.demo.server import Server
from meter.demo.truth import Truth
from meter.work.vllm.sender import Sender

SOCKET_VARIABLE = "JOULEMETER_SOCKET"
LOAD_S = 1.0
"""How long the weights seem to load: a start-up to be seen in the accounts."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal comes."""
    options = _parser().parse_args(arguments)
    # The engine's thread must wake in time beside the HTTP side's.
    sys.setswitchinterval(0.0005)
    card: AnyCard = Card.attach(options.card) if options.card else NoCard()
    # Without a socket there is no meter, and the sender drops what it is told.
    wire = Sender(os.environ.get(SOCKET_VARIABLE, ""))
    with _truth_file(options.truth) as out:
        serve(options.host, options.port, card, wire, Truth(out), options.seed)


def serve(host: str, port: int, card: AnyCard, wire: Wire, truth: Truth, seed: int) -> None:
    """Bring the engine up on ``card`` and serve it."""
    hardware = Hardware()
    facts = {**FACTS, "pid": os.getpid()}
    card.post(0, hardware.static_w)
    wire.hello(facts, "up")
    time.sleep(LOAD_S)
    engine = Engine(Limits())
    server = Server(engine.check)
    physics = Physics(hardware, seed)
    loop = EngineLoop(engine, physics, card, Announcer(wire), truth, server.deliver)
    server.attach(loop)
    wire.hello(facts, "ready")
    app = server.app(lambda: _running(loop))
    try:
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1)
    finally:
        card.post(0, hardware.bare_idle_w)


@contextmanager
def _running(loop: EngineLoop) -> Iterator[None]:
    loop.start()
    try:
        yield
    finally:
        loop.stop()


def _truth_file(path: Path | None) -> AbstractContextManager[TextIO | None]:
    return nullcontext() if path is None else path.open("w", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m meter.demo.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--card", type=Path, help="control file of the simulated card")
    parser.add_argument("--truth", type=Path, help="write each request's true joules here")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    return parser


if __name__ == "__main__":
    main()
