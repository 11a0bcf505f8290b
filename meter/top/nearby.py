"""Finds the meters of this machine, where nobody said at which address one is.

The default port may have been taken, by another meter or another program; then the meter took one
of the next ones.
"""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterable

from meter.export import DEFAULT_PORT, PORTS_TRIED, SERVER

PORTS = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
_WAIT_S = 1.0


class NearbyError(Exception):
    """There is none, or more than one; the message has the remedy."""


def the_meter(ports: Iterable[int] = PORTS) -> str:
    """The address of the one meter that answers on this machine. Raises ``NearbyError``."""
    ports = list(ports)
    found = [f"http://127.0.0.1:{port}" for port in ports if _is_meter(port)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NearbyError(f"there are several meters here: name one: {', '.join(found)}")
    raise NearbyError(
        f"no meter answers on this machine at ports {ports[0]} to {ports[-1]}: "
        "start one (joulemeter run -- …), or name its address"
    )


def _is_meter(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT_S)
    with contextlib.closing(connection):
        try:
            connection.request("HEAD", "/livez")
            return connection.getresponse().getheader("Server") == SERVER
        except (OSError, http.client.HTTPException):
            return False
