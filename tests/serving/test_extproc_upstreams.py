"""ext_proc for upstreams of several APIs: who may answer on a path, by which name, and who is next.

Kinds: a request reaches a candidate that does not speak its API; a candidate's ID reaches an
upstream that has another name for it; the ranking ends at its first candidate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.api.candidate import Candidate
from engine.api.policy import Policy
from engine.registry.catalog import read_catalog
from modelsat import Client, ModelsatClientError
from tests.serving.test_extproc import body, headers, refusal, set_by, talk
from tools.processes import BUNDLE, Server, serving

MODELS = {
    "claude": "claude-haiku-4-5",
    "claude-thinking": "claude-haiku-4-5",
    "qwen": "Qwen/Qwen3-32B",
}
APIS = {
    "gpt": ("openai.chat", "openai.responses"),
    "claude": ("anthropic.messages",),
    "claude-thinking": ("anthropic.messages",),
    "qwen": ("openai.chat", "openai.completions"),
    "anything": (),
}


def candidates() -> list[Candidate]:
    """Return candidates of falling accuracy, in the order of APIS."""
    model = read_catalog(BUNDLE / "zoo.json")[0]
    return [
        replace(
            model,
            id=name,
            features=apis,
            aptitude=[replace(r, accuracy=0.9 - 0.15 * i) for r in model.aptitude],
        )
        for i, (name, apis) in enumerate(APIS.items())
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("upstreams")
    models = folder / "models.json"
    models.write_text(json.dumps(MODELS))
    flags = ("--extproc-address", "127.0.0.1:0", "--extproc-fallbacks", "2")
    with serving(folder / "s.sqlite", *flags, "--extproc-model-map", str(models)) as running:
        with Client(running.address, timeout_s=60) as client:
            client.replace_candidates(candidates())
        yield running


def chosen(server: Server, path: str, model: str = "auto", **more: str) -> tuple[str, list[str]]:
    """Return the model that the body has after ext_proc, and the fallbacks."""
    raw = json.dumps({"model": model, "messages": [{"role": "user", "content": "Why?"}]}).encode()
    answer = talk(server, headers(**{":path": path}, **more), body(raw))[-1]
    common = answer.request_body.response
    changed = set_by(common)
    sent = json.loads(common.body_mutation.body or raw)
    assert changed["x-selected-model"] == sent["model"]
    stale = set(common.header_mutation.remove_headers)
    numbered = [f"x-modelsat-fallback-{i}" for i in range(1, 9)]  # a client may send any
    assert all((name in changed) != (name in stale) for name in numbered)
    assert not any(name in changed for name in numbered[2:])
    return sent["model"], [changed[name] for name in numbered if name in changed]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/chat/completions", ["gpt", "Qwen/Qwen3-32B", "anything"]),
        ("/openai/deployments/x/chat/completions?api-version=1", ["gpt", "Qwen/Qwen3-32B"]),
        ("/v1/messages", ["claude-haiku-4-5", "anything"]),
        ("/v1/messages/?beta=true", ["claude-haiku-4-5", "anything"]),
        ("/v1/responses", ["gpt", "anything"]),
        ("/v1/completions", ["Qwen/Qwen3-32B", "anything"]),
        ("/api/chat", ["anything"]),
    ],
)
def test_only_candidates_that_speak_the_api_of_a_path_are_chosen(
    server: Server, path: str, names: list[str]
) -> None:
    first, fallbacks = chosen(server, path)
    assert [first, *fallbacks][: len(names)] == names


def test_paths_without_a_choice_keep_to_their_api(server: Server) -> None:
    assert chosen(server, "/v1/messages/count_tokens") == ("claude-haiku-4-5", [])
    assert chosen(server, "/v1/responses/compact") == ("gpt", [])
    assert chosen(server, "/v1/embeddings") == ("gpt", [])


def test_a_candidate_that_is_named_gets_the_upstreams_name(server: Server) -> None:
    for path in ("/v1/messages", "/v1/embeddings"):
        assert chosen(server, path, "claude") == ("claude-haiku-4-5", [])
        assert chosen(server, path, "some/other") == ("some/other", [])


def test_fallbacks_obey_the_policy(server: Server) -> None:
    found = chosen(server, "/v1/chat/completions", x_modelsat_denied_candidates="qwen")
    assert found == ("gpt", ["anything"])
    only = chosen(server, "/v1/chat/completions", x_modelsat_allowed_candidates="qwen")
    assert only == ("Qwen/Qwen3-32B", [])


def test_a_header_limits_the_latency(server: Server) -> None:
    sent = headers(x_modelsat_max_latency_ms="500")
    assert refusal(talk(server, sent, body())[-1]) == (400, "no_eligible_candidate")
    sent = headers(x_modelsat_max_latency_ms="soon")
    assert refusal(talk(server, sent, body())[-1]) == (400, "invalid_input")


def test_a_path_whose_api_no_candidate_speaks_is_refused(server: Server) -> None:
    sent = headers(x_modelsat_allowed_candidates="gpt", **{":path": "/v1/messages"})
    refused = talk(server, sent, body())[-1]
    assert refusal(refused) == (400, "no_eligible_candidate")
    assert (
        b"the API of the request is not one of the candidate's" in refused.immediate_response.body
    )


def test_route_takes_the_api_as_well(server: Server) -> None:
    with Client(server.address, timeout_s=30) as client:
        decision = client.route("Why?", Policy(required_api="anthropic.messages"))
        assert decision.selected == "claude"
        assert decision.excluded["qwen"] == (
            "answers in openai.chat, openai.completions; the request is of anthropic.messages"
        )
        with pytest.raises(ModelsatClientError, match="required_api"):
            client.route("Why?", Policy(required_api="anthropic"))
