"""The asyncio client: as engine.client.sync, and hedging where it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from engine.api.candidate import Candidate
from engine.api.policy import Policy, Session
from engine.api.proto import candidate_from, candidate_to
from engine.client.channel import DEFAULT_SERVER, PLAIN, Access, open_aio_channel
from engine.client.requests import (
    DEFAULT_POLICY,
    Instruction,
    ModelsatClientError,
    batches,
    outcome_request,
    replace_request,
    resource_name,
    route_request,
    translated,
)
from engine.pb import (
    candidate_service_pb2,
    candidate_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)

T = TypeVar("T")


class AsyncClient:
    """As engine.client.sync.Client; made and used in one event loop.

    hedge_address: of another server, which is asked too where Route has no answer after
    hedge_after_s seconds; the first answer counts and the other call is cancelled. Empty never
    does. Set the time near the 99th percentile of your own.
    """

    def __init__(
        self,
        address: str = DEFAULT_SERVER,
        timeout_s: float = 10.0,
        access: Access = PLAIN,
        *,
        retries: bool = True,
        hedge_address: str = "",
        hedge_after_s: float = 0.1,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._metadata = access.metadata()
        self._hedge_after_s = hedge_after_s
        self._channel = open_aio_channel(address, access, retries=retries)
        self._router = router_service_pb2_grpc.RouterServiceStub(self._channel)
        self._candidates = candidate_service_pb2_grpc.CandidateServiceStub(self._channel)
        # A channel of its own: within one, round robin may well pick the same server again.
        self._hedge_address = hedge_address
        self._hedge_channel: grpc.aio.Channel | None = None
        if hedge_address:
            self._hedge_channel = open_aio_channel(hedge_address, access, retries=retries)
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
        """Close the channels; calls in flight are cancelled."""
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
    ) -> router_service_pb2.RouteResponse:
        """Choose a candidate for a text, or for the last user turn of a conversation."""
        request = route_request(instruction, policy, session, dry_run)
        if self._hedge_channel is None:
            answer: router_service_pb2.RouteResponse = await self._call(self._router.Route, request)
            return answer
        return await hedged(
            lambda: self._call(self._router.Route, request),
            lambda: self._hedge(request),
            self._hedge_after_s,
        )

    async def _hedge(
        self, request: router_service_pb2.RouteRequest
    ) -> router_service_pb2.RouteResponse:
        left = self._timeout_s - self._hedge_after_s
        with translated(self._hedge_address):
            answer: router_service_pb2.RouteResponse = await self._hedge_router.Route(
                request, timeout=left, metadata=self._metadata
            )
        return answer

    async def route_many(
        self,
        instructions: Sequence[Instruction],
        policy: Policy = DEFAULT_POLICY,
        *,
        dry_run: bool = False,
    ) -> list[router_service_pb2.RouteResult]:
        """Choose for each one, in their order; each result holds a response or an error."""
        results: list[router_service_pb2.RouteResult] = []
        for request in batches(instructions, policy, dry_run):
            results += (await self._call(self._router.BatchRoute, request)).results
        return results

    async def record_outcome(
        self, decision_id: str, candidate: str, score: float, *, text: str = "", category: str = ""
    ) -> bool:
        """See engine.client.sync.Client.record_outcome."""
        request = outcome_request(decision_id, candidate, score, text, category)
        return bool((await self._call(self._router.RecordOutcome, request)).recorded)

    async def server_info(self) -> router_service_pb2.GetServerInfoResponse:
        """What is served and by what."""
        request = router_service_pb2.GetServerInfoRequest()
        answer: router_service_pb2.GetServerInfoResponse = await self._call(
            self._router.GetServerInfo, request
        )
        return answer

    async def candidates(self) -> list[Candidate]:
        """All candidates, in order of their ids."""
        found: list[Candidate] = []
        token = ""
        while True:
            request = candidate_service_pb2.ListCandidatesRequest(page_token=token)
            page = await self._call(self._candidates.ListCandidates, request)
            found += [candidate_from(c, "candidates") for c in page.candidates]
            token = page.next_page_token
            if not token:
                return found

    async def candidate(self, identifier: str) -> Candidate:
        """One candidate, by id or resource name."""
        request = candidate_service_pb2.GetCandidateRequest(name=resource_name(identifier))
        return candidate_from(await self._call(self._candidates.GetCandidate, request), "candidate")

    async def add(self, candidate: Candidate) -> Candidate:
        """Register a new candidate."""
        request = candidate_service_pb2.CreateCandidateRequest(candidate=candidate_to(candidate))
        return candidate_from(
            await self._call(self._candidates.CreateCandidate, request), "candidate"
        )

    async def remove(self, identifier: str) -> None:
        """Remove a candidate, by id or resource name."""
        request = candidate_service_pb2.DeleteCandidateRequest(name=resource_name(identifier))
        await self._call(self._candidates.DeleteCandidate, request)

    async def replace(self, candidates: Sequence[Candidate]) -> int:
        """Make `candidates` the whole table; returns the new revision."""
        request = replace_request(candidates)
        return int((await self._call(self._candidates.BatchReplaceCandidates, request)).revision)

    async def watch(
        self, last_seen_revision: int = 0
    ) -> AsyncIterator[candidate_service_pb2.WatchCandidatesResponse]:
        """Every change of the table as it comes, without a time limit, until the server stops."""
        request = candidate_service_pb2.WatchCandidatesRequest(
            last_seen_revision=last_seen_revision
        )
        call = self._candidates.WatchCandidates(request, metadata=self._metadata)
        try:
            with translated(self._address):
                async for change in call:
                    yield change
        finally:
            call.cancel()

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        with translated(self._address):
            return await method(request, timeout=self._timeout_s, metadata=self._metadata)


async def hedged(
    first: Callable[[], Awaitable[T]], second: Callable[[], Awaitable[T]], after_s: float
) -> T:
    """What `first` answers within `after_s` seconds, or the first answer of both from then on;
    raises what the last one to fail raised. (gRPC's hedgingPolicy is not in its C core.)"""
    tasks = [asyncio.ensure_future(first())]
    try:
        await asyncio.wait(tasks, timeout=after_s)
        if tasks[0].done():
            return tasks[0].result()
        tasks.append(asyncio.ensure_future(second()))
        for ended in asyncio.as_completed(tasks):
            try:
                return await ended
            except ModelsatClientError as error:
                failed = error
        raise failed
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
