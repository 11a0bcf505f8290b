"""How the server that is judged is asked: its address, its API key, its certificate.

The key goes into a header and nowhere else: it is in no message, file or command line of ours.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from meter.demo.client import Reply, post
from meter.selftest.findings import SelftestError
from meter.work.ask import KEY_VARIABLE

#: A large model is loaded, compiled and captured.
START_S = 1800.0
_TIMEOUT_S = 3.0
_ANSWER_BYTES_MAX = 4 << 20
_HIDDEN = "…"


@dataclass(frozen=True, slots=True)
class Reach:
    """``key``: what the server wants in ``Authorization``; ``key_from``: where it was found;
    ``ca_file``: certificates to trust; ``start_s``: how long it may take to start."""

    key: str | None = field(default=None, repr=False)
    key_from: str | None = None
    ca_file: Path | None = None
    start_s: float = START_S

    @classmethod
    def of(
        cls,
        command: Sequence[str],
        environ: Mapping[str, str],
        key_variable: str | None = None,
        ca_file: Path | None = None,
        start_s: float = START_S,
    ) -> Reach:
        """As options say, else the command, else vLLM's own variable. Raises ``SelftestError``."""
        key: str | None
        if key_variable is not None:
            key, key_from = environ.get(key_variable), key_variable
            if not key:
                raise SelftestError(f"--api-key-env {key_variable[:80]}: that variable is not set")
        elif key := option(command, "--api-key"):
            key_from = "the command's --api-key"
        else:
            key, key_from = environ.get(KEY_VARIABLE) or None, KEY_VARIABLE
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise SelftestError(f"the API key in {key_from} is no key: it holds odd characters")
        if ca_file is None and (own := option(command, "--ssl-certfile")):
            ca_file = Path(own)
        return cls(key, key_from if key else None, ca_file, start_s)


def option(command: Sequence[str], name: str) -> str | None:
    """What a command gives an option: ``--name value`` or ``--name=value``."""
    for word, following in zip(command, (*command[1:], ""), strict=False):
        before, _, value = word.partition("=")
        if before == name:
            return value or following or None
    return None


def without_key(command: Sequence[str]) -> list[str]:
    """A command as it may be written down: what its ``--api-key`` gives is hidden."""
    said: list[str] = []
    hiding = False
    for word in command:
        name, equals, _ = word.partition("=")
        hiding = hiding and not word.startswith("-")
        if name == "--api-key" and equals:
            said.append(f"{name}={_HIDDEN}")
        else:
            said.append(_HIDDEN if hiding else word)
        hiding = hiding or word == "--api-key"  # it may give several
    return said


class Answer(NamedTuple):
    """``status`` 0: nobody answers; ``problem``: why, where it is not that nobody is there."""

    status: int
    body: bytes = b""
    problem: str | None = None
    lasting: bool = False


@dataclass(frozen=True)
class Access:
    """A server at ``url``, reached so."""

    url: str
    reach: Reach = field(default_factory=Reach)

    @property
    def headers(self) -> dict[str, str]:
        key = self.reach.key
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """Raises ``SelftestError`` where the certificates cannot be read."""
        if urlsplit(self.url).scheme != "https":
            return None
        context = ssl.create_default_context()
        if self.reach.ca_file is not None:
            try:
                context.load_verify_locations(self.reach.ca_file)
            except (OSError, ValueError) as error:
                raise SelftestError(
                    f"--ca-file {str(self.reach.ca_file)[:200]}: no certificates can be read from "
                    f"it ({getattr(error, 'strerror', None) or error})"
                ) from error
        return context

    def post(self, path: str, body: object) -> AbstractAsyncContextManager[Reply]:
        """Raises ``ClientError``."""
        return post(self.url, path, body, self.headers, self.tls)

    def get(self, path: str) -> Answer:
        """No proxy: it is this machine, or one beside it."""
        parts = urlsplit(self.url)
        host, tls = parts.hostname or "", self.tls
        connection = (
            http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT_S)
            if tls is None
            else http.client.HTTPSConnection(host, parts.port, timeout=_TIMEOUT_S, context=tls)
        )
        try:
            connection.request("GET", f"{parts.path}{path}", headers=self.headers)
            response = connection.getresponse()
            return Answer(response.status, response.read(_ANSWER_BYTES_MAX))
        except ssl.SSLCertVerificationError as error:
            said = f"its certificate is not trusted ({error.verify_message}): give --ca-file FILE"
            return Answer(0, b"", f"{said}, and --url with the name that is in it", lasting=True)
        except ssl.SSLError as error:
            said = f"it does not speak TLS as we do ({str(error.reason)[:80]}): is it http://?"
            return Answer(0, b"", said, lasting=True)
        except (http.client.HTTPException, ConnectionResetError) as error:
            what = type(error).__name__
            return Answer(0, b"", f"it does not speak HTTP ({what}): is it https://, by --url?")
        except OSError:
            return Answer(0)
        finally:
            connection.close()

    def refusal(self, answer: Answer) -> str | None:
        """Why the server will never serve us, where an answer says so."""
        if answer.status in (401, 403):
            key = self.reach.key_from
            if key is None:
                return (
                    f"{self.url} answers {answer.status}: it wants an API key: put it into a "
                    "variable, and name that with --api-key-env"
                )
            return f"{self.url} answers {answer.status}: it does not take the API key in {key}"
        if answer.lasting:
            return f"{self.url}: {answer.problem}"
        return None

    def model(self) -> dict[str, Any]:
        """The first model that the server lists. Raises ``SelftestError``."""
        answer = self.get("/v1/models")
        if refusal := self.refusal(answer):
            raise SelftestError(refusal)
        found = _json(answer)
        models = found.get("data") if isinstance(found, dict) else None
        first = models[0] if isinstance(models, list) and models else None
        if not isinstance(first, dict) or not isinstance(first.get("id"), str):
            said = f" ({answer.problem})" if answer.problem else ""
            raise SelftestError(f"no server with the OpenAI API answers at {self.url}{said}")
        return first


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.body) if answer.status == 200 else None
    except (ValueError, RecursionError):
        return None
