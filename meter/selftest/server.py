"""The server that is judged, started for it: under the meter, or bare."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from meter.demo import process
from meter.selftest.access import Access, Answer, Reach, option
from meter.selftest.findings import SelftestError

#: A large server ends slowly, and its meter closes the record after it.
_STOP_S = 90.0
_STDERR = 2
#: Looks, half a second apart, at what answers and is no OpenAI API: then it will never be one.
_LOOKS_MAX = 20
_EVERY_ADDRESS = ("0.0.0.0", "::", "[::]")


@dataclass(frozen=True, slots=True)
class Server:
    """``command`` serves at ``url``. ``options``: of ``joulemeter run``; ``out``: where all that
    server and meter say goes; ``reach``: its key, its certificate, how long it may take."""

    command: Sequence[str]
    url: str
    environ: Mapping[str, str]
    options: Sequence[str] = ()
    out: int = _STDERR
    reach: Reach = field(default_factory=Reach)

    @property
    def access(self) -> Access:
        return Access(self.url, self.reach)

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
        other = self.access.get("/v1/models")
        if other.status or other.problem:
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

        access, start_s = self.access, self.reach.start_s
        answer, odd = Answer(0), 0

        def decided() -> bool:
            nonlocal answer, odd
            answer = access.get("/v1/models")
            waits = answer.status >= 500 or not (answer.status or answer.problem)
            odd = 0 if waits else odd + 1
            return (
                life.poll() is not None
                or answer.status == 200
                or access.refusal(answer) is not None
                or odd >= _LOOKS_MAX
            )

        in_time = process.wait_until(decided, start_s, pause_s=0.5)
        if life.poll() is None and (refusal := access.refusal(answer)):
            raise SelftestError(refusal)
        if life.poll() is None and odd >= _LOOKS_MAX:
            said = answer.problem or f"it answers {answer.status} at /v1/models"
            raise SelftestError(f"{self.url} has no OpenAI API: {said}")
        if not in_time:
            raise SelftestError(
                f"nothing answers at {self.url}/v1/models after {start_s:.0f} s: name the server's "
                "--url, or give it longer with --start-timeout"
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
    scheme = "https" if option(command, "--ssl-certfile") else "http"
    host = said["--host"] if said["--host"] not in _EVERY_ADDRESS else "127.0.0.1"
    if not said["--port"].isdecimal():
        raise SelftestError(f"--port {said['--port']:.80} is no number: name the server's --url")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{said['--port']}"
