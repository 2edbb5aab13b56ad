"""Stores that version 0.2.0 (commit 6959b75) wrote are opened, and its clients are served.

The fixtures were made by that version's own code: a store of two candidates with three revisions,
three recorded outcomes, and the API as a set of descriptors. A release that breaks one of them says
in its test here what operators have to do.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from engine.pb import adaptation_service_pb2, candidate_service_pb2, router_service_pb2
from engine.registry.stores.backup import back_up, back_up_outcomes, restore
from engine.registry.stores.outcomes import OutcomeStore, RecordedOutcome, read_recorded
from tests.support.stores import registry
from tools.processes import Server

FILES = Path(__file__).parent / "fixtures_0_2"
NOW = (adaptation_service_pb2, candidate_service_pb2, router_service_pb2)
API = descriptor_pb2.FileDescriptorSet.FromString(
    gzip.decompress((FILES / "api.binpb.gz").read_bytes())
)
OLD = descriptor_pool.DescriptorPool()
for _file in API.file:
    OLD.Add(_file)
PATIENCE_S = 30


def unpacked(name: str, folder: Path) -> Path:
    target = folder / name
    target.write_bytes(gzip.decompress((FILES / f"{name}.gz").read_bytes()))
    return target


async def test_candidates_and_their_revisions_are_kept(tmp_path: Path) -> None:
    store = unpacked("candidates.sqlite", tmp_path)
    copy, restored = tmp_path / "copy.sqlite", tmp_path / "restored.sqlite"
    assert back_up(str(store), copy) == restore(str(restored), copy) == 3
    for place in (store, restored):
        opened = registry(str(place))
        table = opened.table()
        assert [(c.id, c.mean_accuracy()) for c in table.candidates] == [
            ("first", 0.5),
            ("third", 0.75),
        ]
        third = table.candidates[1]
        assert (third.display_name, third.context_window) == ("Third, by hand", 128_000)
        assert (third.input_usd_per_million, third.mean_output_tokens) == (0.5, 321.0)
        assert (third.modalities, third.features) == (("image",), ("tools",))
        assert (third.tags, third.regions) == (("tier-2",), ("eu",))
        kept = await opened.revisions(None, 10)
        assert [(r.number, r.candidates) for r in kept] == [(3, 2), (2, 3), (1, 2)]
        assert len({r.id.nonce for r in kept}) == 3, "each has an identity now"
        await opened.rollback(1)
        assert [c.id for c in opened.table().candidates] == ["first", "second"]
        await opened.close()


async def test_outcomes_are_kept(tmp_path: Path) -> None:
    place = unpacked("outcomes.sqlite", tmp_path)
    assert back_up_outcomes(str(place), tmp_path / "copy.sqlite") == 3
    for file in (place, tmp_path / "copy.sqlite"):
        store = OutcomeStore(file, 10)
        assert not await store.record(RecordedOutcome(f"{1:032x}", "third", 1.0)), "it is known"
        assert await store.record(RecordedOutcome(f"{9:032x}", "third", 1.0))
        await store.close()
        found = list(read_recorded(file))[:3]
        assert [(r.score, r.category) for r in found] == [(s, "chat") for s in (1.0, 0.5, 0.0)]
        assert [r.text for r in found[:2]] == ["Write a limerick about a tram.", ""]
        assert "spät" in found[2].text


def described(field: FieldDescriptor) -> tuple[Any, ...]:
    """What a field is on the wire and in JSON."""
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return (field.number, field.name, field.type, field.is_repeated, kind and kind.full_name,
            oneof and oneof.name)  # fmt: skip


def messages(name: str) -> Iterator[Descriptor]:
    """Yield the messages of a file of version 0.2.0, nested ones too."""
    waiting = list(OLD.FindFileByName(name).message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        yield message
        waiting += message.nested_types


@pytest.mark.parametrize("name", [f.name for f in API.file if f.package == "modelsat.v1"])
def test_messages_methods_and_values_are_only_added(name: str) -> None:
    today, before = descriptor_pool.Default(), OLD.FindFileByName(name)
    for message in messages(name):
        fields = {described(f) for f in today.FindMessageTypeByName(message.full_name).fields}
        assert {described(f) for f in message.fields} <= fields, message.full_name
    for enum in before.enum_types_by_name.values():
        values = today.FindEnumTypeByName(enum.full_name).values_by_name
        assert all(values[v.name].number == v.number for v in enum.values), enum.full_name
    for service in before.services_by_name.values():
        methods = today.FindServiceByName(service.full_name).methods_by_name
        for method in service.methods:
            found = methods[method.name]
            assert [found.input_type.full_name, found.output_type.full_name] == [
                method.input_type.full_name,
                method.output_type.full_name,
            ]


def called(channel: grpc.Channel, method: str, **fields: Any) -> Any:
    """Call a method of version 0.2.0 with its own messages."""
    service, _, name = method.partition("/")
    found = OLD.FindServiceByName(f"modelsat.v1.{service}").methods_by_name[name]
    request, response = (
        message_factory.GetMessageClass(kind) for kind in (found.input_type, found.output_type)
    )
    call = channel.unary_unary(
        f"/modelsat.v1.{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return call(request(**fields), timeout=PATIENCE_S)


def test_a_client_of_0_2_is_served(shared_server: Server) -> None:
    text = "If 3x + 7 = 22, what is x?"
    with grpc.insecure_channel(shared_server.address) as channel:
        info = called(channel, "RouterService/GetServerInfo")
        listed = called(channel, "CandidateService/ListCandidates", page_size=1000).candidates
        assert info.candidates == len(listed) > 2
        for policy in (
            {},
            {"cost_sensitivity": 0.1},
            {"target_probability": 0.5},
            {"budget_usd": 1.0, "allowed_candidates": [listed[0].name, listed[1].name]},
        ):
            answer = called(channel, "RouterService/Route", text=text, policy=policy)
            assert answer.ranking[0].candidate == answer.selected
            assert 0 <= answer.ranking[0].probability <= 1
            assert answer.reason
            assert answer.timing.total.ToMicroseconds() > 0
        recorded = {"decision_id": answer.decision_id, "candidate": answer.selected, "score": 1.0}
        assert called(channel, "RouterService/RecordOutcome", **recorded).recorded
        with pytest.raises(grpc.RpcError) as refused:
            called(channel, "RouterService/Route", text=text, policy={"budget_usd": -1})
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
