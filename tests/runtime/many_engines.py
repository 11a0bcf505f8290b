"""Eight engines at 40 steps/s each in one process, for the tests of a meter that stops.

Arguments: steps of each; and a folder, where ``half`` appears when half of them are done; the
engines end when ``enough`` does. Each serves one long request, told in change form.
"""

import os
import sys
import threading
import time
from pathlib import Path

from meter.demo.card import Card
from meter.work.vllm.sender import Sender

ENGINES = 8
STEP_S = 0.025


def serve(number: int, steps: int, half: threading.Barrier, folder: Path) -> None:
    sender = Sender(os.environ["JOULEMETER_SOCKET"])
    sender.hello({"engine": str(number), "model": "tiny", "pid": os.getpid()})
    name = f"e{number}"
    sender.opened(time.monotonic_ns(), name, parent=f"cmpl-{number}", prompt_tokens=5)
    due_s = time.monotonic()
    for seq in range(steps):
        start_ns = time.monotonic_ns()
        due_s += STEP_S
        time.sleep(max(0.0, due_s - time.monotonic()))
        full = sender.wants_full or seq < 2
        row = (name, 5, 0, "p") if seq == 0 else (name, 1, 4 + seq, "d")
        work = [row] if full else []
        sender.step(seq, start_ns, time.monotonic_ns(), work, same=not full)
        sender.flush()
        if seq == steps // 2:
            half.wait()
    sender.closed(time.monotonic_ns(), name, "length", prompt=5, cached=0, completion=steps)
    sender.flush()
    while not (folder / "enough").exists():
        time.sleep(0.05)
    sys.stdout.write(f"{name} lost {sender.lost_steps}\n")  # whole: print writes in pieces
    sys.stdout.flush()
    sender.close()


def main(steps: int, folder: str) -> None:
    Card.attach(os.environ["JOULEMETER_FAKE_NVML"]).post(0, 200.0)
    half = threading.Barrier(ENGINES, action=(Path(folder) / "half").touch)
    threads = [
        threading.Thread(target=serve, args=(number, steps, half, Path(folder)))
        for number in range(ENGINES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
