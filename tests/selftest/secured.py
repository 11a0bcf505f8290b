"""A server with TLS and an API key, for the tests."""

from __future__ import annotations

import json
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: A certificate of localhost and 127.0.0.1, with its key: the tests' only one.
PAIR = Path(__file__).parents[1] / "localhost.pem"


def certificate(folder: Path) -> Path:
    """A file with the certificate and its key."""
    return Path(shutil.copy(PAIR, folder / "server.pem"))


@contextmanager
def serving(
    key: str | None = None, pem: Path | None = None, status: int = 200, body: object = None
) -> Iterator[tuple[int, list[str]]]:
    """Lists one model to who has the key; its port, and the ``Authorization`` that came."""
    seen: list[str] = []
    listed = {"data": [{"id": "m", "max_model_len": 1024}]} if body is None else body

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(listed)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer({"choices": [{"text": "x"}]})

        def answer(self, said):
            said_key = self.headers.get("Authorization")
            seen.append(said_key or "")
            allowed = key is None or said_key == f"Bearer {key}"
            data = json.dumps(said).encode()
            self.send_response(status if allowed else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass  # a client that does not trust us hangs up

    with Quiet(("127.0.0.1", 0), Handler) as server:
        if pem is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port, seen
        finally:
            server.shutdown()
            thread.join()
