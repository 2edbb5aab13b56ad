"""/metrics over HTTP, in a thread of its own: it answers while the event loop is busy."""

from __future__ import annotations

import logging
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from engine.contract.errors import ModelsatError

IDLE_S = 10  # a peer that neither asks nor reads is let go
log = logging.getLogger(__name__)


class Exposition:
    """Listens from the start, answers from start() on. port: the one it listens on.

    Raises ModelsatError where it cannot listen on `address` (HOST:PORT).
    """

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            self._server = _server(host, int(port), registry)
        except OSError as error:
            raise ModelsatError(
                f"cannot listen on {address} ({error.strerror}): it is taken or not an address of"
                " this machine; give --metrics-address another HOST:PORT."
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port; returns when nobody listens any more."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that hangs up is not worth a traceback."""
        log.debug("a scrape was cut off")


def _server(host: str, port: int, registry: CollectorRegistry) -> _Server:
    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S
        server_version, sys_version = "modelsat", ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "only /metrics is here")
                return
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            body = encode(registry)
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Scrapes are no news."""

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server((host, port), Handler)
