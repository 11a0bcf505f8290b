"""A real Prometheus on loopback, filled with a history at once."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.needs import program

_READY_S = 30.0
Series = dict[str, str]
Points = list[tuple[float, float]]


class Prometheus:
    """A client of a running server."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        try:
            return bool(self._get("/-/ready"))
        except OSError:
            return False

    def instant(self, expr: str, at_s: float) -> list[tuple[Series, float]]:
        """Each series of the answer with its value."""
        answer = self.get("/api/v1/query", query=expr, time=at_s)
        if answer["resultType"] == "scalar":
            return [({}, float(answer["result"][1]))]
        return [(row["metric"], float(row["value"][1])) for row in answer["result"]]

    def range(
        self, expr: str, start_s: float, end_s: float, step_s: float
    ) -> list[tuple[Series, Points]]:
        """Each series of the answer with its points."""
        answer = self.get("/api/v1/query_range", query=expr, start=start_s, end=end_s, step=step_s)
        return [
            (row["metric"], [(float(t), float(v)) for t, v in row["values"]])
            for row in answer["result"]
        ]

    def label_values(self, selector: str, label: str, start_s: float, end_s: float) -> set[str]:
        """What Grafana's ``label_values(selector, label)`` offers."""
        path = f"/api/v1/label/{label}/values"
        answer: list[str] = self.get(path, **{"match[]": selector}, start=start_s, end=end_s)
        return set(answer)

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that the server evaluates, with its health and its alerts."""
        groups = self.get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def exemplars(self, expr: str, start_s: float, end_s: float) -> list[Series]:
        """The labels of the exemplars that Grafana would draw as dots."""
        answer = self.get("/api/v1/query_exemplars", query=expr, start=start_s, end=end_s)
        return [one["labels"] for row in answer for one in row["exemplars"]]

    def get(self, path: str, **parameters: object) -> Any:
        """The ``data`` of an answer of the API."""
        query = urllib.parse.urlencode(parameters)
        try:
            text = self._get(f"{path}?{query}")
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {error.read().decode()}") from error
        answer = json.loads(text)
        assert answer["status"] == "success", answer
        return answer["data"]

    def text(self, path: str) -> str:
        """An answer as it is."""
        return self._get(path)

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self._base + path, timeout=10) as response:
            text: str = response.read().decode()
        return text


@contextlib.contextmanager
def serving(
    directory: Path, history: str = "", config: str = "{}", flags: Sequence[str] = ()
) -> Iterator[Prometheus]:
    """A server over ``history`` (OpenMetrics with timestamps), stopped at the end.

    ``config``: what else it is to do, in the text of Prometheus' own file.
    """
    prometheus = program("prometheus")
    data, settings = directory / "data", directory / "prometheus.yml"
    settings.write_text(config + "\n", encoding="utf-8")
    if history:
        _backfill(directory / "history.om", history, data)
    port = free_port()
    command = [
        prometheus,
        f"--config.file={settings}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=100y",
        "--enable-feature=exemplar-storage",
        f"--web.listen-address=127.0.0.1:{port}",
        *flags,
    ]
    log = directory / "prometheus.log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            client = Prometheus(port)
            _wait(client, process, log)
            yield client
        finally:
            process.terminate()
            process.wait(_READY_S)


def _backfill(path: Path, history: str, data: Path) -> None:
    """Make blocks of a history; as few as can be, since the text is read once for each."""
    path.write_text(history, encoding="utf-8")
    command = [program("promtool"), "tsdb", "create-blocks-from", "--max-block-duration=744h"]
    done = subprocess.run(
        [*command, "openmetrics", str(path), str(data)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def finite(value: float) -> bool:
    """Neither NaN nor infinite."""
    return math.isfinite(value)


def _wait(client: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not client.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"Prometheus did not start:\n{log.read_text()}")
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
