"""Without an address: the one meter of this machine, wherever its port is."""

import http.server
import threading

import pytest
from typer.testing import CliRunner

from meter import cli
from meter.top import nearby
from meter.top.nearby import NearbyError, the_meter
from tests.page.meter import Meter


@pytest.fixture
def meter():
    meter = Meter().serve()
    yield meter
    meter.stop()


@pytest.fixture
def stranger():
    """Another program's HTTP port."""
    handler = http.server.SimpleHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.log_message = lambda *words: None
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def number(meter):
    return int(meter.url.rpartition(":")[2])


def test_the_one_meter_is_found(meter, stranger):
    """Beside another program that has taken the port before it, and one that is closed."""
    assert the_meter([9, stranger, number(meter)]) == meter.url


def test_none_and_several_are_said_with_what_to_do(meter):
    """Nothing is guessed."""
    with pytest.raises(NearbyError, match=r"ports 9 to 10: start one \(joulemeter run"):
        the_meter([9, 10])
    other = Meter().serve()
    with pytest.raises(NearbyError, match=f"several.*{meter.url}.*{other.url}"):
        the_meter([number(meter), number(other)])
    other.stop()


def test_top_finds_it_or_says_what_to_do(meter, monkeypatch):
    """With the option that names an address; exit code 1, as where none answers."""
    monkeypatch.setattr(nearby.the_meter, "__defaults__", ([9],))
    done = CliRunner().invoke(cli.app, ["top", "--once"])
    assert done.exit_code == 1
    assert "start one" in done.stderr
    assert "--url" in done.stderr
    monkeypatch.setattr(nearby.the_meter, "__defaults__", ([number(meter)],))
    done = CliRunner().invoke(cli.app, ["top", "--once", "--json"])
    assert done.exit_code == 0
    assert '"summary"' in done.stdout
