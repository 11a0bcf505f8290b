"""Who may ask the port: no web page of another origin, whatever its name resolves to."""

import asyncio

import httpx
import pytest
import structlog
from export_samples import NS
from test_http_api import FakeView

from meter.export.guard import Hosts
from meter.export.http import create_app

HOSTS = Hosts.of(["gpu7"], ["meter.example.com", "*.svc.cluster.local"])


@pytest.fixture
def ask(state):
    """Status and problem of an answer to a request with these headers."""

    def send(path="/v1/receipts", hosts=HOSTS, headers=()):
        app = create_app(FakeView(state), lambda: 32 * NS, hosts)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)

        async def run():
            async with httpx.AsyncClient(transport=transport) as client:
                request = httpx.Request("GET", f"http://placeholder{path}")
                request.headers = httpx.Headers(list(headers))
                return await client.send(request)

        return asyncio.run(run())

    return send


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:29401", "10.3.2.1:80", "[::1]:29401", "[::1]", "::1"),
        *("localhost", "LOCALHOST:29401", "localhost.", "gpu7", "GPU7:29401"),
        *("meter.example.com", "meter.svc.cluster.local:29401", "a.b.svc.cluster.local"),
    ],
)
def test_addresses_and_own_names_are_answered(ask, host):
    """An attacker can own none of them."""
    assert ask(headers=[("host", host)]).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:29401", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("gpu7.evil.example", "xmeter.example.com", "svc.cluster.local", "", "[", "0x7f.1", "@"),
        *("meter.example.com.evil.example", "xsvc.cluster.local", "127.0.0.1:80:80"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/receipts", "/metrics", "/", "/livez", "/nothing"])
def test_another_name_is_misdirected(ask, path, host):
    """On every path; the answer says how to allow the name, and tells nothing else."""
    answer = ask(path, headers=[("host", host)])
    assert answer.status_code == 421
    assert "http.allowed_hosts" in answer.json()["remedy"]
    assert "JOULEMETER_HTTP__ALLOWED_HOSTS" in answer.json()["remedy"]
    assert len(answer.content) < 600


def test_a_refused_name_is_said_in_the_log(ask):
    """Prometheus shows the status alone, so the operator needs the line; it is bounded."""
    with structlog.testing.capture_logs() as logs:
        ask(headers=[("host", "prometheus-target.example" + "x" * 5000)])
    (line,) = logs
    assert line["event"] == "host_refused"
    assert line["host"].startswith("prometheus-target.example")
    assert len(line["host"]) < 150
    assert "http.allowed_hosts" in line["remedy"]


def test_any_name_can_be_allowed(ask):
    """Where nothing but a proxy reaches the port."""
    assert ask(hosts=Hosts.of((), ["*"]), headers=[("host", "x.y")]).status_code == 200


def test_without_host_it_is_no_browser(ask):
    """HTTP/1.0 of a simple probe."""
    assert ask().status_code == 200


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:29401", "127.0.0.1:29401"),
        ("http://localhost", "localhost"),
        ("http://LOCALHOST:80", "localhost"),
        ("http://[::1]:29401", "[::1]:29401"),
        ("https://meter.example.com", "127.0.0.1:29401"),
    ],
)
def test_the_meters_own_page_may_ask(ask, origin, host):
    """As may one that a proxy serves under a configured name."""
    assert ask(headers=[("host", host), ("origin", origin)]).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "http://evil.example",
            "null",
            "",
            "file://",
            "http://127.0.0.1:8000",
            "https://127.0.0.1",
        ),
        *("http://127.0.0.1:29401@evil.example", "http://localhost:29401"),
    ],
)
def test_another_origin_is_forbidden(ask, origin):
    """A page of another port of this machine, too."""
    answer = ask(headers=[("host", "127.0.0.1:29401"), ("origin", origin)])
    assert answer.status_code == 403
    assert answer.json()["field"] == "Origin"
    assert "http.allowed_hosts" in answer.json()["remedy"]


@pytest.mark.parametrize("name", ["host", "origin"])
def test_a_header_that_is_given_twice_is_refused(ask, name):
    """Which of the two another layer believes is not known."""
    headers = [("host", "127.0.0.1"), (name, "http://127.0.0.1"), (name, "evil.example")]
    assert ask(headers=headers).status_code == 400
