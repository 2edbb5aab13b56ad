"""The client for asyncio, with the methods of `engine.client.sync.Client` as coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from engine.api.candidate import Candidate
from engine.api.policy import Policy, Session
from engine.api.proto import candidate_from
from engine.api.usage import Usage
from engine.client.adaptation import AsyncAdaptationCalls
from engine.client.channel import DEFAULT_SERVER, INSECURE, Credentials, open_aio_channel
from engine.client.errors import ModelsatClientError, translate_errors
from engine.client.requests import (
    DEFAULT_POLICY,
    NO_USAGE,
    Instruction,
    Outcome,
    batches,
    comparison_request,
    create_request,
    delete_request,
    outcome_request,
    replace_request,
    resource_name,
    rollback_request,
    route_request,
    stream_request,
    token_in,
    update_request,
    watch_request,
)
from engine.client.results import (
    CandidatesChange,
    RevisionInfo,
    RouteDecision,
    RouteResult,
    ServerInfo,
    change_from,
    decision_from,
    result_from,
    revision_from,
    server_info_from,
)
from engine.pb import (
    adaptation_service_pb2_grpc,
    candidate_service_pb2,
    candidate_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)

T = TypeVar("T")


class AsyncClient(AsyncAdaptationCalls):
    """Client of a modelsat server for asyncio. Create and use it in one event loop.

    Use it in an `async with` block or call `close`. Arguments, results and errors are those of
    `Client`; every method is a coroutine or an asynchronous iterator.

    Example:
        async with AsyncClient("127.0.0.1:50051", timeout_s=2) as client:
            print((await client.route("If 3x + 7 = 22, what is x?")).selected)
    """

    def __init__(
        self,
        address: str = DEFAULT_SERVER,
        timeout_s: float = 10.0,
        credentials: Credentials = INSECURE,
        *,
        retries: bool = True,
        hedge_address: str = "",
        hedge_after_s: float = 0.1,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self.revision_token = ""
        self._metadata = credentials.metadata()
        self._channel = open_aio_channel(address, credentials, retries=retries)
        self._router = router_service_pb2_grpc.RouterServiceStub(self._channel)
        self._candidates = candidate_service_pb2_grpc.CandidateServiceStub(self._channel)
        self._adaptations = adaptation_service_pb2_grpc.AdaptationServiceStub(self._channel)
        self._hedge_address = hedge_address
        self._hedge_after_s = hedge_after_s
        # A channel of its own: within one, round robin may pick the same server again.
        self._hedge_channel: grpc.aio.Channel | None = None
        if hedge_address:
            self._hedge_channel = open_aio_channel(hedge_address, credentials, retries=retries)
            self._hedge_router = router_service_pb2_grpc.RouterServiceStub(self._hedge_channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections and cancel calls in flight."""
        await self._channel.close()
        if self._hedge_channel is not None:
            await self._hedge_channel.close()

    async def route(
        self,
        instruction: Instruction,
        policy: Policy = DEFAULT_POLICY,
        *,
        session: Session | None = None,
        dry_run: bool = False,
        min_revision_token: str = "",
    ) -> RouteDecision:
        """Choose the candidate that should answer an instruction; see `Client.route`.

        Example:
            decision = await client.route("Who wrote Faust?", Policy("cost_sensitivity", 0.5))
            print(decision.selected, decision.ranking[0].probability, decision.reason)
        """
        request = route_request(instruction, policy, session, dry_run, min_revision_token)
        if self._hedge_channel is None:
            return decision_from(await self._call(self._router.Route, request))
        remaining_s = self._timeout_s - self._hedge_after_s
        response = await first_success(
            lambda: self._call(self._router.Route, request),
            lambda: self._call(self._hedge_router.Route, request, self._hedge_address, remaining_s),
            self._hedge_after_s,
        )
        return decision_from(response)

    async def route_many(
        self,
        instructions: Sequence[Instruction],
        policy: Policy = DEFAULT_POLICY,
        *,
        dry_run: bool = False,
    ) -> list[RouteResult]:
        """Choose a candidate for each of several instructions; see `Client.route_many`.

        Example:
            for result in await client.route_many(["What is 2 + 2?", "Who wrote Faust?"]):
                print(result.selected if isinstance(result, RouteDecision) else result.code)
        """
        return [
            result_from(result)
            for request in batches(instructions, policy, dry_run)
            for result in (await self._call(self._router.BatchRoute, request)).results
        ]

    async def route_stream(
        self,
        instructions: Iterable[Instruction | Outcome] | AsyncIterable[Instruction | Outcome],
        policy: Policy = DEFAULT_POLICY,
        *,
        dry_run: bool = False,
    ) -> AsyncIterator[tuple[int, RouteResult]]:
        """Route instructions while they are produced, over one call; see `Client.route_stream`.

        Example:
            async for position, result in client.route_stream(["What is 2 + 2?", "Hello!"]):
                print(position, result)
        """
        errors: list[Exception] = []

        async def requests() -> AsyncIterator[router_service_pb2.StreamRouteRequest]:
            i = 0
            try:
                async for instruction in _as_async(instructions):
                    yield stream_request(i, instruction, policy, dry_run)
                    i += 1
            except Exception as error:  # noqa: BLE001 - raised below; gRPC would swallow it
                errors.append(error)

        with translate_errors(self._address):
            call = self._router.StreamRoute(requests(), metadata=self._metadata)
        async for response in self._responses(call):
            if not response.HasField("recorded"):
                yield int(response.id), result_from(response.result)
        if errors:
            raise errors[0]

    async def record_outcome(
        self,
        decision_id: str,
        candidate: str,
        score: float,
        *,
        text: str = "",
        category: str = "",
        usage: Usage | None = None,
        store_text: bool = True,
    ) -> bool:
        """Record how well a candidate answered; see `Client.record_outcome`.

        Example:
            await client.record_outcome(decision.decision_id, decision.selected, 1.0)
        """
        request = outcome_request(decision_id, candidate, score, text, category, usage, store_text)
        return bool((await self._call(self._router.RecordOutcome, request)).recorded)

    async def record_comparison(
        self,
        scores: Mapping[str, float],
        *,
        decision_id: str = "",
        text: str = "",
        store_text: bool = False,
        category: str = "",
        grader: str = "",
        disagreement: float | None = None,
        usage: Mapping[str, Usage] = NO_USAGE,
    ) -> int:
        """Record how well several candidates answered; see `Client.record_comparison`.

        Example:
            scores = {ranked.candidate: 1.0 for ranked in decision.ranking[:2]}
            await client.record_comparison(scores, decision_id=decision.decision_id)
        """
        request = comparison_request(
            scores, decision_id, text, store_text, category, grader, disagreement, usage
        )
        return int((await self._call(self._router.RecordComparison, request)).recorded)

    async def server_info(self) -> ServerInfo:
        """Return version, backend and limits of the server.

        Example:
            print((await client.server_info()).version)
        """
        request = router_service_pb2.GetServerInfoRequest()
        return server_info_from(await self._call(self._router.GetServerInfo, request))

    async def list_candidates(self, *, min_revision_token: str = "") -> list[Candidate]:
        """Return all candidates, ordered by ID.

        Example:
            print([candidate.id for candidate in await client.list_candidates()])
        """
        request = candidate_service_pb2.ListCandidatesRequest(min_revision_token=min_revision_token)
        pages = self._pages(self._candidates.ListCandidates, request)
        return [candidate_from(c, "candidates") async for page in pages for c in page.candidates]

    async def get_candidate(self, candidate: str, *, min_revision_token: str = "") -> Candidate:
        """Return one candidate by its ID.

        Example:
            print((await client.get_candidate("yi-6b-chat")).context_window)
        """
        request = candidate_service_pb2.GetCandidateRequest(
            name=resource_name(candidate), min_revision_token=min_revision_token
        )
        message = await self._call(self._candidates.GetCandidate, request)
        return candidate_from(message, "candidate")

    async def create_candidate(
        self, candidate: Candidate, *, validate_only: bool = False
    ) -> Candidate:
        """Register a new candidate; see `Client.create_candidate`.

        Example:
            known = await client.get_candidate("yi-6b-chat")
            await client.create_candidate(dataclasses.replace(known, id="tutor"))
        """
        request = create_request(candidate, validate_only)
        message = await self._call(self._candidates.CreateCandidate, request)
        return candidate_from(message, "candidate")

    async def update_candidate(
        self,
        candidate: Candidate,
        fields: Sequence[str] = (),
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> Candidate:
        """Change a registered candidate; see `Client.update_candidate`.

        Example:
            known = await client.get_candidate("yi-6b-chat")
            tagged = dataclasses.replace(known, tags=("production",))
            await client.update_candidate(tagged, ["tags"], etag=known.etag)
        """
        request = update_request(candidate, fields, etag, allow_missing, validate_only)
        message = await self._call(self._candidates.UpdateCandidate, request)
        return candidate_from(message, "candidate")

    async def delete_candidate(
        self,
        candidate: str,
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> None:
        """Remove a candidate by its ID; see `Client.delete_candidate`.

        Example:
            await client.delete_candidate("tutor", allow_missing=True)
        """
        request = delete_request(candidate, etag, allow_missing, validate_only)
        await self._call(self._candidates.DeleteCandidate, request)

    async def replace_candidates(
        self, candidates: Sequence[Candidate], *, validate_only: bool = False
    ) -> int:
        """Replace all candidates at once and return the new revision.

        Example:
            await client.replace_candidates(await client.list_candidates(), validate_only=True)
        """
        request = replace_request(candidates, validate_only)
        return int((await self._call(self._candidates.BatchReplaceCandidates, request)).revision)

    async def list_revisions(self) -> list[RevisionInfo]:
        """Return the revisions that can be rolled back to, newest first.

        Example:
            print((await client.list_revisions())[0].description)
        """
        request = candidate_service_pb2.ListRevisionsRequest()
        pages = self._pages(self._candidates.ListRevisions, request)
        return [revision_from(revision) async for page in pages for revision in page.revisions]

    async def rollback(self, revision: int, *, validate_only: bool = False) -> RevisionInfo:
        """Bring back the candidates of an earlier revision, as a new revision.

        Example:
            oldest = (await client.list_revisions())[-1]
            await client.rollback(oldest.number, validate_only=True)
        """
        request = rollback_request(revision, validate_only)
        response = await self._call(self._candidates.RollbackRevision, request)
        return revision_from(response.revision)

    async def watch_candidates(
        self, last_seen_revision: int = 0
    ) -> AsyncIterator[CandidatesChange]:
        """Follow changes of the candidates; see `Client.watch_candidates`.

        Example:
            async for change in client.watch_candidates():
                print(change.revision, len(change.changed), change.removed)
                break
        """
        request = watch_request(last_seen_revision)
        with translate_errors(self._address):
            call = self._candidates.WatchCandidates(request, metadata=self._metadata)
        async for response in self._responses(call):
            yield change_from(response)

    async def _call(
        self,
        method: Callable[..., Awaitable[Any]],
        request: Any,
        address: str = "",
        timeout_s: float | None = None,
    ) -> Any:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        with translate_errors(address or self._address):
            call: Any = method(request, timeout=timeout_s, metadata=self._metadata)
            response = await call
            self.revision_token = token_in(await call.trailing_metadata()) or self.revision_token
        return response

    async def _pages(
        self, method: Callable[..., Awaitable[Any]], request: Any
    ) -> AsyncIterator[Any]:
        while True:
            page = await self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _responses(self, call: Any) -> AsyncIterator[Any]:
        try:
            with translate_errors(self._address):
                async for response in call:
                    yield response
        finally:
            call.cancel()


async def first_success(
    first: Callable[[], Awaitable[T]], second: Callable[[], Awaitable[T]], after_s: float
) -> T:
    """Return what `first` answers within `after_s` seconds, else the first answer of both.

    Raises what the last one to fail raised. gRPC's own hedgingPolicy is not in its C core, on which
    Python runs.
    """
    tasks = [asyncio.ensure_future(first())]
    try:
        await asyncio.wait(tasks, timeout=after_s)
        if tasks[0].done():
            return tasks[0].result()
        tasks.append(asyncio.ensure_future(second()))
        for finished in asyncio.as_completed(tasks):
            try:
                return await finished
            except ModelsatClientError as error:
                last_error = error
        raise last_error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _as_async(
    instructions: Iterable[Instruction | Outcome] | AsyncIterable[Instruction | Outcome],
) -> AsyncIterator[Instruction | Outcome]:
    if isinstance(instructions, AsyncIterable):
        async for instruction in instructions:
            yield instruction
    else:
        for instruction in instructions:
            yield instruction
