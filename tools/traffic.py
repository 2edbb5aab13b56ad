"""Send chat requests to a gateway from several clients, and report what they saw.

    python -m tools.traffic http://127.0.0.1:10000 requests.jsonl --seconds 6 --event "kill -9 $pid"

A request is a line of JSON with the `path` and the `body`. Without --seconds each is sent once. The
command of --event runs after a third of the time. It fails if a request fails. A streamed answer
that had begun at the event may be cut, because its client has read a part of it.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CLIENTS = 4
TIMEOUT_S = 60
TOLERANCE = 0.02  # by which a share of the requests may differ from the predicted one
EVENT_SHARE = 1 / 3  # of the seconds, before the event


@dataclass(frozen=True)
class Answer:
    """A complete answer. repeated: whether another model failed before."""

    request: Mapping[str, Any]
    decision_id: str | None
    candidate: str
    text: str
    repeated: bool


@dataclass
class Report:
    """What the clients saw.

    cut: streams that had begun at the event. failures: what was wrong with the other requests.
    """

    answers: list[Answer] = field(default_factory=list)
    cut: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def requests(self) -> int:
        """How many were sent."""
        return len(self.answers) + self.cut + len(self.failures)

    def shares(self) -> dict[str, float]:
        """Return the share of the answers that each candidate gave."""
        counts = Counter(answer.candidate for answer in self.answers)
        return {name: count / len(self.answers) for name, count in counts.items()}

    def lines(self) -> Iterator[str]:
        """Yield what to print: a line for all requests, and one for each kind."""
        repeated = sum(answer.repeated for answer in self.answers)
        default = sum(answer.decision_id is None for answer in self.answers)
        yield (
            f"{self.requests} requests, {len(self.failures)} failed, {self.cut} streams cut,"
            f" {self.seconds:.1f} s"
        )
        yield f"  {repeated} by a second or third model, {default} without modelsat"
        kinds: dict[str, Counter[str]] = {}
        for answer in self.answers:
            kinds.setdefault(kind_of(answer.request), Counter())[answer.candidate] += 1
        for kind, models in sorted(kinds.items()):
            yield f"  {kind}: {', '.join(f'{name} {n}' for name, n in models.most_common())}"
        yield from (f"  failed: {failure}" for failure in self.failures[:5])


class GatewayClient:
    """Sends requests to a gateway.

    names: upstream's name of a model -> candidate. headers: of every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str], names: Mapping[str, str]) -> None:
        self._host = urlsplit(url).netloc
        self._headers = {"content-type": "application/json", **headers}
        self._names = names

    def send(self, request: Mapping[str, Any]) -> Answer:
        """Send a request and read its whole answer.

        Raises:
            OSError, http.client.HTTPException: the connection fails.
            ValueError: the answer is not what a client of the path's API expects.
        """
        client = http.client.HTTPConnection(self._host, timeout=TIMEOUT_S)
        try:
            client.request("POST", request["path"], json.dumps(request["body"]), self._headers)
            response = client.getresponse()
            raw = response.read()
        finally:
            client.close()
        model = response.headers["x-selected-model"]
        if response.status != 200 or not model:
            raise ValueError(f"{request['path']} {response.status} by {model}: {raw[:200]!r}")
        candidate = response.headers["x-modelsat-candidate"] or self._names.get(model, model)
        attempt = response.headers.get("x-envoy-attempt-count", "1")
        return Answer(
            request,
            response.headers["x-modelsat-decision-id"],
            candidate,
            text_of_stream(raw) if request["body"].get("stream") else _whole(json.loads(raw)),
            attempt != "1" or "x-modelsat-failed" in response.headers,
        )


def kind_of(request: Mapping[str, Any]) -> str:
    """Return the end of a request's path, and what its body asks for, such as "messages, tools"."""
    body = request["body"]
    wants = {"tools": "tools", "response_format": "JSON", "stream": "streamed"}
    kinds = [word for name, word in wants.items() if body.get(name)]
    return ", ".join([request["path"].rpartition("/v1/")[2], *kinds])


def _whole(body: Any) -> str:
    """Return the text of an answer in OpenAI's or Anthropic's API."""
    try:
        if "choices" in body:
            return str(body["choices"][0]["message"]["content"])
        return "".join(part["text"] for part in body["content"] if part["type"] == "text")
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not an answer: {str(body)[:200]}") from error


def text_of_stream(raw: bytes) -> str:
    """Return the text of a streamed answer in the API of chat completions or of messages.

    Raises http.client.IncompleteRead: it does not end as its API says, or with an error.
    """
    lines = [line for line in raw.decode().splitlines() if line.startswith("data:")]
    events = [line.removeprefix("data:").strip() for line in lines]
    ends = events[-1:] == ["[DONE]"] or '"message_stop"' in "".join(events[-1:])
    # LiteLLM ends with an error what had begun.
    if not ends or any('{"error' in event for event in events):
        raise http.client.IncompleteRead(raw)
    parsed = [json.loads(event) for event in events if event != "[DONE]"]
    deltas = [choice["delta"].get("content") for e in parsed for choice in e.get("choices", [])]
    deltas += [e["delta"].get("text") for e in parsed if "choices" not in e and "delta" in e]
    return "".join(delta or "" for delta in deltas)


def send_all(
    client: GatewayClient,
    requests: Sequence[Mapping[str, Any]],
    seconds: float | None = None,
    event: str = "",
) -> Report:
    """Send requests from CLIENTS clients: each once, or for some seconds, in which the shell
    command `event` runs."""
    report, lock, begun = Report(), threading.Lock(), time.monotonic()
    cuts: list[tuple[float, str]] = []  # (when the stream was asked for, the error)
    waiting = itertools.cycle(requests) if seconds else iter(requests)
    end = begun + seconds if seconds else math.inf

    def work() -> None:
        while (asked := time.monotonic()) < end:
            with lock:
                request = next(waiting, None)
            if request is None:
                return
            try:
                answer = client.send(request)
            except (OSError, ValueError, http.client.HTTPException) as error:
                found = f"{type(error).__name__}: {error}"
                with lock:
                    if isinstance(error, http.client.IncompleteRead) and kind_of(request).endswith(
                        "streamed"
                    ):
                        cuts.append((asked, found))
                    else:
                        report.failures.append(found)
            else:
                with lock:
                    report.answers.append(answer)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    happened = -math.inf
    if event and seconds:
        time.sleep(seconds * EVENT_SHARE)
        subprocess.run(event, shell=True, check=True)  # noqa: S602 - the caller's own command
        happened = time.monotonic()
    for thread in threads:
        thread.join()
    report.failures += [found for asked, found in cuts if asked >= happened]
    report.cut = sum(asked < happened for asked, _ in cuts)
    report.seconds = time.monotonic() - begun
    return report


def differences(predicted: Mapping[str, float], shares: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for each candidate: the predicted and the seen share of the requests."""
    for name in sorted({*predicted, *shares}):
        yield f"  {name}: predicted {predicted.get(name, 0):.1%}, seen {shares.get(name, 0):.1%}"


def main() -> int:
    """Return 1 if a request failed, if there is no answer, if no request met the event, or if the
    shares are not the predicted ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("url", help="address of the gateway")
    add("requests", type=Path, help="file of requests")
    add("--seconds", type=float, help="how long to send; each once if not set")
    add("--event", default="", metavar="COMMAND", help="what happens after a third of the seconds")
    add("--key", default="", help="the client's key for the gateway")
    add("--names", type=Path, metavar="FILE", help="JSON object: candidate -> upstream's name")
    add("--answers", type=Path, metavar="FILE", help="write the answers as lines of JSON")
    text = "output of `modelsat calibrate --json`, whose mix must be seen"
    add("--predicted", type=Path, metavar="FILE", help=text)
    parsed = parser.parse_args()
    requests = [json.loads(line) for line in parsed.requests.read_text("utf-8").splitlines()]
    mapped = json.loads(parsed.names.read_text("utf-8")) if parsed.names else {}
    headers = {"authorization": f"Bearer {parsed.key}"} if parsed.key else {}
    client = GatewayClient(parsed.url, headers, {name: one for one, name in mapped.items()})
    report = send_all(client, requests, parsed.seconds, parsed.event)
    print("\n".join(report.lines()))
    if parsed.answers:
        rows = [
            {"decision_id": a.decision_id, "candidate": a.candidate, "answer": a.text, **a.request}
            for a in report.answers
        ]
        parsed.answers.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    missed = False
    if parsed.predicted:
        predicted = json.loads(parsed.predicted.read_text("utf-8"))["recommended"]
        shares = report.shares()
        print("\n".join(differences(predicted["selection_share"], shares)))
        names = {*predicted["selection_share"], *shares}
        gaps = [predicted["selection_share"].get(n, 0) - shares.get(n, 0) for n in names]
        missed = max(map(abs, gaps)) > TOLERANCE
    met = report.cut or any(a.repeated or a.decision_id is None for a in report.answers)
    if parsed.event and not met:
        print("  the event changed no answer, so that it shows nothing")
        missed = True
    return int(bool(report.failures) or missed or not report.answers)


if __name__ == "__main__":
    sys.exit(main())
