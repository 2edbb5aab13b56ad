"""What judges the afternoon (docs/own-models.md) sees failures, cut streams and another mix."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools import traffic

CHAT = "/v1/chat/completions"


class Gateway(BaseHTTPRequestHandler):
    """Answers as model a to `a`, as b to all else; `fails` gets 503, and `cut` half a stream."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][0]["content"]
        message = {"content": "yes", "role": "assistant"}
        answer = json.dumps({"choices": [{"message": message}]}).encode()
        if body.get("stream"):
            delta = json.dumps({"choices": [{"delta": {"content": "yes"}}]}).encode()
            answer = b"data: " + delta + b"\n\n" + (b"" if text == "cut" else b"data: [DONE]\n\n")
        self.send_response(503 if text == "fails" else 200)
        self.send_header("x-selected-model", "model-a" if text == "a" else "model-b")
        if text != "default":
            self.send_header("x-modelsat-decision-id", "d")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def request(text: str, **more: object) -> dict[str, object]:
    return {"path": CHAT, "body": {"messages": [{"role": "user", "content": text}], **more}}


@pytest.mark.parametrize(
    ("texts", "share", "status"),
    [
        (["a", "b", "b", "b"], 0.26, 0),
        (["a", "b", "b", "b"], 0.28, 1),
        (["a", "b", "b", "fails"], 1 / 3, 1),
    ],
)
def test_a_failure_or_another_mix_is_an_error(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    texts: list[str],
    share: float,
    status: int,
) -> None:
    lines = [json.dumps(request(text)) for text in texts]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    (tmp_path / "names.json").write_text('{"a": "model-a", "b": "model-b"}')
    mix = {"recommended": {"selection_share": {"a": share, "b": 1 - share}}}
    (tmp_path / "mix.json").write_text(json.dumps(mix))
    words = [url, str(tmp_path / "requests.jsonl"), "--names", str(tmp_path / "names.json")]
    words += ["--predicted", str(tmp_path / "mix.json"), "--answers", str(tmp_path / "seen.jsonl")]
    monkeypatch.setattr("sys.argv", ["traffic", *words])
    assert traffic.main() == status
    failed = texts.count("fails")
    assert f"4 requests, {failed} failed, 0 streams cut" in capsys.readouterr().out
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in seen] == ["yes"] * (4 - failed)


def test_traffic_without_requests_is_an_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requests.jsonl").write_text("")
    monkeypatch.setattr("sys.argv", ["traffic", url, str(tmp_path / "requests.jsonl")])
    assert traffic.main() == 1


@pytest.mark.parametrize(("text", "status"), [("a", 1), ("default", 0)])
def test_an_event_that_no_request_meets_shows_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, status: int
) -> None:
    (tmp_path / "requests.jsonl").write_text(json.dumps(request(text)))
    words = [url, str(tmp_path / "requests.jsonl"), "--seconds", "0.3", "--event", "true"]
    monkeypatch.setattr("sys.argv", ["traffic", *words])
    assert traffic.main() == status


def test_a_stream_ends_as_its_api_says() -> None:
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "yes"}}
    stop: dict[str, object] = {"type": "message_stop"}
    events = [
        {"type": "message_start", "message": {}},
        text,
        {"type": "message_delta", "delta": {}},
    ]
    lines = [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in (*events, stop)]
    assert traffic.text_of_stream("".join(lines).encode()) == "yes"
    with pytest.raises(http.client.IncompleteRead):
        traffic.text_of_stream("".join(lines[:-1]).encode())


def test_a_stream_may_be_cut_only_if_it_had_begun_at_the_event(url: str) -> None:
    client = traffic.GatewayClient(url, {}, {})
    whole = traffic.send_all(client, [request("a", stream=True)])
    assert (whole.failures, whole.cut, len(whole.answers)) == ([], 0, 1)
    unexplained = traffic.send_all(client, [request("cut", stream=True)])
    assert (len(unexplained.failures), unexplained.cut) == (1, 0)
    at_event = traffic.send_all(client, [request("cut", stream=True)], 0.6, "true")
    assert at_event.cut > 0
    assert at_event.failures, "those after the event"
