"""HTTP proxy before a service of the tests: it refuses or damages single answers."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[[str, str, int, bytes], tuple[int, bytes]]
"""Gets method, path, status and body of an answer, and returns status and body for the client."""

_OF_THE_CONNECTION = {"connection", "content-length", "expect", "transfer-encoding"}


@contextmanager
def proxy(target: str, fault: Fault) -> Iterator[str]:
    """Forward every request to the service at `target`, and yield the proxy's address.

    The header `Host` stays, because a signature of S3 covers it.
    """
    host, port = urlsplit(target).hostname or "", urlsplit(target).port

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            service = http.client.HTTPConnection(host, port, timeout=30)
            service.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_THE_CONNECTION:
                    service.putheader(name, value)
            service.putheader("Content-Length", str(len(body)))
            service.endheaders(body)
            answer = service.getresponse()
            length, content = answer.getheader("Content-Length"), answer.read()
            status, content = fault(self.command, self.path, answer.status, content)
            self.send_response(status)
            for name, value in answer.getheaders():
                if name.lower() not in _OF_THE_CONNECTION:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(content)))
            self.end_headers()
            self.wfile.write(content)
            service.close()

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _forward  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
