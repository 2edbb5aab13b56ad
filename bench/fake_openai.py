"""Fake OpenAI upstreams for the LiteLLM demo and its tests: each says who it is, no more."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Upstream:
    """bodies: of the requests it got, oldest first."""

    name: str
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def upstream(name: str) -> Iterator[Upstream]:
    """One that runs on a free port."""
    told = Upstream(name)
    handler = type("Handler", (_Handler,), {"told": told})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: Upstream

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.told.bodies.append(asked)
        said = f"{self.told.name} answers"
        if asked.get("stream"):
            self._send("text/event-stream", _stream(asked["model"], said))
        else:
            kind = self.path.rpartition("/v1/")[2]
            self._send("application/json", json.dumps(_whole(kind, asked["model"], said)))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""

    def _send(self, kind: str, content: str) -> None:
        raw = content.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def _whole(kind: str, model: str, said: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    about = {"id": "1", "created": int(time.time()), "model": model, "usage": usage}
    if kind == "responses":
        part = {"type": "output_text", "text": said, "annotations": []}
        turn = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
        output = [{**turn, "content": [part]}]
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        more = {"object": "response", "status": "completed", "output": output, "usage": usage}
        more |= {"created_at": about["created"], "parallel_tool_calls": True}
        return {**about, **more, "tool_choice": "auto", "tools": [], "error": None}
    if kind == "completions":
        choice: dict[str, Any] = {"text": said, "index": 0, "finish_reason": "stop"}
        return {**about, "object": "text_completion", "choices": [choice]}
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {**about, "object": "chat.completion", "choices": [choice]}


def _stream(model: str, said: str) -> str:
    about = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model}
    deltas: list[dict[str, Any]] = [{"content": word + " "} for word in said.split()]
    choices = [{"index": 0, "delta": d, "finish_reason": None} for d in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    events = [json.dumps({**about, "choices": [choice]}) for choice in choices]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
