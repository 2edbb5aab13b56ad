"""LiteLLM's callback in a real proxy, with fake upstreams and a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelsat import Client, Policy
from tests.support.optional_tools import LITELLM, missing, needs
from tools.fake_upstream import Upstream, upstream
from tools.litellm_proxy import CONFIG, ENVIRONMENT, Proxy, proxy
from tools.processes import ROOT, Server, await_ready, launch

pytestmark = [pytest.mark.integration, needs(missing(LITELLM))]
SECRET = "Zanzibar-4711"  # in every prompt, and nowhere in a log
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": f"What is 3 + 4? {SECRET}"}]},
]
BEST, FALLBACK = "gemini-1.5-pro-002", "llama-3.1-8b-instruct"
# Keys of the proxy. LiteLLM keeps their metadata in its database; a hook gives them here.
KEYS = """
from litellm.proxy._types import UserAPIKeyAuth
METADATA = {
    "sk-denied": {"modelsat": {"denied_candidates": ["gemini-1.5-pro-002"]}},
    "sk-allowed": {"modelsat": '{"allowed_candidates": ["llama-3.1-8b-instruct"]}'},
    "sk-cheap": {"modelsat": {"cost_sensitivity": 30}},
    "sk-own-list": {"modelsat": {"denied_candidates": ["yi-6b-chat"]}},
    "sk-wider": {"modelsat": {"allowed_candidates": "gemini-1.5-pro-002,llama-3.1-8b-instruct"}},
    "sk-other": {"modelsat": {"allowed_candidates": ["gemini-1.5-pro-002"]}},
    "sk-mistyped": {"modelsat": {"denied_candidate": ["gemini-1.5-pro-002"]}},
}
ALLOWED = {"modelsat": {"allowed_candidates": "llama-3.1-8b-instruct, calculus-tutor"}}
TEAMS = {
    "sk-team": {"modelsat": {"cost_sensitivity": 30}},
    "sk-own-list": {"modelsat": {"denied_candidates": ["gemini-1.5-pro-002"]}},
    "sk-wider": ALLOWED,
    "sk-other": ALLOWED,
}
async def user_api_key_auth(request, api_key):
    team = TEAMS.get(api_key, {})
    return UserAPIKeyAuth(
        api_key=api_key, metadata=METADATA.get(api_key, {}), team_metadata=team, team_id="t"
    )
"""
CONFIG_OF_KEYS = """
general_settings:
  custom_auth: keys.user_api_key_auth
router_settings:
  disable_cooldowns: true
"""


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
    contexts: dict[str, ExitStack]

    @contextmanager
    def down(self, model: str) -> Iterator[None]:
        """Kill an upstream for a while."""
        port = self.upstreams[model].port
        self.contexts[model].close()
        try:
            yield
        finally:
            again = self.contexts[model].enter_context(upstream(model, port))
            again.bodies[:0] = self.upstreams[model].bodies
            self.upstreams[model] = again

    def ask(
        self,
        path: str = "chat/completions",
        headers: dict[str, str] | None = None,
        key: str = "",
        **body: Any,
    ) -> Answer:
        request = urllib.request.Request(
            f"{self.proxy.url}/v1/{path}",
            json.dumps({"model": "auto", **body}).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {key or self.proxy.key}",
                **(headers or {}),
            },
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
        contexts = {m: stack.enter_context(ExitStack()) for m in models}
        upstreams = {m: contexts[m].enter_context(upstream(m)) for m in models}
        server = await_ready(launch(folder / "s.sqlite"))
        settings = {
            f"UPSTREAM_{letter}": u.url for letter, u in zip("ABC", upstreams.values(), strict=True)
        }
        settings |= {
            "UPSTREAM_KEY": "sk-upstream",
            "LITELLM_MODELSAT_SERVER": server.address,
            "LITELLM_MODELSAT_TIMEOUT_MS": "2000",
        }
        (folder / "keys.py").write_text(KEYS)
        config = folder / "config.yaml"
        config.write_text(CONFIG.read_text("utf-8") + CONFIG_OF_KEYS)
        running = stack.enter_context(proxy(folder, settings, config))
        found = Gateway(running, upstreams, server, folder / "s.sqlite", contexts)
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


def expected(gateway: Gateway, policy: Policy) -> str:
    """Return the best ranked model of the proxy."""
    with Client(gateway.server.address, timeout_s=30) as client:
        ranking = client.route(f"What is 3 + 4? {SECRET}", policy).ranking
    return next(r.candidate for r in ranking if r.candidate in gateway.upstreams)


CHEAP = Policy(value=30.0)


@pytest.mark.parametrize(
    "request_of",
    [
        {"headers": {"x-modelsat-cost-sensitivity": "30"}},
        {"headers": {"X-Modelsat-Budget-Usd": "0.0001"}},
        {"metadata": {"modelsat": {"cost_sensitivity": 30}}},
        {"metadata": {"modelsat": '{"cost_sensitivity": "30"}'}},
        {"key": "sk-cheap"},
        {"key": "sk-team"},
        # The key takes precedence over the metadata, and that over the headers.
        {"key": "sk-cheap", "metadata": {"modelsat": {"target_probability": 0.99}}},
        {
            "headers": {"x-modelsat-target-probability": "0.99"},
            "metadata": {"modelsat": {"cost_sensitivity": 30}},
        },
    ],
    ids=json.dumps,
)
def test_objective_comes_with_the_request_or_its_key(
    gateway: Gateway, request_of: dict[str, Any]
) -> None:
    cheap = expected(gateway, CHEAP)
    assert cheap != BEST == expected(gateway, Policy())
    answer = gateway.ask(messages=TURNS, **request_of)
    assert answer.headers["x-selected-model"] == cheap
    assert answer.headers["x-modelsat-candidate"] == cheap
    assert "modelsat" not in json.dumps(gateway.upstreams[cheap].bodies[-1])


@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses"])
def test_lists_of_a_key_bind_every_route(gateway: Gateway, path: str) -> None:
    body: dict[str, Any] = {"messages": TURNS[1:], "max_tokens": 9}
    if path == "responses":
        body = {"input": f"What is 3 + 4? {SECRET}"}
    forged = {"headers": {"x-modelsat-denied-candidates": FALLBACK}}
    assert gateway.ask(path, key="sk-denied", **body).headers["x-selected-model"] != BEST
    allowed = gateway.ask(path, key="sk-allowed", **body)
    assert allowed.headers["x-selected-model"] == FALLBACK
    assert gateway.ask(path, **body, **forged).headers["x-selected-model"] == BEST


@pytest.mark.parametrize("key", ["sk-own-list", "sk-wider"])
def test_lists_of_a_key_only_narrow_those_of_its_team(gateway: Gateway, key: str) -> None:
    """Kind: a key with a list of its own was free of its team's."""
    assert gateway.ask(messages=TURNS, key=key).headers["x-selected-model"] == FALLBACK


@pytest.mark.parametrize(
    ("request_of", "named"),
    [
        ({"headers": {"x-modelsat-cost-sensitivity": "cheap"}}, "x-modelsat-cost-sensitivity"),
        ({"headers": {"x-modelsat-allow": BEST}}, "allowed_candidates"),
        ({"metadata": {"modelsat": {"cost": 1}}}, "modelsat.cost"),
        ({"metadata": {"modelsat": {"denied_candidates": []}}}, "denied_candidates"),
        ({"metadata": {"modelsat": {"budget_usd": 1, "cost_sensitivity": 1}}}, "mutually"),
        ({"metadata": {"modelsat": [1]}}, "is not an object"),
        ({"key": "sk-mistyped"}, "denied_candidate"),
        ({"key": "sk-other"}, "has no candidate that the list around it allows"),
        ({"headers": {"x-modelsat-denied-candidate": BEST}}, "did you mean denied_candidates?"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_wrong_policy_of_a_request_is_refused_with_its_name(
    gateway: Gateway, request_of: dict[str, Any], named: str
) -> None:
    before = gateway.request_counts()
    with pytest.raises(urllib.error.HTTPError) as refused:
        gateway.ask(messages=TURNS, **request_of)
    assert refused.value.code == 400
    assert named in refused.value.read().decode()
    assert gateway.request_counts() == before


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("chat/completions", {}),
        ("chat/completions", {"stream": True}),
        ("messages", {"max_tokens": 9}),
        ("responses", {"input": f"What is 3 + 4? {SECRET}"}),
    ],
)
def test_next_ranked_model_answers_for_one_that_is_down(
    gateway: Gateway, path: str, more: dict[str, Any]
) -> None:
    body = more if "input" in more else {"messages": TURNS[1:], **more}
    second = expected(gateway, Policy(denied_candidates=(BEST,)))
    with gateway.down(BEST):
        answer = gateway.ask(path, **body)
    assert f"{second} " in answer.body
    assert answer.headers["x-selected-model"] == second
    assert answer.headers["x-modelsat-failed"] == BEST
    with Client(gateway.server.address, timeout_s=30) as client:
        identifier = answer.headers["x-modelsat-decision-id"]
        assert client.record_outcome(identifier, answer.headers["x-modelsat-candidate"], 1.0)
    assert gateway.ask(path, **body).headers["x-selected-model"] == BEST


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
    """Check that the next request goes to the fallback model, for this reason, or to one that the
    lists of candidates permit."""
    allowed = gateway.ask(messages=TURNS, headers={"x-modelsat-allowed-candidates": BEST})
    assert allowed.headers["x-modelsat-kind"] == "unrouted"
    assert allowed.headers["x-selected-model"] == BEST
    before = gateway.request_counts()
    answer = gateway.ask(messages=TURNS)
    assert answer.headers["x-modelsat-kind"] == "unrouted"
    assert answer.headers["x-modelsat-why"] == why
    assert gateway.request_counts() == before | {FALLBACK: before[FALLBACK] + 1}


def test_lists_bind_the_fallback_by_the_id_of_its_candidate() -> None:
    code = """
import asyncio, engine.integrations.litellm as m
m._models = lambda: {"one": "model-1", "two": "model-2"}
for sent in (
    {"x-modelsat-denied-candidates": "one"},
    {"x-modelsat-denied-candidates": "two"},
    {"x-modelsat-allowed-candidates": "one"},
    {"x-modelsat-allowed-candidates": "two"},
    {"x-modelsat-denied-candidates": "model-1"},
):
    data = {"model": "auto", "messages": [], "proxy_server_request": {"headers": sent}}
    print(asyncio.run(m.router.async_pre_call_hook(None, None, data, "acompletion"))["model"])
"""
    environment = {"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment["LITELLM_MODELSAT_FALLBACK"] = "model-1"
    command = [str(ENVIRONMENT / "bin" / "python"), "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    expected = ["model-2", "model-1", "model-1", "model-2", "model-1"]  # the last one is no ID
    assert done.stdout.split() == expected, done.stderr


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
    wrong |= {"CONFIDENCE": "-1", "MAX_LATENCY_MS": "nan", "TARGET_PROBABILITY": "70"}
    wrong |= {"WILLINGNESS_TO_PAY_USD": "0", "ESCALATE_AFTER_FAILURES": "1.5"}
    environment = {f"LITELLM_MODELSAT_{name}": value for name, value in wrong.items()}
    environment |= {"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(ENVIRONMENT / "bin" / "python"), "-c", "import engine.integrations.litellm"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    for name in wrong:
        assert f"LITELLM_MODELSAT_{name}" in done.stderr.splitlines()[-1]
