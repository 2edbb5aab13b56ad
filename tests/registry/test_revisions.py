"""Revisions, rollback and watching over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from engine.api.candidate import MAX_PROBLEMS, TEST_TASKS, require_valid
from engine.api.errors import InvalidInputError
from engine.api.proto import candidate_to
from engine.cli.main import main as cli
from engine.pb import candidate_service_pb2 as pb
from engine.pb import candidate_service_pb2_grpc
from engine.registry.catalog import read_catalog
from engine.registry.registry import Registry
from engine.registry.stores.base import StoredTable
from engine.registry.table import Table
from engine.serving.rpc.candidate_service import CandidateService, encoded
from engine.serving.rpc.interceptors import StatusInterceptor
from modelsat import Client
from tests.support.stores import candidate, registry
from tools.processes import BUNDLE, serving

Stub = Any


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[Stub, Registry, grpc.aio.Server, Any]]:
    """CandidateService alone on a port: (stub, registry, server, channel)."""
    members = registry(str(tmp_path / "s.sqlite"), candidate("a"), candidate("b"), history_limit=5)
    server = grpc.aio.server(interceptors=[StatusInterceptor()])
    service = CandidateService(members)
    candidate_service_pb2_grpc.add_CandidateServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = candidate_service_pb2_grpc.CandidateServiceStub(channel)
            yield stub, members, server, channel
    finally:
        await members.close()
        await server.stop(0)


async def test_rollback_makes_a_new_revision(tmp_path: Path) -> None:
    async with served(tmp_path) as (stub, members, _, _):
        await members.delete("a")
        await members.create(candidate("c"))
        dry = await stub.RollbackRevision(
            pb.RollbackRevisionRequest(revision=1, validate_only=True)
        )
        assert (dry.revision.number, dry.revision.candidates) == (4, 2)
        assert members.table().revision == 3
        made = (await stub.RollbackRevision(pb.RollbackRevisionRequest(revision=1))).revision
        assert (made.number, made.description, made.candidates) == (4, "rolled back to 1", 2)
        assert made.create_time.seconds > 0
        assert [c.id for c in members.table().candidates] == ["a", "b"]
        numbers: list[int] = []
        token = ""
        while True:
            request = pb.ListRevisionsRequest(page_size=3, page_token=token)
            page = await stub.ListRevisions(request)
            numbers += [r.number for r in page.revisions]
            token = page.next_page_token
            if not token:
                break
        assert numbers == [4, 3, 2, 1]
        for i in range(3):
            await members.create(candidate(f"more-{i}"))
        with pytest.raises(grpc.aio.AioRpcError, match="Revision 2 is not kept") as gone:
            await stub.RollbackRevision(pb.RollbackRevisionRequest(revision=2))
        assert gone.value.code() == grpc.StatusCode.NOT_FOUND
        for wrong in (
            stub.RollbackRevision(pb.RollbackRevisionRequest()),
            stub.ListRevisions(pb.ListRevisionsRequest(page_token="x")),
            stub.ListRevisions(pb.ListRevisionsRequest(page_size=-1)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await wrong
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_watcher_can_rebuild_the_table(tmp_path: Path) -> None:
    async with served(tmp_path) as (stub, members, _, _):
        call = stub.WatchCandidates(pb.WatchCandidatesRequest())
        table = {c.name: c for c in (await call.read()).changed}
        assert set(table) == {"candidates/a", "candidates/b"}
        await members.create(candidate("c"))
        first = await call.read()
        assert ([c.name for c in first.changed], list(first.removed)) == (["candidates/c"], [])
        for i in range(40):  # it does not read meanwhile
            await members.update("c", lambda _, i=i: candidate("c", i / 40))
        await members.delete("a")
        await members.update("b", lambda _: candidate("b", 0.1))
        answers = 0
        while True:
            answer = await call.read()
            answers += 1
            table.update({c.name: c for c in answer.changed})
            for name in answer.removed:
                del table[name]
            if answer.revision == members.table().revision:
                break
        listed = (await stub.ListCandidates(pb.ListCandidatesRequest())).candidates
        assert [table[name] for name in sorted(table)] == list(listed)
        assert answers <= 42
        call.cancel()


async def test_watch_from_the_current_revision_sends_only_changes(tmp_path: Path) -> None:
    async with served(tmp_path) as (stub, members, server, _):
        call = stub.WatchCandidates(pb.WatchCandidatesRequest(last_seen_revision=1))
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait([reading], timeout=0.2)
        assert not reading.done()
        await members.create(candidate("c"))
        answer = await reading
        assert (answer.revision, [c.name for c in answer.changed]) == (2, ["candidates/c"])
        other = stub.WatchCandidates(pb.WatchCandidatesRequest(last_seen_revision=77))
        assert len((await other.read()).changed) == 3
        members.close_watches()
        assert await call.read() is grpc.aio.EOF
        assert await other.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        await server.stop(60)  # nothing is in flight, so it does not last


async def test_malformed_watch_request_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as (stub, _, _, channel):
        call = channel.unary_stream("/modelsat.v1.CandidateService/WatchCandidates")(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be parsed") as refused:
            await call.read()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert (await stub.ListCandidates(pb.ListCandidatesRequest())).revision == 1


def test_command_line_rolls_back_backs_up_and_restores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, copy = tmp_path / "s.sqlite", tmp_path / "copy.sqlite"
    catalog = read_catalog(BUNDLE / "zoo.json")
    with serving(store, "--revision-history-limit", "3") as server:
        where = ["--server", server.address]
        assert cli(["candidates", "delete", catalog[0].id, *where]) == 0
        assert cli(["store", "backup", "--candidates-db", str(store), str(copy)]) == 0
        assert cli(["candidates", "rollback", "1", "--validate-only", *where]) == 0
        assert cli(["candidates", "rollback", "1", *where]) == 0
        assert cli(["candidates", "rollback", "9", *where]) == 1
        assert cli(["candidates", "revisions", *where]) == 0
        assert cli(["store", "restore", "--candidates-db", str(store), str(copy)]) == 1
        with Client(server.address) as client:
            assert len(client.list_candidates()) == len(catalog)
            watched = client.watch_candidates(3)
            client.delete_candidate(catalog[1].id)
            assert [next(watched).revision] == [4]
            assert server.terminate() == 0, "a watcher does not hold it up"
            assert list(watched) == []
    out, err = capsys.readouterr()
    assert "rolled back to 1: revision would be 3, " in out
    assert "rolled back to 1: revision is now 3, " in out
    assert "deleted" in out
    assert "Revision 9 is not kept" in err
    assert "open in another server" in err
    assert cli(["store", "restore", "--candidates-db", str(store), str(copy)]) == 0
    with serving(store) as server, Client(server.address) as client:
        assert len(client.list_candidates()) == len(catalog) - 1
        assert [r.number for r in client.list_revisions()] == [5, 2, 1]


@pytest.mark.parametrize("count", [1001, 1500, 3000])
async def test_a_table_is_counted_before_its_candidates_are_read(
    tmp_path: Path, count: int
) -> None:
    """Kind: repeated fields are walked before they are counted. No name here is valid."""
    async with served(tmp_path) as (stub, members, _, _):
        before = members.table()
        request = pb.BatchReplaceCandidatesRequest()
        for _ in range(count):
            request.candidates.add(name="?")
        with pytest.raises(grpc.aio.AioRpcError, match=f"would be {count}, the limit is 1000"):
            await stub.BatchReplaceCandidates(request)
        assert members.table() is before


def test_an_error_lists_a_bounded_number_of_problems() -> None:
    """Kind: answers as large as the caller likes. 1,000 candidates hold 50,000 wrong accuracies."""
    one = candidate("a")
    wrong = replace(one, aptitude=tuple(replace(r, accuracy=2.0) for r in one.aptitude))
    with pytest.raises(InvalidInputError) as refused:
        require_valid([wrong] * 1000)
    assert MAX_PROBLEMS <= len(refused.value.violations) <= MAX_PROBLEMS + TEST_TASKS + 1


def test_an_answer_encoded_in_pieces_is_the_same() -> None:
    others = pb.WatchCandidatesResponse(revision=7, revision_token="x", removed=["candidates/c"])
    answer = pb.WatchCandidatesResponse.FromString(
        encoded(others, "changed", [candidate("a"), candidate("b")])
    )
    others.changed.extend([candidate_to(candidate("a")), candidate_to(candidate("b"))])
    assert answer == others


async def test_a_table_that_is_built_late_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    """Tables are built in threads: one read before a change may be ready after it."""
    members = registry(str(tmp_path / "s.sqlite"), candidate("a"))
    outdated, release = members._store.newest(), threading.Event()
    built = members._build

    def build(stored: StoredTable) -> Table:
        if stored is outdated:
            release.wait(5)
        return built(stored)

    members._build = build  # type: ignore[method-assign]
    late = asyncio.create_task(members._publish_built(outdated))
    await asyncio.sleep(0)
    await members.create(candidate("b"))
    release.set()
    assert (await late).revision == 1
    assert members.table().revision == 2
    await members.close()
