"""The embedded engine on a real port of this machine, fast and without a meter."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import uvicorn
from wires import ListWire

from meter.demo.announce import Announcer
from meter.demo.engine import Engine, Limits
from meter.demo.loop import EngineLoop, NoCard
from meter.demo.physics import Hardware, Physics, Terms
from meter.demo.server import Server
from meter.demo.truth import Truth

QUICK = replace(Hardware(), seconds=Terms(0.5e-3, 1e-6, 0.0, 1e-6, 0.0))
LIMITS = Limits(running=16, step_tokens=256, blocks=512, context=4096)


class Running:
    """A served engine and what it told the wire."""

    def __init__(self) -> None:
        self.wire = ListWire()
        engine = Engine(LIMITS)
        server = Server(engine.check)
        self.truth = Truth()
        self.loop = EngineLoop(
            engine, Physics(QUICK), NoCard(), Announcer(self.wire), self.truth, server.deliver
        )
        server.attach(self.loop)
        self.loop.start()
        config = uvicorn.Config(server.app(), port=0, log_level="error")
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            time.sleep(0.005)
        port = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=20.0)

    def stop(self) -> None:
        self.client.close()
        self._uvicorn.should_exit = True
        self._thread.join(10)
        self.loop.stop()

    def closed(self, start: str) -> list[tuple[Any, ...]]:
        """The close records of requests whose id contains ``start``, once they are all there."""
        for _ in range(1000):
            opened = [row for row in self.wire.of("opened") if start in row[1]]
            closed = [row for row in self.wire.of("closed") if start in row[1]]
            if opened and len(opened) == len(closed):
                return closed
            time.sleep(0.005)
        raise AssertionError(f"{start} is still open")
