"""A server with vLLM's counters and no plugin, for the tests of ``attach``. Arguments: its port (0:
any, printed), its address, and a certificate's file for TLS. It serves one request after the other,
200 tokens/s, until it is ended."""

import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

BEGAN_S = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        output = int((time.monotonic() - BEGAN_S) * 200)
        lines = {
            "vllm:prompt_tokens_total": 10 * (output // 100),
            "vllm:generation_tokens_total": output,
            "vllm:num_requests_running": 1,
        }
        label = '{engine="0",model_name="plain"}'
        text = "".join(f"{name}{label} {value}\n" for name, value in lines.items())
        text += 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="plain"}'
        text += f" {output // 100}\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


port, host, certificate = [*sys.argv[1:], *["", "127.0.0.1", None][len(sys.argv) - 1 :]]
server = HTTPServer((host, int(port)), Handler)
if certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
