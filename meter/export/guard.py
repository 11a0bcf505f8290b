"""Who may ask: a web page of another origin may not read what the meter says.

A browser lets a page read only answers of the page's own origin. An attacker who owns a name can
get around that: the name first resolves to the attacker's server, which hands out a page, and then
to this machine (DNS rebinding). The browser then takes our answers for the attacker's own. But it
names the host that it means in ``Host``, and no page can change that. So only hosts that no
attacker can own are answered: addresses, ``localhost``, this machine's own names, and what is set.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from starlette.responses import Response

from meter.export.problem import problem, short

_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names under which the meter may be asked, beside addresses and ``localhost``.

    ``own``: this machine's names. ``configured``: names, ``*.suffix`` for all names below one, or
    ``*`` for any.
    """

    own: frozenset[str] = frozenset()
    configured: frozenset[str] = frozenset()

    @classmethod
    def of(cls, own: Iterable[str] = (), configured: Iterable[str] = ()) -> Hosts:
        return cls(frozenset(map(_name, own)), frozenset(map(_name, configured)))

    def allow(self, host: str) -> bool:
        """``host``: without port and brackets."""
        name = _name(host)
        return name == "localhost" or _is_address(name) or name in self.own or self.name(name)

    def name(self, host: str) -> bool:
        """Whether it is configured."""
        name = _name(host)
        if "*" in self.configured or name in self.configured:
            return True
        return any(one.startswith("*.") and name.endswith(one[1:]) for one in self.configured)


class Guard:
    """ASGI middleware: asks ``Hosts`` before anything else sees the request."""

    def __init__(self, app: Any, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = self._refusal(scope["headers"]) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal(scope, receive, send)

    def _refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> Response | None:
        hosts = _values(headers, b"host")
        origins = _values(headers, b"origin")
        if len(hosts) > 1 or len(origins) > 1:
            return problem(
                HTTPStatus.BAD_REQUEST, "Host or Origin is given twice", remedy="Send each once."
            )
        # Without Host it is HTTP/1.0, which no browser speaks.
        if hosts and not self._hosts.allow(_split(hosts[0])[0]):
            return _misdirected(hosts[0])
        if origins and not self._is_ours(origins[0], hosts[0] if hosts else ""):
            return problem(
                HTTPStatus.FORBIDDEN,
                f"a page of {short(origins[0])!r} asks, which is another origin",
                field="Origin",
                remedy="Open the meter's own page. Behind a proxy, put its name into "
                "http.allowed_hosts (JOULEMETER_HTTP__ALLOWED_HOSTS).",
            )
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        """Whether the page that asks came from here; through a proxy, from a configured name."""
        scheme, there, authority = origin.partition("://")
        if not there or scheme not in _PORTS:
            return False
        name, port = _split(authority)
        ours, our_port = _split(host)
        default = _PORTS[scheme]
        same = (_name(name), port or default) == (_name(ours), our_port or default)
        return same or self._hosts.name(name)


def _misdirected(host: str) -> Response:
    name = short(_split(host)[0], 100)
    remedy = (
        f"If this name is yours, put it into http.allowed_hosts (or set "
        f"JOULEMETER_HTTP__ALLOWED_HOSTS), or ask by address: {name!r} may be a stranger's."
    )
    structlog.get_logger("joulemeter.http").warning("host_refused", host=name, remedy=remedy)
    return problem(
        HTTPStatus.MISDIRECTED_REQUEST, f"no host {name!r} here", field="Host", remedy=remedy
    )


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key.lower() == name]


def _split(authority: str) -> tuple[str, str]:
    """Host without brackets, and port (empty where there is none)."""
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        return host, rest.removeprefix(":")
    host, colon, port = authority.rpartition(":")
    # More than one colon without brackets: an IPv6 address as some clients write it.
    return (host, port) if colon and ":" not in host else (authority, "")


def _name(host: str) -> str:
    return host.strip().lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
