"""The afternoon behind Envoy: one's own models, as docs/how-to/envoy-hosted.md sets them up.

    python -m tests.reliability.afternoon_envoy

The files and the server's flags are the page's own. The upstreams are fakes: OpenAI and a vLLM,
which answer in OpenAI's API, and Anthropic. Clients send requests all the while, with tools and
JSON formats; then an upstream is killed, then modelsat. No request may fail. Only a streamed answer
that had begun when its upstream was killed is cut: its client has read a part of it.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import shlex
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.hosted import hosted_fakes
from tools.envoy import hosted_envoy
from tools.processes import ROOT, serving

PAGE = ROOT / "docs" / "how-to" / "envoy-hosted.md"
CLIENTS = 4
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
ASKS = (
    "What is 17 times 23?",
    "Which clause of a lease covers the deposit?",
    "Wie viele Primzahlen gibt es bis 50?",
    "Rewrite this sentence politely: give me the report.",
)
# (path, what a request has besides its model and its messages)
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {}),
    (MESSAGES, {"max_tokens": 99}),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]}),
    (CHAT, {"response_format": {"type": "json_object"}}),
    (MESSAGES, {"max_tokens": 99, "tools": [{"name": "weather", "input_schema": TOOL}]}),
    (CHAT, {"stream": True}),
)
# Sends a request by its number; returns the model that answered, and whether it was not the first.
Ask = Callable[[int], tuple[str, bool]]
# Upstreams' names by the API of a path.
SPEAKERS = {
    CHAT: {"gpt-5-mini", "meta-llama/Llama-3.3-70B-Instruct"},
    MESSAGES: {"claude-haiku-4-5", "claude-sonnet-4-5"},
}


@dataclass
class Phase:
    """What clients saw while something went on.

    models: upstream's name -> answers. repeated: answers of a second or third attempt. cut:
    streamed answers that had begun at the event. failures: what was wrong with the others.
    """

    name: str
    models: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    cut: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many were sent."""
        return sum(self.models.values()) + self.cut + len(self.failures)


def block(language: str, start: str = "", page: Path = PAGE) -> str:
    """Return the first block of a page in a language that begins with `start`."""
    fences = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(), re.M | re.S)
    texts = (textwrap.dedent(text) for _, text in fences)
    return next(text for text in texts if text.startswith(start))


def ask(port: int, number: int) -> tuple[str, bool]:
    """Send request `number`; return the model that answered, and whether it was not the first.

    Raises:
        ValueError: the answer is not what the client of that API expects.
    """
    path, more = FORMS[number % len(FORMS)]
    text = f"{ASKS[number % len(ASKS)]} ({number % 60})"
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **more}
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = client.getresponse()
        raw = answer.read()
    finally:
        client.close()
    model = answer.headers["x-selected-model"]
    if answer.status != 200 or model not in SPEAKERS[path]:
        raise ValueError(f"{path} {answer.status} by {model}: {raw[:200]!r}")
    if more.get("stream"):
        if not raw.endswith(b"data: [DONE]\n\n"):
            raise ValueError(f"{path} by {model}: the stream ended early")
    elif json.loads(raw)["model"] != model:
        raise ValueError(f"{path} by {model}: {raw[:200]!r}")
    return model, answer.headers["x-envoy-attempt-count"] != "1"


def during(
    name: str, send_one: Ask, seconds: float, event: Callable[[], object] | None = None
) -> Phase:
    """Send requests from several clients, and let `event` happen after a third of the time."""
    phase, begun = Phase(name), time.monotonic()
    streams_cut: list[tuple[float, str]] = []  # (when it was asked for, the error)
    lock = threading.Lock()

    def send(first: int) -> None:
        number = first
        while (asked := time.monotonic()) < begun + seconds:
            try:
                model, repeated = send_one(number)
            except (OSError, ValueError, http.client.HTTPException) as error:
                found = f"{type(error).__name__}: {error}"
                is_cut = isinstance(error, http.client.IncompleteRead)
                streams = FORMS[number % len(FORMS)][1].get("stream", False)
                with lock:
                    if is_cut and streams:
                        streams_cut.append((asked, found))
                    else:
                        phase.failures.append(found)
            else:
                with lock:
                    phase.models[model] += 1
                    phase.repeated += repeated
            number += CLIENTS

    threads = [threading.Thread(target=send, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 3)
    if event is not None:
        event()
    happened = -math.inf if event is None else time.monotonic()
    for thread in threads:
        thread.join()
    phase.failures += [error for asked, error in streams_cut if asked >= happened]
    phase.cut = sum(asked < happened for asked, _ in streams_cut)
    return phase


def play(folder: Path, seconds: float = 4.0) -> list[Phase]:
    """Play it in an empty folder. seconds: of each phase."""
    catalog, models = folder / "candidates.toml", folder / "models.json"
    catalog.write_text(block("toml"))
    models.write_text(block("json"))
    flags = shlex.split(block("sh", "modelsat serve"))[2:]
    places = {
        "candidates.toml": str(catalog),
        "models.json": str(models),
        "127.0.0.1:50052": "127.0.0.1:0",
    }
    flags = [places.get(flag, flag) for flag in flags]
    with (
        serving(folder / "store.sqlite", *flags) as server,
        hosted_fakes(folder) as fakes,
        hosted_envoy(folder, server, fakes.hosted) as envoy,
    ):
        return [
            during("all is well", partial(ask, envoy.port), seconds),
            during(
                "an upstream is killed",
                partial(ask, envoy.port),
                seconds,
                lambda: fakes.kill("openai"),
            ),
            during("modelsat is killed", partial(ask, envoy.port), seconds, server.kill),
        ]


def main() -> int:
    """Play it once; returns 1 if a request failed."""
    with tempfile.TemporaryDirectory() as name:
        return report(play(Path(name)))


def report(phases: list[Phase]) -> int:
    """Print what clients saw; returns 1 if a request failed."""
    for phase in phases:
        models = ", ".join(f"{model} {count}" for model, count in phase.models.most_common())
        print(
            f"{phase.name}: {phase.requests} requests, {len(phase.failures)} failed,"
            f" {phase.cut} streams cut, {phase.repeated} answered by a second or third attempt;"
            f" {models}"
        )
        for failure in phase.failures[:5]:
            print(f"  {failure}")
    return int(any(phase.failures for phase in phases))


if __name__ == "__main__":
    sys.exit(main())
