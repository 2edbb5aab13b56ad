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

from engine.api.policy import Policy, Session
from engine.api.usage import Usage
from engine.client.adaptation import AsyncAdaptationCalls
from engine.client.candidates import AsyncCandidateCalls
from engine.client.channel import DEFAULT_SERVER, INSECURE, Credentials, open_aio_channel
from engine.client.errors import ModelsatClientError, translate_errors
from engine.client.requests import (
    DEFAULT_POLICY,
    NO_USAGE,
    Instruction,
    Outcome,
    batches,
    comparison_request,
    outcome_request,
    route_request,
    stream_request,
    token_in,
)
from engine.client.results import (
    RouteDecision,
    RouteResult,
    ServerInfo,
    decision_from,
    result_from,
    server_info_from,
)
from engine.pb import (
    adaptation_service_pb2_grpc,
    candidate_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)

T = TypeVar("T")


class AsyncClient(AsyncCandidateCalls, AsyncAdaptationCalls):
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
            decision = await client.route("Who wrote Faust?", Policy("willingness_to_pay_usd", 0.1))
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

        async for response in self._stream(self._router.StreamRoute, requests()):
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

    async def _stream(self, method: Callable[..., Any], request: Any) -> AsyncIterator[Any]:
        with translate_errors(self._address):
            call = method(request, metadata=self._metadata)
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
