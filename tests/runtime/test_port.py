"""The HTTP port: a free one, a taken one, a foreign one."""

import httpx
import pytest
import structlog

from meter.config import Settings
from meter.export import DEFAULT_PORT, PORTS_TRIED
from meter.runtime.port import Port, PortError, hosts_of, own_names


async def hello(scope, receive, send):
    """The smallest application."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def test_it_serves_on_a_free_port_and_stops():
    """0 takes a free one, and the address says which."""
    port = Port(hello, "127.0.0.1", 0)
    port.start()
    assert httpx.get(port.url, trust_env=False).text == "hello"
    port.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(port.url, trust_env=False)


def test_a_taken_port_is_refused_with_the_remedy():
    """Before anything is started."""
    first = Port(hello, "127.0.0.1", 0)
    number = int(first.url.rsplit(":", 1)[1])
    with pytest.raises(PortError, match=rf"{number}.*--port"):
        Port(hello, "127.0.0.1", number)
    first.start()
    first.stop()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_foreign_address_is_refused(host):
    """As is a name that nobody knows; another port would not help."""
    with pytest.raises(PortError, match=rf"cannot listen on {host}:0 .*--host") as raised:
        Port(hello, host, 0)
    assert "--port" not in str(raised.value)


def test_the_machines_own_names_are_its_host_name_and_what_the_hosts_file_adds(
    tmp_path, monkeypatch
):
    """Of the lines that hold the host name alone: a list of advertisers' names is not ours."""
    monkeypatch.setattr("socket.gethostname", lambda: "GPU7")
    file = tmp_path / "hosts"
    file.write_text(
        "127.0.0.1 localhost\n10.1.2.3 gpu7.lab.example gpu7 # ours\n0.0.0.0 tracker.example\n"
    )
    assert own_names(file) == {"gpu7", "gpu7.lab.example"}
    assert own_names(tmp_path / "none") == {"gpu7"}
    hosts = hosts_of("meter.example", ["other.example"], file)
    asked = ("gpu7.lab.example", "meter.example", "other.example", "tracker.example")
    assert [hosts.allow(name) for name in asked] == [True, True, True, False]


def taken_pair():
    """Two neighbouring ports that this process holds, and a free one after them."""
    for _ in range(50):
        first = Port(hello, "127.0.0.1", 0)
        number = int(first.url.rsplit(":", 1)[1])
        try:
            second = Port(hello, "127.0.0.1", number + 1)
            third = Port(hello, "127.0.0.1", number + 2)
        except PortError:
            first._socket.close()
            continue
        third._socket.close()
        return number, first, second
    raise AssertionError("no three neighbours are free")


def test_where_the_default_is_taken_the_next_free_one_is_used_and_told():
    """By a second meter on the host, or another program."""
    number, first, second = taken_pair()
    with structlog.testing.capture_logs() as logs:
        port = Port(hello, "127.0.0.1", number, others=19)
    assert int(port.url.rsplit(":", 1)[1]) > number + 1
    assert [(line["event"], line["port"]) for line in logs] == [("port_taken", number)]
    assert f"http://127.0.0.1:{logs[0]['instead']}" == port.url
    with pytest.raises(PortError, match=rf"{number + 1}.*--port"):
        Port(hello, "127.0.0.1", number, others=1)
    for one in (first, second, port):
        one._socket.close()


def test_a_foreign_address_is_not_tried_at_other_ports():
    """Another port would not help."""
    with structlog.testing.capture_logs() as logs, pytest.raises(PortError, match="--host"):
        Port(hello, "192.0.2.1", 40_000, others=19)
    assert logs == []


def test_the_default_port_is_ours_alone():
    """Outside the ephemeral and the node ports, and no exporter's that is known."""
    assert Settings().http.port == DEFAULT_PORT == 29401
    assert DEFAULT_PORT + PORTS_TRIED < 30_000
