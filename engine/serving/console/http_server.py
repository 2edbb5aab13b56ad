"""HTTP for people and scrapers, in threads of its own: it answers while the event loop is busy.

HTTP/1.0, a request to a connection: few ask, and nothing is left to get out of step. Everything a
peer can take is bounded: connections, header lines, body, the time in which the whole request
comes, and that in which nothing of the answer is taken.
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

IDLE_S = 10  # a peer that does not read is let go
MAX_CONNECTIONS = 64
STREAM_BUFFER = 64 * 1024  # bytes the kernel holds for a reader that is behind
PLAIN = "text/plain; charset=utf-8"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """path: without the query. body: whole, b"" where there is none. peer: HOST:PORT."""

    method: str
    path: str
    query: str
    headers: Message
    body: bytes
    peer: str


class Stream(Protocol):
    """Parts as they come; empty ones ask whether the peer is still there. close() is called once,
    also where nothing was sent."""

    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Response:
    """body: the whole, or a stream that is sent until it ends or the peer hangs up or stalls."""

    status: int
    content_type: str
    body: bytes | Stream
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[Request], Response]  # called in the connection's thread; must not raise


@dataclass(frozen=True)
class Limits:
    """max_body: bytes of a POST; 0 takes none. Peers beyond `connections` are hung up on, and those
    whose request is not whole after request_s."""

    max_body: int = 0
    connections: int = MAX_CONNECTIONS
    request_s: float = 10


class HttpServer:
    """Listens from the start, answers from start() on. port: the one it listens on.

    flag: the setting that `address` (HOST:PORT) came from. tls: the context for a new connection,
    None speaks plain text. Raises ModelsatError where it cannot listen.
    """

    def __init__(
        self,
        address: str,
        flag: str,
        answer: Answer,
        limits: Limits = Limits(),
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _server_of(family)((host, int(port)), answer, limits, tls)
        except OSError as error:
            raise ModelsatError(
                f"cannot listen on {address} ({error.strerror}): it is taken or not an address of"
                f" this machine; give {flag} another HOST:PORT."
            ) from error
        self.port: int = self._server.server_address[1]
        name = flag.removeprefix("--").removesuffix("-address")
        self._thread = Thread(target=self._server.serve_forever, name=name, daemon=True)

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

    def __init__(
        self,
        address: tuple[str, int],
        answer: Answer,
        limits: Limits,
        tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self.answer, self.limits, self._tls = answer, limits, tls
        self._room = BoundedSemaphore(limits.connections)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for it, while there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the room back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's thread, so that a slow handshake keeps nobody waiting."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(IDLE_S)
        with self._tls().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that hangs up is not worth a traceback."""
        log.debug("a connection was cut off")


def _server_of(family: socket.AddressFamily) -> type[_Server]:
    class Server(_Server):
        address_family = family

    return Server


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_S
    server_version, sys_version = "modelsat", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", PLAIN
    server: _Server

    def setup(self) -> None:
        """A socket's timeout begins anew with every byte."""
        super().setup()
        self.rfile.close()
        deadline = time.monotonic() + self.server.limits.request_s
        self.rfile = io.BufferedReader(_Until(self.connection, deadline))

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length, limit = self.headers.get("Content-Length", ""), self.server.limits.max_body
        if not (length.isascii() and length.isdigit() and len(length) < 12):
            self.send_error(411, "send the body's Content-Length")
        elif int(length) > limit:
            self.send_error(413, f"the body is {length} bytes, the limit is {limit}")
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        self.connection.settimeout(IDLE_S)
        path, _, query = self.path.partition("?")
        peer = "{}:{}".format(*self.client_address)
        response = self.server.answer(Request(self.command, path, query, self.headers, body, peer))
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
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BUFFER)
        for part in body:
            if _hung_up(self.connection):
                return
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are no news, and may hold what is secret."""


class _Until(io.RawIOBase):
    """Reads a socket; raises TimeoutError from `deadline` (time.monotonic()) on."""

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


def _hung_up(connection: socket.socket) -> bool:
    """Whether a peer that has nothing more to say says something: most often the end."""
    ready = select.poll()
    ready.register(connection, select.POLLIN)
    return bool(ready.poll(0))
