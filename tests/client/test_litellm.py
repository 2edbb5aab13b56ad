"""LiteLLM's callback in a real proxy, with fake upstreams and a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelsat import Client
from tests.support.optional_tools import LITELLM, missing, needs
from tools.fake_upstream import Upstream, upstream
from tools.litellm_proxy import ENVIRONMENT, Proxy, proxy
from tools.processes import ROOT, Server, await_ready, launch

pytestmark = [pytest.mark.integration, needs(missing(LITELLM))]
SECRET = "Zanzibar-4711"  # in every prompt, and nowhere in a log
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": f"What is 3 + 4? {SECRET}"}]},
]
BEST, FALLBACK = "gemini-1.5-pro-002", "llama-3.1-8b-instruct"


@dataclass
class Answer:
    """Reply of the proxy, with the body as text."""

    headers: dict[str, str]
    body: str


@dataclass
class Gateway:
    """A proxy, its upstreams by model, and the routing server."""

    proxy: Proxy
    upstreams: dict[str, Upstream]
    server: Server
    store: Path

    def ask(self, path: str = "chat/completions", **body: Any) -> Answer:
        request = urllib.request.Request(
            f"{self.proxy.url}/v1/{path}",
            json.dumps({"model": "auto", **body}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.proxy.key}"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            headers = {k.lower(): v for k, v in reply.headers.items()}
            return Answer(headers, reply.read().decode())

    def request_counts(self) -> dict[str, int]:
        """Count the requests of each upstream."""
        return {model: len(u.bodies) for model, u in self.upstreams.items()}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("litellm")
    with ExitStack() as stack:
        models = ("calculus-tutor", BEST, FALLBACK)
        upstreams = {m: stack.enter_context(upstream(m)) for m in models}
        server = await_ready(launch(folder / "s.sqlite"))
        settings = {
            f"UPSTREAM_{letter}": u.url for letter, u in zip("ABC", upstreams.values(), strict=True)
        }
        settings |= {
            "UPSTREAM_KEY": "sk-upstream",
            "LITELLM_MODELSAT_SERVER": server.address,
            "LITELLM_MODELSAT_TIMEOUT_MS": "2000",
        }
        found = Gateway(
            stack.enter_context(proxy(folder, settings)), upstreams, server, folder / "s.sqlite"
        )
        try:
            yield found
        finally:
            found.server.kill()
        printed = found.proxy.log.read_text("utf-8") + found.server.printed()
        assert "routing failed (UNAVAILABLE), using the fallback model" in printed
        assert SECRET not in printed


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": TURNS}),
        ("completions", {"prompt": f"What is 3 + 4? {SECRET}"}),
        ("responses", {"input": f"What is 3 + 4? {SECRET}"}),
        ("messages", {"messages": TURNS[1:], "max_tokens": 9}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_best_ranked_model_of_the_proxy_answers(
    gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    before = gateway.request_counts()
    answer = gateway.ask(path, **body)
    with Client(gateway.server.address, timeout_s=30) as client:
        ranking = client.route(f"What is 3 + 4? {SECRET}").ranking
    names = (r.candidate for r in ranking)
    chosen = next(name for name in names if name in gateway.upstreams)
    assert answer.headers["x-selected-model"] == chosen
    assert answer.headers["x-modelsat-kind"] == "ranked"
    assert f"{chosen} answers" in answer.body
    assert gateway.request_counts() == before | {chosen: before[chosen] + 1}
    assert gateway.upstreams[chosen].bodies[-1]["model"] == chosen
    assert "modelsat" not in json.dumps(gateway.upstreams[chosen].bodies[-1])


def test_outcome_is_recorded_by_the_decision_id_of_the_reply(gateway: Gateway) -> None:
    headers = gateway.ask(messages=TURNS).headers
    with Client(gateway.server.address, timeout_s=30) as client:
        assert client.record_outcome(
            headers["x-modelsat-decision-id"], headers["x-selected-model"], 1.0
        )


def test_streamed_reply_has_the_headers_of_the_choice(gateway: Gateway) -> None:
    answer = gateway.ask(messages=TURNS, stream=True)
    assert answer.headers["x-selected-model"] in gateway.upstreams
    assert answer.headers["x-modelsat-decision-id"]
    events = [line.removeprefix("data: ") for line in answer.body.splitlines() if line]
    assert events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    text = "".join(delta.get("content") or "" for delta in deltas)
    assert text.split() == [answer.headers["x-selected-model"], "answers"]


def test_request_for_another_model_is_not_routed(gateway: Gateway) -> None:
    before = gateway.request_counts()
    forged = {"modelsat": {"model": "x", "kind": "forged"}}
    answer = gateway.ask(model=FALLBACK, messages=TURNS, metadata=forged)
    assert gateway.request_counts() == before | {FALLBACK: before[FALLBACK] + 1}
    assert not [h for h in answer.headers if h.startswith(("x-modelsat", "x-selected"))]


def test_metadata_of_a_wrong_type_is_replaced() -> None:
    """Call the hooks directly: for some routes the proxy rejects such metadata itself."""
    code = """
import asyncio, engine.integrations.litellm as m
for sent in ("abc", ["x"], 7, None):
    data = {"model": "auto", "metadata": sent}
    hook = m.router.async_pre_call_hook(None, None, data, "acompletion")
    data = asyncio.run(hook)
    assert data["metadata"]["modelsat"]["kind"] == "unrouted"
    hook = m.router.async_post_call_response_headers_hook({"metadata": sent}, None, None)
    assert asyncio.run(hook) is None
"""
    environment = {"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(ENVIRONMENT / "bin" / "python"), "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def assert_fallback(gateway: Gateway, why: str) -> None:
    """Check that the next request goes to the fallback model, for this reason."""
    before = gateway.request_counts()
    answer = gateway.ask(messages=TURNS)
    assert answer.headers["x-modelsat-kind"] == "unrouted"
    assert answer.headers["x-modelsat-why"] == why
    assert gateway.request_counts() == before | {FALLBACK: before[FALLBACK] + 1}


def test_request_without_text_goes_to_the_fallback(gateway: Gateway) -> None:
    before = gateway.request_counts()
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    answer = gateway.ask(messages=[{"role": "user", "content": picture}])
    assert answer.headers["x-modelsat-kind"] == "unrouted"
    assert gateway.request_counts() == before | {FALLBACK: before[FALLBACK] + 1}


def test_fallback_while_the_server_hangs_or_is_away(gateway: Gateway) -> None:
    os.kill(gateway.server.process.pid, signal.SIGSTOP)
    assert_fallback(gateway, "DEADLINE_EXCEEDED")
    os.kill(gateway.server.process.pid, signal.SIGCONT)
    assert gateway.ask(messages=TURNS).headers["x-modelsat-kind"] == "ranked"
    gateway.server.kill()
    assert_fallback(gateway, "UNAVAILABLE")
    port = int(gateway.server.address.rpartition(":")[2])
    gateway.server = await_ready(launch(gateway.store, port=port))
    kind = ""
    while kind != "ranked":  # the channel reconnects once a second
        kind = gateway.ask(messages=TURNS).headers["x-modelsat-kind"]


def test_start_fails_with_a_list_of_all_wrong_settings() -> None:
    wrong = {"TIMEOUT_MS": "soon", "COST_SENSITIVITY": "-1", "SEVRER": "router:50051"}
    wrong["CONFIDENCE"] = "-1"
    environment = {f"LITELLM_MODELSAT_{name}": value for name, value in wrong.items()}
    environment |= {"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(ENVIRONMENT / "bin" / "python"), "-c", "import engine.integrations.litellm"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    for name in wrong:
        assert f"LITELLM_MODELSAT_{name}" in done.stderr.splitlines()[-1]
