"""A change's answer carries a token, and a request that demands it waits for the table, on any
server of the fleet; it never gets an older one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.api.errors import InvalidInputError, RevisionLostError, UnavailableError
from engine.client.errors import ModelsatClientError
from engine.registry.stores.base import RevisionId
from modelsat import Client
from tests.support.postgres import Postgres, postgres
from tests.support.stores import candidate, fresh, registry
from tools.processes import serving

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


async def test_another_server_waits_for_the_change(server: Postgres) -> None:
    """It does not follow the store, so nothing but the demand makes it read."""
    url = fresh(server, "written")
    one, two = registry(url), registry(url)
    for i in range(3):
        await one.create(candidate(f"new-{i}"))
        token = one.table().id.token
        await two.require(token, time.monotonic() + 5)
        assert two.table().id.token == token
    await two.create(candidate("later"))
    await two.require(token, time.monotonic())  # a later table includes it
    await asyncio.gather(one.close(), two.close())


async def test_what_cannot_be_had_is_refused(server: Postgres) -> None:
    url = fresh(server, "refused")
    one, two = registry(url), registry(url)
    await one.create(candidate("new"))
    known = one.table().id
    for lost in (
        RevisionId(known.epoch, 3, "ab"),  # acknowledged by a server that failed over
        RevisionId(known.epoch, 2, "ab"),  # the same number in another history
        RevisionId("ab", 1000, known.nonce),
    ):
        with pytest.raises(RevisionLostError, match=f"revision {lost.number} "):
            await two.require(lost.token, time.monotonic() + 5)
    with pytest.raises(InvalidInputError, match="min_revision_token"):
        await two.require("2", time.monotonic() + 5)
    await one.create(candidate("missed"))
    server.freeze()
    two._on_revision(None, "TimeLimitError")
    with pytest.raises(UnavailableError, match="at revision 2, the request demands 3"):
        await two.require(one.table().id.token, time.monotonic() + 0.5)
    server.thaw()
    await two.require(one.table().id.token, time.monotonic() + 8)
    await asyncio.gather(one.close(), two.close())


def test_clients_read_what_they_wrote(tmp_path: Path) -> None:
    with serving(tmp_path / "c.sqlite") as running, Client(running.address, timeout_s=20) as client:
        assert client.revision_token == ""
        gone = client.list_candidates()[0].id
        client.delete_candidate(gone)
        token = client.revision_token
        decision = client.route("Hi", min_revision_token=token)
        assert decision.revision_token == token == client.server_info().revision_token
        assert gone not in {c.id for c in client.list_candidates(min_revision_token=token)}
        other = client.list_candidates()[0]
        assert client.get_candidate(other.id, min_revision_token=token) == other
        client.replace_candidates(client.list_candidates()[:2])
        client.rollback(1)
        assert client.revision_token not in ("", token)
        for demand, code in (
            (token.replace(".2.", ".9."), "FAILED_PRECONDITION"),
            ("nonsense", "INVALID_ARGUMENT"),
        ):
            with pytest.raises(ModelsatClientError) as refused:
                client.route("Hi", min_revision_token=demand)
            assert refused.value.code == code
