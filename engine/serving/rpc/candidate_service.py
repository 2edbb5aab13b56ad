"""CandidateService: convert messages for Registry and back; field masks, paging, request IDs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf import empty_pb2
from google.protobuf.message import Message

from engine.api.candidate import (
    ID_PATTERN,
    NAME_PREFIX,
    WORD_LISTS,
    Candidate,
    check_table_size,
    parse_name,
)
from engine.api.errors import InvalidInputError, NotFoundError, Violation
from engine.api.proto import OPTIONAL_FIELDS, candidate_from, candidate_to
from engine.api.request_context import PRINCIPAL
from engine.pb import candidate_pb2, candidate_service_pb2_grpc
from engine.pb import candidate_service_pb2 as pb
from engine.registry.candidate_files.tasks import with_whole_test
from engine.registry.registry import Registry
from engine.registry.stores.base import Revision
from engine.registry.table import Table
from engine.serving.telemetry.change_log import ChangeLog, audited

DEFAULT_PAGE, MAX_PAGE = 50, 200
MAX_REQUEST_IDS = 1024  # remembered
MAX_REQUEST_ID_CHARS = 64
REVISION_METADATA = "modelsat-revision-token"
MAX_MASK_PATHS = 64
MUTABLE = ("display_name", "aptitude", "price_source", *OPTIONAL_FIELDS, *WORD_LISTS)
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Message, Message]

Answer = TypeVar("Answer")


def completed(method: Callable[..., Coroutine[Any, Any, Answer]]) -> Callable[..., Any]:
    """Let a change complete although its caller gives up, as the store does, so that the audit
    says what came of it."""

    @wraps(method)
    async def run(self: Any, request: Message, context: Context) -> Answer:
        return await asyncio.shield(asyncio.create_task(method(self, request, context)))

    return run


class CandidateService(candidate_service_pb2_grpc.CandidateServiceServicer):
    """See proto/modelsat/v1/candidate_service.proto; errors are mapped by StatusInterceptor."""

    def __init__(
        self,
        registry: Registry,
        changes: ChangeLog | None = None,
        set_aside: Callable[[str], Mapping[str, str]] = lambda _: {},
    ) -> None:
        """set_aside: of CandidateHealth."""
        self._registry = registry
        self._set_aside = set_aside
        self._changes = changes
        self._answered: OrderedDict[str, tuple[bytes, asyncio.Task[Any]]] = OrderedDict()

    @completed
    async def CreateCandidate(
        self, request: pb.CreateCandidateRequest, context: Context
    ) -> candidate_pb2.Candidate:
        """Register a candidate; a repeated request ID joins the first request with that ID."""
        created = await self._create_once(request)
        self._tell(context)
        return created

    async def _create_once(self, request: pb.CreateCandidateRequest) -> candidate_pb2.Candidate:
        key = request.request_id
        if len(key) > MAX_REQUEST_ID_CHARS:
            raise InvalidInputError(
                Violation(
                    "request_id", f"is {len(key)} characters; at most {MAX_REQUEST_ID_CHARS}."
                )
            )
        if not key or request.validate_only:
            return await self._create(request)
        content = await asyncio.to_thread(_digest, request)
        if key not in self._answered:
            self._remember(key, content, asyncio.create_task(self._create(request)))
        known, task = self._answered[key]
        if known != content:
            raise InvalidInputError(
                Violation("request_id", "was used for a different request; use a new one.")
            )
        # Shielded: the change completes even if its caller gives up, and a retry finds it here.
        answer: candidate_pb2.Candidate = await asyncio.shield(task)
        return answer

    async def _create(self, request: pb.CreateCandidateRequest) -> candidate_pb2.Candidate:
        target = request.candidate.name or NAME_PREFIX + request.candidate_id
        async with self._audited("created", target, request.validate_only):
            candidate = await self._registry.create(
                with_whole_test(_new_candidate(request)), validate_only=request.validate_only
            )
        return candidate_to(candidate)

    def _remember(self, key: str, content: bytes, task: asyncio.Task[Any]) -> None:
        def forget_failure(done: asyncio.Task[Any]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._answered.pop(key, None)

        task.add_done_callback(forget_failure)
        self._answered[key] = (content, task)
        if len(self._answered) > MAX_REQUEST_IDS:
            self._answered.popitem(last=False)

    async def GetCandidate(
        self, request: pb.GetCandidateRequest, context: Context
    ) -> candidate_pb2.Candidate:
        """Return one candidate."""
        await self._registry.require(request.min_revision_token, deadline_of(context))
        candidate = self._registry.table().get(parse_name(request.name))
        if candidate is None:
            raise NotFoundError(request.name)
        return candidate_to(candidate)

    async def ListCandidates(self, request: pb.ListCandidatesRequest, context: Context) -> bytes:
        """Return a page. The token is the last ID of the previous page, so that candidates
        added or removed in between neither repeat nor hide others."""
        if request.page_size < 0:
            raise InvalidInputError(
                Violation("page_size", f"is {request.page_size}; expected 0 or more.")
            )
        if request.page_token and not ID_PATTERN.fullmatch(request.page_token):
            raise InvalidInputError(
                Violation(
                    "page_token", "is not a next_page_token of this server; omit it to start."
                )
            )
        await self._registry.require(request.min_revision_token, deadline_of(context))
        table = self._registry.table()
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        rest = [c for c in table.candidates if c.id > request.page_token]
        page = rest[:size]
        others = pb.ListCandidatesResponse(
            next_page_token=page[-1].id if len(rest) > size else "",
            revision=table.revision,
            revision_token=table.id.token,
            set_aside=self._set_aside(PRINCIPAL.get()),
        )
        return await asyncio.to_thread(encoded, others, "candidates", page)

    @completed
    async def UpdateCandidate(
        self, request: pb.UpdateCandidateRequest, context: Context
    ) -> candidate_pb2.Candidate:
        """Change the fields that the mask names."""
        async with self._audited("updated", request.candidate.name, request.validate_only):
            given = candidate_from(request.candidate, "candidate")
            fields = _masked(request)

            def merge(present: Candidate | None) -> Candidate:
                if present is None:
                    return with_whole_test(given)
                changed = {name: getattr(given, name) for name in fields}
                return with_whole_test(replace(present, **changed))

            candidate = await self._registry.update(
                given.id,
                merge,
                etag=request.candidate.etag,
                allow_missing=request.allow_missing,
                validate_only=request.validate_only,
            )
        self._tell(context)
        return candidate_to(candidate)

    @completed
    async def DeleteCandidate(
        self, request: pb.DeleteCandidateRequest, context: Context
    ) -> empty_pb2.Empty:
        """Remove a candidate."""
        async with self._audited("deleted", request.name, request.validate_only):
            await self._registry.delete(
                parse_name(request.name),
                etag=request.etag,
                allow_missing=request.allow_missing,
                validate_only=request.validate_only,
            )
        self._tell(context)
        return empty_pb2.Empty()

    @completed
    async def BatchReplaceCandidates(
        self, request: pb.BatchReplaceCandidatesRequest, context: Context
    ) -> bytes:
        """Replace the whole table."""
        target = f"{len(request.candidates)} candidates"
        async with self._audited("replaced all by", target, request.validate_only):
            check_table_size(len(request.candidates))  # before they are converted
            given = await asyncio.to_thread(_candidates, request.candidates)
            table = await self._registry.replace(given, validate_only=request.validate_only)
        self._tell(context)
        answer = given if request.validate_only else table.candidates
        others = pb.BatchReplaceCandidatesResponse(
            revision=table.revision, revision_token=table.id.token
        )
        return await asyncio.to_thread(encoded, others, "candidates", answer)

    async def ListRevisions(
        self, request: pb.ListRevisionsRequest, context: Context
    ) -> pb.ListRevisionsResponse:
        """Return a page, newest first. The token is the last number of the previous page."""
        if request.page_size < 0:
            raise InvalidInputError(
                Violation("page_size", f"is {request.page_size}; expected 0 or more.")
            )
        return await page_of_revisions(
            self._registry, request.page_token, min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        )

    @completed
    async def RollbackRevision(
        self, request: pb.RollbackRevisionRequest, context: Context
    ) -> pb.RollbackRevisionResponse:
        """Make the table of an earlier revision the current one."""
        async with self._audited("rolled back to", str(request.revision), request.validate_only):
            if not 0 < request.revision < 2**62:
                raise InvalidInputError(
                    Violation("revision", f"is {request.revision}; expected 1 or more.")
                )
            made = await self._registry.rollback(
                request.revision, validate_only=request.validate_only
            )
        self._tell(context)
        return pb.RollbackRevisionResponse(revision=revision_to(made))

    async def WatchCandidates(
        self, request: pb.WatchCandidatesRequest, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Send the table, then its changes, until the server stops."""
        async with aclosing(watch(self._registry, request)) as answers:
            async for answer in answers:
                yield answer

    def _tell(self, context: Context) -> None:
        """Send the identity of the newest revision, which includes the caller's change."""
        token = self._registry.table().id.token
        context.set_trailing_metadata(((REVISION_METADATA, token),))

    def _audited(
        self, action: str, target: str, dry_run: bool
    ) -> AbstractAsyncContextManager[None]:
        """See audited."""
        return audited(
            self._changes, action, target, lambda: self._registry.table().revision, dry_run
        )


def deadline_of(context: Context) -> float:
    """Return the call's deadline as of time.monotonic()."""
    left = context.time_remaining()
    return float("inf") if left is None else time.monotonic() + left


# Slow enough (see encoded) to run outside of the event loop.
def _candidates(messages: Sequence[candidate_pb2.Candidate]) -> list[Candidate]:
    return [with_whole_test(candidate_from(c, f"candidates[{i}]")) for i, c in enumerate(messages)]


def _digest(request: pb.CreateCandidateRequest) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _new_candidate(request: pb.CreateCandidateRequest) -> Candidate:
    message, given = request.candidate, NAME_PREFIX + request.candidate_id
    if not request.candidate_id:
        return candidate_from(message, "candidate")
    if message.name not in ("", given):
        raise InvalidInputError(
            Violation(
                "candidate_id",
                f"is {given[:80]!r}, and candidate.name is different; set one.",
            )
        )
    if not message.name:
        message.name = given
    return candidate_from(message, "candidate")


def _masked(request: pb.UpdateCandidateRequest) -> tuple[str, ...]:
    """Return the fields to change, by the rules of google.aip.dev/134."""
    if (count := len(request.update_mask.paths)) > MAX_MASK_PATHS:
        problem = f"has {count} fields; at most {MAX_MASK_PATHS}."
        raise InvalidInputError(Violation("update_mask", problem))
    paths = tuple(request.update_mask.paths)
    if not paths:
        present = {descriptor.name for descriptor, _ in request.candidate.ListFields()}
        return tuple(name for name in MUTABLE if name in present)
    if paths == ("*",):
        return MUTABLE
    if unknown := [path for path in paths if path not in MUTABLE]:
        raise InvalidInputError(
            Violation(
                "update_mask",
                f"has unknown fields {[path[:80] for path in unknown]}; expected some of"
                f" {list(MUTABLE)}, or '*'.",
            )
        )
    return paths


def encoded(answer: Message, field: str, candidates: Sequence[Candidate]) -> bytes:
    """Encode `answer` with candidates in a repeated field, to run outside of the event loop.

    Each candidate, which takes 0.3 ms, is encoded by itself: protobuf holds the interpreter's lock
    for as long as it copies or encodes a message, 25 ms for a full table.
    """
    pieces = [type(answer)(**{field: [candidate_to(c)]}).SerializeToString() for c in candidates]
    return b"".join((answer.SerializeToString(), *pieces))


def revision_to(revision: Revision) -> pb.Revision:
    """Convert a revision; create_time is unset for the initial one."""
    message = pb.Revision(
        number=revision.number,
        description=revision.description,
        candidates=revision.candidates,
        revision_token=revision.id.token if revision.id.nonce else "",
        principal=revision.principal,
        peer=revision.peer,
    )
    if revision.created_us:
        message.create_time.FromMicroseconds(revision.created_us)
    return message


async def page_of_revisions(registry: Registry, token: str, size: int) -> pb.ListRevisionsResponse:
    """Return a page of revisions. token: the last number of the previous page, "" at first."""
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidInputError(
            Violation("page_token", "is not a next_page_token of this server; omit it to start.")
        )
    revisions = await registry.revisions(int(token) if token else None, size + 1)
    page = revisions[:size]
    return pb.ListRevisionsResponse(
        revisions=[revision_to(r) for r in page],
        next_page_token=str(page[-1].number) if len(revisions) > size else "",
    )


async def watch(
    registry: Registry, request: pb.WatchCandidatesRequest
) -> AsyncGenerator[bytes, None]:
    """Yield the whole table unless the watcher has it, then each change, until the server stops."""
    known: Table | None = None
    async with aclosing(registry.watch()) as tables:
        async for table in tables:
            token = request.last_seen_revision_token
            seen = (
                table.id.token == token if token else table.revision == request.last_seen_revision
            )
            if known is None and seen:
                known = table
                continue
            answer = await asyncio.to_thread(_step, known, table)
            known = table
            yield answer


def _step(known: Table | None, table: Table) -> bytes:
    """Encode the changes from the table `known` (None for an empty one) to `table`."""
    changed = [c for c in table.candidates if known is None or known.get(c.id) != c]
    gone = [] if known is None else [c.id for c in known.candidates if c.id not in table.rows]
    others = pb.WatchCandidatesResponse(
        revision=table.revision,
        revision_token=table.id.token,
        removed=[NAME_PREFIX + i for i in gone],
    )
    return encoded(others, "changed", changed)
