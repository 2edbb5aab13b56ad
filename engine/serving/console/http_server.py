"""HTTP server of the console and of /metrics.

It runs in threads, so that it answers while the event loop is busy. HTTP/1.0 with one request per
connection: there are few clients, and no state is left between requests. Everything that a peer can
use up is bounded: connections, header lines, body, time until the request is complete, and time in
which the peer reads nothing of the response.
"""

from __future__ import annotations

import io
import logging
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Thread
from typing import Any, Protocol

from engine.api.errors import ModelsatError

IDLE_TIMEOUT_S = 10  # for a peer that does not read
MAX_CONNECTIONS = 64
STREAM_BUFFER_BYTES = 64 * 1024  # that the kernel holds for a slow reader
PLAIN = "text/plain; charset=utf-8"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A complete request. path: without the query. body: b"" if there is none. peer: HOST:PORT."""

    method: str
    path: str
    query: str
    headers: Message
    body: bytes
    peer: str


class ResponseStream(Protocol):
    """Parts of a body as they come; at an empty one the server only checks that the peer is still
    connected. close() is called once, even if nothing was sent."""

    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Response:
    """body: complete, or a stream that is sent until it ends, or the peer disconnects or stalls."""

    status: int
    content_type: str
    body: bytes | ResponseStream
    headers: Mapping[str, str] = field(default_factory=dict)


RequestHandler = Callable[[Request], Response]  # runs in the connection's thread; must not raise


@dataclass(frozen=True)
class HttpLimits:
    """max_body: bytes of a POST, 0 allows none. connections: further peers are disconnected.
    request_s: seconds until a request must be complete."""

    max_body: int = 0
    connections: int = MAX_CONNECTIONS
    request_s: float = 10


class HttpServer:
    """Listens once constructed, answers once started.

    port: the one it listens on.

    Args:
        address: HOST:PORT.
        flag: the setting that the address came from, for the error message.
        handle: answers a request.
        limits: on what peers may use.
        tls: returns the context for a new connection; None means plain text.

    Raises:
        ModelsatError: it cannot listen on the address.
    """

    def __init__(
        self,
        address: str,
        flag: str,
        handle: RequestHandler,
        limits: HttpLimits = HttpLimits(),
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _server_of(family)((host, int(port)), handle, limits, tls)
        except OSError as error:
            raise ModelsatError(
                f"cannot listen on {address} ({error.strerror}): the port is taken, or this machine"
                f" does not have the address; set {flag} to another HOST:PORT."
            ) from error
        self.port: int = self._server.server_address[1]
        name = flag.removeprefix("--").removesuffix("-address")
        self._thread = Thread(target=self._server.serve_forever, name=name, daemon=True)

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port; returns when it is closed."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        address: tuple[str, int],
        handle: RequestHandler,
        limits: HttpLimits,
        tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self.handle, self.limits, self._tls = handle, limits, tls
        self._slots = BoundedSemaphore(limits.connections)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for it, within the limit of connections."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Count the connection out."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's thread, so that a slow peer delays no other."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(IDLE_TIMEOUT_S)
        with self._tls().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log no traceback for a peer that disconnects."""
        log.debug("a peer disconnected")


def _server_of(family: socket.AddressFamily) -> type[_Server]:
    class Server(_Server):
        address_family = family

    return Server


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_TIMEOUT_S
    server_version, sys_version = "modelsat", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", PLAIN
    server: _Server

    def setup(self) -> None:
        """Bound the whole request: a socket's own timeout restarts with every byte."""
        super().setup()
        self.rfile.close()
        deadline = time.monotonic() + self.server.limits.request_s
        self.rfile = io.BufferedReader(_DeadlineReader(self.connection, deadline))

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length, limit = self.headers.get("Content-Length", ""), self.server.limits.max_body
        if not (length.isascii() and length.isdigit() and len(length) < 12):
            self.send_error(411, "send Content-Length")
        elif int(length) > limit:
            self.send_error(413, f"the body is {length} bytes, the limit is {limit}")
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        self.connection.settimeout(IDLE_TIMEOUT_S)
        path, _, query = self.path.partition("?")
        peer = "{}:{}".format(*self.client_address)
        response = self.server.handle(Request(self.command, path, query, self.headers, body, peer))
        try:
            self._send(response)
        finally:
            if not isinstance(response.body, bytes):
                response.body.close()

    def _send(self, response: Response) -> None:
        body = response.body
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if isinstance(body, bytes):
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.end_headers()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BUFFER_BYTES)
        for part in body:
            if _peer_closed(self.connection):
                return
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log no requests: they may contain secrets."""


class _DeadlineReader(io.RawIOBase):
    """Read a socket; raise TimeoutError from `deadline` (time.monotonic()) on."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


def _peer_closed(connection: socket.socket) -> bool:
    """Whether a peer that should send nothing more does: nearly always its disconnect."""
    ready = select.poll()
    ready.register(connection, select.POLLIN)
    return bool(ready.poll(0))
