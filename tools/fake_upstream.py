"""Fake upstreams with OpenAI's and Anthropic's API, for demos, tests and benchmarks.

    python -m tools.fake_upstream NAME PORT [--questions FILE --right TASK=SHARE,...]

An answer names the upstream, the model that was requested, and what the upstream received. To a
question of the file, it is right or wrong, always alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAUSE_S = 0.02  # between the pieces of a streamed answer
WRONG = "I do not know."


@dataclass
class Upstream:
    """A fake that is running.

    bodies: of the requests received, oldest first; {} for a body that is not a JSON object.
    models: those it serves, any if empty; others get 404. key: what it expects in `authorization`
    or `x-api-key`, anything if empty. status, delay_s: of its answers, until they are set again.
    replies: last turn of a request -> what it answers; to others, that it answers.
    """

    name: str
    port: int
    bodies: list[dict[str, Any]] = field(default_factory=list)
    models: tuple[str, ...] = ()
    key: str = ""
    status: int = 200
    delay_s: float = 0.0
    replies: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients."""
        return f"http://127.0.0.1:{self.port}/v1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    upstream: Upstream

    def server_activate(self) -> None:
        super().server_activate()
        self._connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = super().get_request()
        self._connections.add(connection)
        return connection, peer

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: connections end when this server or its client is killed."""

    def server_close(self) -> None:
        """End the connections as well, like a process that is killed."""
        super().server_close()
        for connection in tuple(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            self._answer(b"".join(self._chunks()))
        else:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def _answer(self, body: bytes) -> None:
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        asked = asked if isinstance(asked, dict) else {}
        upstream, model = self.server.upstream, asked.get("model")
        upstream.bodies.append(asked)
        time.sleep(upstream.delay_s)
        if status := self._refusal(model):
            self._send(status, {"error": {"message": f"{upstream.name} refuses with {status}"}})
            return
        said = upstream.replies.get(_last_text(asked), f"{upstream.name} answers")
        if asked.get("stream"):
            is_anthropic = self.path.partition("?")[0].endswith("/messages")
            self._stream((_messages_events if is_anthropic else chat_events)(said, model))
            return
        details = {
            "upstream": upstream.name,
            "path": self.path,
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "headers": {k.lower(): v for k, v in self.headers.items()},
        }
        answer = _whole(self.path, model, said)
        self._send(200, answer | details)

    def _refusal(self, model: str | None) -> int:
        """Return the status of an error to answer with, 0 for none."""
        upstream, keys = self.server.upstream, ("Authorization", "X-Api-Key")
        sent = [self.headers[name].removeprefix("Bearer ") for name in keys if name in self.headers]
        if upstream.status != 200:
            return upstream.status
        if upstream.key and sent != [upstream.key]:
            return 401
        return 404 if model and upstream.models and model not in upstream.models else 0

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, events: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in [*events, b""]:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            time.sleep(PAUSE_S)


def replies(file: Path, name: str, right: Mapping[str, float]) -> dict[str, str]:
    """Return what the upstream `name` replies to each question of a file.

    file: lines of JSON with `task`, `text` and `answer`, as `modelsat aptitude run` reads them.
    right: task -> share of right answers; 1 for others.
    """
    found = {}
    for line in file.read_text("utf-8").splitlines():
        question = json.loads(line)
        digest = hashlib.sha256(f"{name}\0{question['text']}".encode()).digest()
        is_right = int.from_bytes(digest[:4], "big") / 2**32 < right.get(question["task"], 1)
        answer = question["answer"]
        found[question["text"]] = str(answer if is_right else WRONG)
    return found


def _last_text(body: Mapping[str, Any]) -> str:
    turns = body.get("messages") or [{}]
    content = turns[-1].get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return str(content)


def chat_events(said: str, model: str | None) -> list[bytes]:
    """Return the events of a streamed chat completion."""
    about = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model}
    first, space, rest = said.partition(" ")
    deltas: list[dict[str, str]] = [{"content": first + space}, {"content": rest}, {}]
    choices = [{"index": 0, "delta": d, "finish_reason": None if d else "stop"} for d in deltas]
    events = [json.dumps({**about, "choices": [choice]}) for choice in choices]
    return [f"data: {event}\n\n".encode() for event in [*events, "[DONE]"]]


def _messages_events(said: str, model: str | None) -> list[bytes]:
    message = _whole("/messages", model, "")
    delta = {"type": "text_delta", "text": said}
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": message["content"][0]},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def _whole(path: str, model: str | None, said: str) -> dict[str, Any]:
    """Return the body of a response, a completion or a chat completion, depending on the path."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    about = {"id": "1", "created": int(time.time()), "model": model, "usage": usage}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if path.endswith("/responses"):
        part = {"type": "output_text", "text": said, "annotations": []}
        turn = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
        output = [{**turn, "content": [part]}]
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        more: dict[str, Any] = {
            "object": "response",
            "status": "completed",
            "output": output,
            "usage": usage,
        }
        more |= {"created_at": about["created"], "parallel_tool_calls": True}
        return {**about, **more, "tool_choice": "auto", "tools": [], "error": None}
    if path.partition("?")[0].endswith("/messages"):
        usage = {"input_tokens": 1, "output_tokens": 1}
        block = {"type": "text", "text": said}
        message = {"id": "1", "type": "message", "role": "assistant", "model": model}
        return {**message, "content": [block], "stop_reason": "end_turn", "usage": usage}
    if path.endswith("/completions") and not path.endswith("/chat/completions"):
        return {**about, "object": "text_completion", "choices": [{**choice, "text": said}]}
    choice["message"] = {"role": "assistant", "content": said}
    return {**about, "object": "chat.completion", "choices": [choice]}


@contextmanager
def upstream(
    name: str, port: int = 0, tls: ssl.SSLContext | None = None, **more: Any
) -> Iterator[Upstream]:
    """Run an upstream, on a free port if `port` is 0. more: attributes of Upstream."""
    server = _Server(("127.0.0.1", port), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.upstream = Upstream(name, int(server.server_address[1]), **more)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.upstream
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Run an upstream until it is stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("name", help="its name, which its answers have")
    add("port", type=int, help="port on the loopback")
    add("--tls", type=Path, metavar="PEM", help="certificate and key; without it, plain HTTP")
    add("--key", default="", help="the key that it expects")
    add("--models", default="", metavar="A,B", help="models that it serves (default: any)")
    add("--questions", type=Path, metavar="FILE", help="JSON lines: task, text, answer")
    add("--right", default="", metavar="TASK=SHARE,...", help="share of right answers (default 1)")
    parsed = parser.parse_args()
    tls, more = None, {}
    if parsed.tls:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(parsed.tls)
    if parsed.questions:
        shares = [pair.split("=") for pair in parsed.right.split(",") if pair]
        right = {task: float(share) for task, share in shares}
        more["replies"] = replies(parsed.questions, parsed.name, right)
    models = tuple(filter(None, parsed.models.split(",")))
    with upstream(parsed.name, parsed.port, tls, key=parsed.key, models=models, **more):
        print(f"{parsed.name} listens on port {parsed.port}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
