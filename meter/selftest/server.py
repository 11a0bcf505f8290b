"""The server that is judged, started for it: under the meter, or bare."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from meter.demo import process
from meter.selftest.findings import SelftestError

#: A large model is loaded, compiled and captured.
_START_S = 1800.0
#: A large server ends slowly, and its meter closes the record after it.
_STOP_S = 90.0
_STDERR = 2
_EVERY_ADDRESS = ("0.0.0.0", "::", "[::]")


@dataclass(frozen=True, slots=True)
class Server:
    """``command`` serves at ``url``. ``options``: of ``joulemeter run``; ``out``: where all that
    server and meter say goes."""

    command: Sequence[str]
    url: str
    environ: Mapping[str, str]
    options: Sequence[str] = ()
    out: int = _STDERR

    @property
    def _models(self) -> str:
        return f"{self.url}/v1/models"

    @contextmanager
    def metered(self, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        """Up within the block, its meter's process and URL. Raises ``SelftestError``."""
        port = process.page_port()
        run = (sys.executable, "-m", "meter.cli", "run", "--port", str(port))
        with self._life((*run, *self.options, *options, "--", *self.command)) as life:
            yield life, f"http://127.0.0.1:{port}"

    def bare(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Up within the block, as if there were no meter on this machine: the command alone."""
        return self._life(self.command)

    @contextmanager
    def _life(self, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        if process.answers(self._models):
            raise SelftestError(
                f"something else answers at {self.url}: end it, or give the command another --port"
            )
        life = process.tethered(words, self.environ, self.out)
        try:
            self._wait_for(life)
            yield life
        finally:
            process.end(life, _STOP_S)

    def _wait_for(self, life: subprocess.Popen[bytes]) -> None:
        """Until the server lists its models."""
        print(f"waiting until {self.url} serves …", file=sys.stderr)

        def decided() -> bool:
            return life.poll() is not None or process.answers(self._models)

        if not process.wait_until(decided, _START_S, pause_s=0.5):
            raise SelftestError(
                f"nothing answers at {self._models} after {_START_S:.0f} s: name the server's --url"
            )
        if life.poll() is not None:
            raise SelftestError(f"the server ended with code {life.returncode} before it served")


def url_of(command: Sequence[str]) -> str:
    """Where ``vllm serve MODEL --port 8001`` will serve. Raises ``SelftestError``."""
    said = {"--host": "127.0.0.1", "--port": "8000"}
    for word, following in zip(command, (*command[1:], ""), strict=True):
        name, _, value = word.partition("=")
        if name in said and (value or following):
            said[name] = value or following
    host = said["--host"] if said["--host"] not in _EVERY_ADDRESS else "127.0.0.1"
    if not said["--port"].isdecimal():
        raise SelftestError(f"--port {said['--port']} is no number: name the server's --url")
    return f"http://{f'[{host}]' if ':' in host else host}:{said['--port']}"
