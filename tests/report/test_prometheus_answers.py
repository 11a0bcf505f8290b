"""Whatever answers in the place of a Prometheus: a short error, and little memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from meter.report import from_prometheus, make
from meter.report.from_prometheus import Window


@contextmanager
def answering(body: Callable[[str], bytes], status: int = 200) -> Iterator[str]:
    """A server whose answers are ``body`` of the path; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body(self.path))

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def refused(body: bytes, status: int = 200) -> str:
    """What is said of an answer; its address is taken out."""
    with answering(lambda path: body, status) as url, pytest.raises(make.ReportError) as raised:
        make.from_prometheus(url, *make.window("-1h", "now"))
    said = str(raised.value).replace(url, "URL")
    assert len(said) < 400
    return said


def result(*rows: object) -> bytes:
    return json.dumps({"status": "success", "data": {"result": rows}}).encode()


ODD = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b'{"data": null}',
    b'{"data": {"result": null}}',
    b'{"data": {"result": {"a": 1}}}',
    b"<html>" + b"x" * 100_000,
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"data": {"result": [' + b"9" * 5000 + b"]}}",
    result(5),
    result({}),
    result({"metric": {}}),
    result({"metric": [], "value": [1, "2"]}),
    result({"metric": {}, "value": []}),
    result({"metric": {}, "value": [1, "x" * 100_000]}),
    result({"metric": {}, "value": [1, {}]}),
    result({"metric": {"quality": "x" * 100_000}, "value": [1, "2"]}),
    result({"metric": {"phase": ["idle"]}, "value": [1, "NaN"]}),
    result(),
]


@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
def test_what_is_no_prometheus_is_named(body):
    """Whatever shape its answer has."""
    said = refused(body)
    assert said.startswith(
        ("no Prometheus answers at URL (", "URL ", "a series has the quality 'x")
    )


def test_an_error_is_quoted_and_cut():
    """A proxy's page may be long."""
    assert refused(b"y" * 100_000, 502) == "URL answers 502: " + "y" * 300


def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch):
    """By its size, and by the time that it takes."""
    monkeypatch.setattr(from_prometheus, "_ANSWER_BYTES_MAX", 1 << 20)
    assert (
        refused(b" " * (2 << 20))
        == "no Prometheus answers at URL (its answer is longer than 1 MiB)"
    )
    monkeypatch.setattr(from_prometheus, "_ANSWER_S_MAX", -1.0)
    assert refused(b" ") == "no Prometheus answers at URL (its answer takes longer than -1 s)"


def energy(path: str) -> bytes:
    """A meter that says nothing of when it was there."""
    labels = {"quality": "measured", "phase": "idle", "gpu_uuid": "g", "gpu": "0", "model_name": ""}
    if "count_over_time" in path or "query_range" in path:
        return result()
    return result({"metric": labels, "value": [1, "3600"]})


def test_a_time_that_is_not_known_makes_no_mean():
    """Rather than a wrong one."""
    with answering(energy) as url:
        report = from_prometheus.from_prometheus(url, Window(1000.0, 2000.0))
    assert report.measured_j == 3600
    assert report.metered_s is None
    assert report.mean_power_w is None
    assert report.holes == ("for how much of the window a meter was there is not known",)
    assert json.loads(make.to_json(report))["mean_power_w"] is None


def test_an_address_is_quoted_and_cut():
    """Also one of a megabyte."""
    with pytest.raises(make.ReportError) as raised:
        make.from_prometheus("x" * 10**6, *make.window("-1h", "now"))
    assert len(str(raised.value)) < 300
