"""Shut a server down without a failed request: calls in flight complete, streams are closed.

Once draining, new calls are refused with UNAVAILABLE and RetryInfo. A method that streams responses
only (a watch) ends with OK where it is. A stream of requests ends as if the caller had sent its
last one: every request that was read is answered, then the call ends with OK and the caller sends
the rest to another server.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_status import rpc_status

from engine.api.errors import UnavailableError
from engine.serving.rpc.interceptors import (
    Behavior,
    Continuation,
    HandlerWrapper,
    behavior_of,
    surround,
    with_behavior,
)
from engine.serving.rpc.status import to_status

# One of its streams is one HTTP request: half of it would go on without its answer.
NO_EARLY_CLOSE = "/envoy.service.ext_proc."
INFRASTRUCTURE = "/grpc."  # health and reflection answer until the end
SENTINEL = object()
SETTLE_S, MAX_SETTLE_S = 0.1, 1.0


class Drain(HandlerWrapper):
    """Count calls in flight, and end them. One instance for all ports of a server."""

    def __init__(self) -> None:
        super().__init__()
        self._active = 0
        self._refused = 0
        self._closed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def close(self, timeout_s: float) -> bool:
        """Refuse new calls and end streams.

        Returns:
            True once no call is in flight and no new one arrives, False after timeout_s seconds.
        """
        self._closed.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
                await self._settle()
        except TimeoutError:
            return False
        return True

    async def _settle(self) -> None:
        """Wait until no call was refused for SETTLE_S, at most MAX_SETTLE_S: grpc.aio answers a
        call that arrives while it stops with CANCELLED, which clients do not retry."""
        for _ in range(round(MAX_SETTLE_S / SETTLE_S)):
            before = self._refused
            await asyncio.sleep(SETTLE_S)
            if self._refused == before:
                return

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await super().intercept_service(continuation, handler_call_details)
        refuses = self._closed.is_set() and not handler_call_details.method.startswith(
            INFRASTRUCTURE
        )
        if handler is None or not refuses:
            return handler
        self._refused += 1
        return grpc.stream_stream_rpc_method_handler(_refuse)

    def wrap(self, handler: Any, method: str) -> Any:
        """See HandlerWrapper."""
        infrastructure = method.startswith(INFRASTRUCTURE)
        if infrastructure and not (handler.request_streaming or handler.response_streaming):
            return handler
        cut_requests = handler.request_streaming and not method.startswith(NO_EARLY_CLOSE)
        behavior = behavior_of(handler)
        if handler.response_streaming and not handler.request_streaming:
            behavior = self._cut(behavior)

        @asynccontextmanager
        async def around(request: Any, _: Any) -> AsyncIterator[Any]:
            self._active += 1
            self._idle.clear()
            try:
                yield self._until_closed(request) if cut_requests else request
            finally:
                self._active -= 1
                if not self._active:
                    self._idle.set()

        return with_behavior(handler, surround(behavior, around))

    def _cut(self, behavior: Behavior) -> Behavior:
        """Return a method that answers with a stream as one that ends when the drain begins."""

        async def call(request: Any, context: Any) -> None:
            await self._run_until_closed(behavior(request, context))

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async for response in self._until_closed(behavior(request, context)):
                yield response

        return stream if inspect.isasyncgenfunction(behavior) else call

    async def _run_until_closed(self, coroutine: Any) -> None:
        """Await `coroutine`, and cancel it when the drain begins."""
        work = asyncio.create_task(coroutine)
        closed = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait({work, closed}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
        finally:
            await _cancel(work, closed)

    async def _until_closed(self, source: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield from `source` until the drain begins."""
        closed = asyncio.create_task(self._closed.wait())
        context = contextvars.copy_context()  # one for all steps, as if they were one task
        step: asyncio.Task[Any] | None = None
        try:
            while not self._closed.is_set():
                step = asyncio.create_task(_next(source), context=context)
                await asyncio.wait({step, closed}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    return
                item = step.result()
                if item is SENTINEL:
                    return
                yield item
        finally:
            await _cancel(closed, *([] if step is None else [step]))


async def _next(source: AsyncIterator[Any]) -> Any:
    return await anext(source, SENTINEL)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _refuse(_: Any, context: Any) -> None:
    error = UnavailableError("The server is shutting down; try another.")
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
