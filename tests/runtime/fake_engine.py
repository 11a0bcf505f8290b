"""A small engine for the tests of ``joulemeter run``: speaks the wire, moves the simulated card.

Arguments: seconds to work, the exit code, its model's name. It decodes two requests at a time; card
0 draws 100 W at rest and 300 W in a step.
"""

import os
import sys
import time

from meter.demo.card import Card
from meter.work.vllm.sender import Sender

STEP_NS = 20_000_000


def main(seconds: float, code: int, model: str = "tiny") -> int:
    card = Card.attach(os.environ["JOULEMETER_FAKE_NVML"])
    sender = Sender(os.environ["JOULEMETER_SOCKET"])
    sender.hello({"engine": "0", "model": model, "engine_version": "1", "pid": os.getpid()})
    card.post(0, 100.0)
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    seq = request = 0
    while time.monotonic_ns() < end_ns:
        names = [f"e{request}", f"e{request + 1}"]
        request += 2
        for name in names:
            now = time.monotonic_ns()
            sender.opened(now, name, parent=f"cmpl-{name}-0", prompt_tokens=50, tenant="acme")
        # At once: a test that kills this engine means the requests that it holds.
        sender.flush()
        for k in range(10):
            phase = (50, 0, "p") if k == 0 else (1, 49 + k, "d")
            start_ns = time.monotonic_ns()
            card.post(0, 300.0, start_ns)
            time.sleep(STEP_NS / 1e9)
            done_ns = time.monotonic_ns()
            card.post(0, 100.0, done_ns)
            sender.step(seq, start_ns, done_ns, [(name, *phase) for name in names])
            sender.flush()
            seq += 1
        for name in names:
            now = time.monotonic_ns()
            sender.closed(now, name, "length", prompt=50, cached=16, completion=10)
        sender.flush()
    sender.close()
    return code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
