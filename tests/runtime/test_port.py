"""The HTTP port: a free one, a taken one, a foreign one."""

import httpx
import pytest

from meter.runtime.port import Port, PortError


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
