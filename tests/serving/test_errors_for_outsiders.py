"""What callers who may not list candidates learn of them, and which models they may name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from engine.api.policy import Policy
from engine.pb import router_service_pb2 as rpb
from engine.pb import router_service_pb2_grpc as rpb_grpc
from engine.serving.auth.tokens import ROLES, new_token
from engine.serving.extproc.named_models import may_name
from modelsat import Client, Credentials
from tests.serving.test_extproc import ASKED, body, headers, refusal, talk
from tests.serving.test_server import status_of
from tools.processes import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models") / "models.json"
    models.write_text('{"yi-6b-chat": "01-ai/Yi-6B-Chat"}')
    flags = ("--extproc-address", "127.0.0.1:0", "--extproc-model-map", str(models))
    with serving(tmp_path_factory.mktemp("s") / "s.sqlite", *flags) as running:
        yield running


UNMEETABLE = {
    "budget_usd": 0.0,
    "max_input_usd_per_million": 0.0,
    "required_tags": ["no-such-tag"],
    "allowed_regions": ["atlantis"],
    "min_context_window": 2**40,
}


def inventory(server: Server) -> set[str]:
    with Client(server.address, 30) as client:
        return {candidate.id for candidate in client.list_candidates()}


@pytest.mark.parametrize(
    "asked",
    [
        {"x_modelsat_budget_usd": "0"},
        {"x_modelsat_budget_usd": "0", "x_modelsat_denied_candidates": "yi-6b-chat"},
        {"x_modelsat_budget_usd": "1e-12", "x_modelsat_allowed_candidates": "yi-6b-chat"},
    ],
)
def test_an_http_client_learns_no_ids_and_costs(server: Server, asked: dict[str, str]) -> None:
    (*_, last) = talk(server, headers(**asked), body())
    assert refusal(last) == (400, "no_eligible_candidate")
    shown = json.loads(last.immediate_response.body)["error"]["message"]
    assert "expected cost is above the budget" in shown
    assert not [i for i in inventory(server) if i in shown]
    assert not re.search(r"\d|\$", shown)


@pytest.mark.parametrize("constraint", UNMEETABLE)
def test_only_roles_that_may_list_candidates_see_them(constraint: str, with_tokens: Any) -> None:
    address, tokens, known = with_tokens
    request = rpb.RouteRequest(text="Hi")
    json_format.ParseDict({constraint: UNMEETABLE[constraint]}, request.policy)
    shown = {}
    with grpc.insecure_channel(address) as channel:
        for role in ("route", "admin"):
            metadata = Credentials(token=tokens[role]).metadata()
            with pytest.raises(grpc.RpcError) as refused:
                rpb_grpc.RouterServiceStub(channel).Route(request, metadata=metadata)
            code, words, details = status_of(refused.value)
            assert code == "FAILED_PRECONDITION"
            shown[role] = f"{words} {details}"
    assert not [i for i in known if i in shown["route"]]
    assert [i for i in known if i in shown["admin"]]


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("tokens")
    made = {role: new_token(role, role) for role in ROLES}
    file = folder / "tokens.json"
    file.write_text(json.dumps({"tokens": [vars(entry) for _, entry in made.values()]}))
    with serving(folder / "s.sqlite", "--auth-tokens-file", str(file)) as running:
        tokens = {role: text for role, (text, _) in made.items()}
        with Client(running.address, 30, Credentials(token=tokens["read"])) as client:
            known = {candidate.id for candidate in client.list_candidates()}
        yield running.address, tokens, known


# --- models that a body names -------------------------------------------------------------------

ONLY = {"x_modelsat_allowed_candidates": "yi-6b-chat"}


@pytest.mark.parametrize(
    "model", ["gpt-4", "mistral-7b-instruct", " 01-ai/Yi-6B-Chat", "AUTO", 7, None, ["yi-6b-chat"]]
)
def test_a_list_of_allowed_candidates_binds_named_models(server: Server, model: Any) -> None:
    raw = json.dumps({**ASKED, "model": model}).encode()
    (*_, last) = talk(server, headers(**ONLY), body(raw))
    assert refusal(last) == (403, "model_not_allowed")


@pytest.mark.parametrize("member", ["Model", "MODEL", "moDel"])
def test_it_binds_them_however_the_member_is_spelled(server: Server, member: str) -> None:
    """Some upstreams ignore capitals in the names of members."""
    rest = {name: value for name, value in ASKED.items() if name != "model"}
    raw = json.dumps({**rest, member: "gpt-4"}).encode()
    (*_, last) = talk(server, headers(**ONLY), body(raw))
    assert refusal(last) == (403, "model_not_allowed")
    (*_, free) = talk(server, headers(), body(raw))  # without a list, it passes
    assert not free.HasField("immediate_response")


@pytest.mark.parametrize("model", ["01-ai/Yi-6B-Chat", "yi-6b-chat"])
def test_an_allowed_candidate_may_be_named(server: Server, model: str) -> None:
    (*_, last) = talk(server, headers(**ONLY), body(json.dumps({**ASKED, "model": model}).encode()))
    assert not last.HasField("immediate_response")


def test_a_restricted_body_that_cannot_be_read_is_refused(server: Server) -> None:
    for more in ({"content_encoding": "gzip"}, {"content_type": "text/plain"}):
        (*_, last) = talk(server, headers(**ONLY, **more), body())
        assert refusal(last) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("model", "policy", "routed", "allowed"),
    [
        ("big", Policy(denied_candidates=("big",)), True, False),
        ("Vendor/Big ", Policy(denied_candidates=("big",)), True, False),
        ("BIG", Policy(denied_candidates=("big",)), False, False),
        ("other", Policy(denied_candidates=("big",)), True, True),
        ("text-embedding", Policy(allowed_candidates=("small",)), False, True),
        ("big", Policy(allowed_candidates=("small",)), False, False),
        ("vendor/big", Policy(allowed_candidates=("small",)), False, False),
        ("small", Policy(allowed_candidates=("small",)), False, True),
    ],
)
def test_lists_say_which_models_may_be_named(
    model: str, policy: Policy, routed: bool, allowed: bool
) -> None:
    names, registered = {"big": "vendor/big"}, {"big", "small"}
    found = may_name(model, policy, names, registered.__contains__, routed=routed)
    assert found == allowed
