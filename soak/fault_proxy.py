"""HTTP proxy before MinIO or MLflow that refuses, cuts, delays or damages chosen requests and answers."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Change = Callable[[str, str, int, bytes], tuple[int, bytes]]
"""Gets method, path, status and body of an answer, and returns status and body for the client."""

Kind = Literal[
    "refused", "status", "clock", "cut upload", "cut download", "slow", "flipped upload", "flipped download", "lost",
    "timeout", "late"
]  # fmt: skip
_BEFORE = ("refused", "status", "clock", "cut upload", "timeout", "late")
_SKEWED = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"
_OF_THE_CONNECTION = {"connection", "content-length", "expect", "transfer-encoding"}
_TIMEOUT_S = 60.0


@dataclass(slots=True, kw_only=True)
class Fault:
    """A fault of the requests that match.

    ``refused`` closes the connection before the request is read. ``lost`` closes it after the server has done the work.
    ``late`` closes it at once, and the server gets the request after `seconds`: the client has repeated it by then.
    ``timeout`` answers nothing for `seconds`, and ``slow`` waits as long before the request goes on. ``clock`` answers
    as a store whose clock is `seconds` ahead of the client's. A cut sends `size` bytes of the body. A flip changes one
    bit in the middle of the body.

    :param method: a regular expression; likewise `path`, which is searched in path and query.
    :param about: texts of which path or body of the request contain one, such as the id of a training run.
    :param times: the number of requests that get the fault.
    :param after: the number of matching requests that pass before.
    """

    kind: Kind
    method: str = ".*"
    path: str = ""
    about: tuple[str, ...] = ()
    times: int = 1
    after: int = 0
    size: int = 0
    seconds: float = 0.0
    status: int = 503
    injected: int = 0

    def matches(self, method: str, path: str, body: bytes) -> bool:
        """Return True if the request gets the fault or is counted by `after`."""
        if self.injected >= self.times or not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        return not self.about or any(text in path or text.encode() in body for text in self.about)


@dataclass(slots=True)
class Plan:
    """The faults that are still to come. Threads share it."""

    faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> Fault:
        """Add a fault and return it: `injected` then counts the requests that got it."""
        with self._lock:
            self.faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """End a fault."""
        with self._lock:
            self.faults.remove(fault)

    def next(self, method: str, path: str, body: bytes) -> Fault | None:
        """Return the fault of a request, and count it."""
        with self._lock:
            for fault in self.faults:
                if fault.matches(method, path, body):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.injected += 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: tuple[str, int]
    change: Change | None
    plan: Plan

    def _serve(self) -> None:
        body = self._body()
        fault = self.plan.next(self.command, self.path, body)
        kind = fault.kind if fault else None
        if fault and kind in _BEFORE:
            self._fail(fault, body)
            return
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        status, headers, content = self._forward(flipped(body) if kind == "flipped upload" else body)
        if kind == "lost":
            self._drop()
            return
        if self.change:
            status, content = self.change(self.command, self.path, status, content)
        if kind == "flipped download":
            content = flipped(content)
        self._answer(status, headers, content, fault.size if fault and kind == "cut download" else None)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815 - names of http.server

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _connect(self, length: int) -> http.client.HTTPConnection:
        """Return a connection with the request's headers.

        `Host` stays, because a signature of S3 covers it. That of an address with a signature is the server's own.
        """
        service = http.client.HTTPConnection(*self.target, timeout=_TIMEOUT_S)
        service.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        own = {"host": "{}:{}".format(*self.target)} if "X-Amz-Signature=" in self.path else {}
        for name, value in self.headers.items():
            if name.lower() not in _OF_THE_CONNECTION:
                service.putheader(name, own.get(name.lower(), value))
        service.putheader("Content-Length", str(length))
        return service

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        service = self._connect(len(body))
        service.endheaders(body)
        answer = service.getresponse()
        headers, content = answer.getheaders(), answer.read()
        service.close()
        return answer.status, headers, content

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: int | None) -> None:
        """Send the answer, or its first `cut` bytes."""
        # `send_response` adds the time of this host.
        has_time = any(name.lower() == "date" for name, _ in headers)
        (self.send_response_only if has_time else self.send_response)(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in _OF_THE_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content[:cut])
        if cut is not None:
            self.wfile.flush()
            self._drop()

    def _fail(self, fault: Fault, body: bytes) -> None:
        """Do not let the request reach the server, or not the whole of it."""
        if fault.kind == "status":
            self._answer(fault.status, [("Content-Type", "application/json")], b"{}", None)
            return
        if fault.kind == "clock":
            moment = formatdate(time.time() + fault.seconds, usegmt=True)
            self._answer(HTTPStatus.FORBIDDEN, [("Content-Type", "application/xml"), ("Date", moment)], _SKEWED, None)
            return
        if fault.kind == "late":
            threading.Timer(fault.seconds, self._forward, [body]).start()
        elif fault.kind == "timeout":
            time.sleep(fault.seconds)
        elif fault.kind == "cut upload":
            service = self._connect(len(body))
            service.endheaders(body[: fault.size])
            service.close()
        self._drop()

    def _drop(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients and servers are killed here."""

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that the handler may have closed."""
        try:
            super().shutdown_request(request)
        except OSError:
            request.close()


def flipped(body: bytes) -> bytes:
    """Return the bytes with one bit changed."""
    place = len(body) // 2
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :] if body else body


@contextmanager
def proxy(target: str, change: Change | None = None, plan: Plan | None = None) -> Iterator[str]:
    """Forward every request to the service at `target`, and yield the proxy's address."""
    parts = urlsplit(target)
    attributes = {"target": (parts.hostname or "", parts.port or 80), "plan": plan or Plan()}
    # A plain function would become a method of the class.
    handler = type("Handler", (_Handler,), attributes | {"change": staticmethod(change) if change else None})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
