"""The history of the table on the wire: pages of revisions, and those who watch it change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from engine.contract.candidate import PREFIX, Candidate
from engine.contract.errors import InvalidInputError, Violation
from engine.pb import candidate_pb2
from engine.pb import candidate_service_pb2 as pb
from engine.registry.registry import Registry
from engine.registry.store import Revision
from engine.registry.table import Table
from engine.serving.convert import candidate_to


def candidate_messages(candidates: Sequence[Candidate]) -> list[candidate_pb2.Candidate]:
    """0.3 ms a candidate."""
    return [candidate_to(c) for c in candidates]


def revision_to(revision: Revision) -> pb.Revision:
    """create_time is unset for a revision that was not made."""
    message = pb.Revision(
        number=revision.number,
        description=revision.description,
        candidates=revision.candidates,
    )
    if revision.created_us:
        message.create_time.FromMicroseconds(revision.created_us)
    return message


async def page_of_revisions(registry: Registry, token: str, size: int) -> pb.ListRevisionsResponse:
    """token: the last number of the page before, empty for the first page."""
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidInputError(
            Violation("page_token", "is no next_page_token of this server; begin without one.")
        )
    found = await registry.revisions(int(token) if token else None, size + 1)
    page = found[:size]
    return pb.ListRevisionsResponse(
        revisions=[revision_to(r) for r in page],
        next_page_token=str(page[-1].number) if len(found) > size else "",
    )


async def watch(
    registry: Registry, known_revision: int
) -> AsyncGenerator[pb.WatchCandidatesResponse, None]:
    """The whole table unless the watcher has it, then each change; ends when the server stops."""
    shown: Table | None = None
    async with aclosing(registry.tables()) as tables:
        async for table in tables:
            if shown is None and table.revision == known_revision:
                shown = table
                continue
            answer = await asyncio.to_thread(_step, shown, table)
            shown = table
            yield answer


def _step(shown: Table | None, table: Table) -> pb.WatchCandidatesResponse:
    """What takes a watcher that has `shown` (None: nothing) to `table`."""
    changed = [c for c in table.candidates if shown is None or shown.get(c.id) != c]
    gone = [] if shown is None else [c.id for c in shown.candidates if c.id not in table.rows]
    return pb.WatchCandidatesResponse(
        revision=table.revision,
        changed=candidate_messages(changed),
        removed=[PREFIX + i for i in gone],
    )
