"""One request, one reading: the corpus at every entrance of a real server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import grpc
import pytest

from engine.api.conversation.reading import read_body
from engine.pb import external_processor_pb2 as extproc
from engine.pb import external_processor_pb2_grpc as stubs
from engine.registry.catalog import read_catalog
from engine.replay.log import COLUMNS, PastRequest, past_request
from engine.replay.scoring import ChunkTask, make_job, open_scorer, open_table
from modelsat import Client, Policy, RouteDecision, conversation_from_body
from tests.conversations import agents, sdks
from tests.conversations.corpus import Entry
from tests.support.browser import Console, showing
from tools.processes import BUNDLE

CORPUS = (*agents.all_entries(), *sdks.all_entries())
ABLE = {"features": ("json_mode", "tools"), "modalities": ("file", "image")}
# Every second candidate supports everything, and the others nothing.
CANDIDATES = [
    replace(c, **(ABLE if i % 2 else {})) for i, c in enumerate(read_catalog(BUNDLE / "zoo.json"))
]
LITELLM_CALLS = {
    "/v1/chat/completions": "acompletion",
    "/v1/completions": "atext_completion",
    "/v1/responses": "aresponses",
    "/v1/messages": "anthropic_messages",
}


@dataclass(frozen=True)
class Found:
    """What an entrance says of one request; None where it does not say."""

    selected: str
    input_tokens: int | None
    kind: str | None


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    folder = tmp_path_factory.mktemp("surfaces")
    with showing(folder, "--extproc-address", "127.0.0.1:0") as running:
        with Client(running.server.address) as client:
            client.replace_candidates(CANDIDATES)
        yield running


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({entry.name for entry in CORPUS}) == len(CORPUS) >= 60


@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
def test_a_body_is_read_as_the_table_says(entry: Entry) -> None:
    found = read_body(entry.body, entry.path)
    assert found.ask == entry.ask
    assert {*found.needs.modalities, *found.needs.features} == entry.needs
    assert found.context.tokens >= entry.context
    assert found.context.unknown == entry.unknown


@pytest.mark.slow
def test_every_entrance_reads_and_chooses_alike(console: Console) -> None:
    conversations = [conversation_from_body(entry.body, entry.path) for entry in CORPUS]
    with Client(console.server.address, timeout_s=30) as client:
        entrances = {
            "Route": [_of(client.route(c)) for c in conversations],
            "BatchRoute": [_of(r) for c in conversations for r in client.route_many([c])],
            "StreamRoute": [_of(r) for c in conversations for _, r in client.route_stream([c])],
            "ext_proc": _through_extproc(console, CORPUS),
            "console": [_shown(console.route(body=e.body, path=e.path)) for e in CORPUS],
            "replay": _replayed(CORPUS),
            "LiteLLM": asyncio.run(_through_litellm(console.server.address, CORPUS)),
        }
    expected = entrances["Route"]
    different = []
    for name, found in entrances.items():
        for entry, ours, theirs in zip(CORPUS, expected, found, strict=True):
            if theirs is None:
                continue  # no call of LiteLLM
            same_count = theirs.input_tokens in (None, ours.input_tokens)
            same_kind = theirs.kind in (None, ours.kind)
            if theirs.selected != ours.selected or not same_count or not same_kind:
                different.append(f"{name}, {entry.name}: {theirs}, Route {ours}")
    assert not different, "\n".join(different)
    asked = {
        entry.name: found.kind == "fallback" for entry, found in zip(CORPUS, expected, strict=True)
    }
    assert asked == {entry.name: not entry.ask for entry in CORPUS}


def _id(name: str) -> str:
    return name.removeprefix("candidates/")


def _of(decision: Any) -> Found:
    assert isinstance(decision, RouteDecision), decision
    return Found(decision.selected, decision.input_tokens, decision.kind)


def _shown(answer: Any) -> Found:
    decision = answer["decision"]
    kind = decision["kind"].removeprefix("DECISION_KIND_").lower()
    return Found(
        decision["selected"].removeprefix("candidates/"), int(decision["input_tokens"]), kind
    )


def _through_extproc(console: Console, entries: tuple[Entry, ...]) -> list[Found]:
    found = []
    with grpc.insecure_channel(console.server.extproc_address) as channel:
        stub = stubs.ExternalProcessorStub(channel)
        for entry in entries:
            first = extproc.ProcessingRequest()
            first.protocol_config.request_body_mode = extproc.BUFFERED
            for key, value in {":path": entry.path, "content-type": "application/json"}.items():
                first.request_headers.headers.headers.add(key=key, raw_value=value.encode())
            body = {"body": json.dumps(entry.body).encode(), "end_of_stream": True}
            sent = iter([first, extproc.ProcessingRequest(request_body=body)])
            last = list(stub.Process(sent, timeout=30))[-1]
            assert not last.HasField("immediate_response"), (entry.name, last)
            chosen = last.dynamic_metadata["modelsat"]
            found.append(
                Found(
                    chosen["selected"].removeprefix("candidates/"),
                    int(chosen["input_tokens"]),
                    chosen["kind"],
                )
            )
    return found


def _replayed(entries: tuple[Entry, ...]) -> list[Found]:
    table = open_table(BUNDLE, CANDIDATES)
    requests = [past_request({"body": entry.body}, COLUMNS) for entry in entries]
    read = tuple(r.conversation for r in requests if isinstance(r, PastRequest))
    assert len(read) == len(entries), [r for r in requests if isinstance(r, str)]
    scorer = open_scorer(make_job(BUNDLE, table, {"best": Policy()}))
    done = scorer.process(ChunkTask(0, read, tuple(c.needs for c in read), None))
    tokens = done.scores.input_tokens
    chosen = done.decisions.choice[:, 0]
    return [
        Found(table.candidates[row].id, int(n), None) for row, n in zip(chosen, tokens, strict=True)
    ]


async def _through_litellm(address: str, entries: tuple[Entry, ...]) -> list[Found | None]:
    """Through the callback alone; LiteLLM's own modules are stood in for."""
    custom_logger, proxy = (
        ModuleType("litellm.integrations.custom_logger"),
        ModuleType("litellm.proxy"),
    )
    custom_logger.CustomLogger = object  # type: ignore[attr-defined]
    router = SimpleNamespace(model_names=[c.id for c in CANDIDATES])
    proxy.proxy_server = SimpleNamespace(llm_router=router)  # type: ignore[attr-defined]
    names = ("litellm", "litellm.integrations")
    modules = {name: ModuleType(name) for name in names}
    modules |= {"litellm.integrations.custom_logger": custom_logger, "litellm.proxy": proxy}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        from engine.integrations import litellm

        callback = litellm.RoutingCallback(litellm.CallbackOptions(address, timeout_s=30))
        found: list[Found | None] = []
        for entry in entries:
            call = LITELLM_CALLS.get(entry.path)
            if call is None:
                found.append(None)
                continue
            internal = {
                "proxy_server_request": {"body": dict(entry.body)},
                "metadata": {"key": "k" * 999},
            }
            data = await callback.async_pre_call_hook(None, None, {**entry.body, **internal}, call)
            chosen = data["metadata"]["modelsat"]
            found.append(Found(data["model"], None, chosen["kind"]))
        patch.delitem(sys.modules, "engine.integrations.litellm", raising=False)
    return found
