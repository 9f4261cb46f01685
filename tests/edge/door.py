"""A port that leads to a service while it is open: the end of an outage, without a restart of the service."""

from __future__ import annotations

import socket
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from urllib.parse import urlsplit

from stack.ports import HOST, free_ports


class Door:
    """A closed port, which refuses each connection until it is opened."""

    def __init__(self, service_url: str) -> None:
        self._service = (HOST, int(urlsplit(service_url).port or 0))
        self._port = free_ports(1)[0]

    @property
    def url(self) -> str:
        """The service's address through this port."""
        return f"http://{HOST}:{self._port}"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Forward each connection to the service."""
        service = self._service

        class Forward(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(service) as other:
                    answers = Thread(target=_copy, args=(other, self.request), daemon=True)
                    answers.start()
                    _copy(self.request, other)
                    answers.join()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        with Server((HOST, self._port), Forward) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()


def _copy(source: socket.socket, target: socket.socket) -> None:
    # Either side may close the connection at any time.
    with suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
