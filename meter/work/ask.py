"""Asking a server over HTTP: with its key, over TLS, and what to do where it does not let us in."""

from __future__ import annotations

import functools
import os
import ssl
import urllib.error
import urllib.request
from urllib.parse import SplitResult, urlsplit

#: vLLM's own variable, and what a proxy before it may want too.
KEY_VARIABLE = "VLLM_API_KEY"
_REFUSED = (401, 403, 407)


def checked_url(url: str) -> SplitResult:
    """The parts of an http or https URL. Raises ``ValueError`` with what is wrong."""
    such = "give one such as http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url} is no URL ({error}): {such}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{url!r} is no http or https URL with a host: {such}")
    if any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError(f"{url!r} has a space or an odd character in it: {such}")
    if parts.username is not None:
        raise ValueError(f"a URL with a name in it: leave it out, and set {KEY_VARIABLE} to a key")
    return parts


@functools.cache
def opener(is_known: bool) -> urllib.request.OpenerDirector:
    """``is_known``: the kernel says whose socket it is, so no certificate has to."""
    context = ssl.create_default_context()
    if is_known:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )


def request(url: str) -> urllib.request.Request:
    """With the key that the environment has; it goes to no other host, wherever we are sent."""
    made = urllib.request.Request(url)
    if key := os.environ.get(KEY_VARIABLE):
        made.add_unredirected_header("Authorization", f"Bearer {key}")
    return made


def remedy(error: Exception) -> str | None:
    """What to do where waiting is of no use; ``None`` where the answer may be another one later."""
    if isinstance(error, urllib.error.HTTPError) and error.code in _REFUSED:
        return f"it wants a key: set {KEY_VARIABLE} to one that it takes"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            "its certificate is not trusted: name the file of who signed it by SSL_CERT_FILE, and "
            "the host as the certificate does"
        )
    if isinstance(reason, ssl.SSLError) and "CERTIFICATE_REQUIRED" in str(reason):
        return "it wants a certificate of its clients, which joulemeter has none of"
    return None
