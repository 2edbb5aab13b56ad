"""The end of a server without a failed request: what is in flight ends, streams are closed.

Once closed, new calls are refused with UNAVAILABLE and RetryInfo. A stream of answers (a watch)
ends with OK where it stands. A stream of requests looks as if its caller had sent the last one, so
that everything read is answered; it then ends with OK, and the caller sends again what was not.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_status import rpc_status

from engine.api.errors import UnavailableError
from engine.serving.rpc.interceptors import Wrapped
from engine.serving.rpc.status import to_status

# A stream of it is one HTTP request: half of one would go on without its answer.
WHOLE = "/envoy.service.ext_proc."
INFRASTRUCTURE = "/grpc."  # health and reflection answer to the end
END = object()
QUIET_S, MAX_QUIET_S = 0.1, 1.0


class Drain(grpc.aio.ServerInterceptor):
    """Counts calls in flight; one for all ports of a server."""

    def __init__(self) -> None:
        self._active = 0
        self._refused = 0
        self._closed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._wrapped = Wrapped(self._around)

    async def close(self, timeout_s: float) -> bool:
        """Refuse new calls and end streams; True once no call is left and no new one comes, False
        after timeout_s (seconds)."""
        self._closed.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
                await self._quiet()
        except TimeoutError:
            return False
        return True

    async def _quiet(self) -> None:
        """Wait until nobody was refused for QUIET_S, MAX_QUIET_S at most: a call that comes in the
        moment in which grpc.aio stops is answered with CANCELLED, which nobody retries."""
        for _ in range(round(MAX_QUIET_S / QUIET_S)):
            before = self._refused
            await asyncio.sleep(QUIET_S)
            if self._refused == before:
                return

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        ours = not handler_call_details.method.startswith(INFRASTRUCTURE)
        if ours and self._closed.is_set():
            self._refused += 1
            return grpc.stream_stream_rpc_method_handler(_refuse)
        return self._wrapped.of(handler, handler_call_details.method)

    def _around(self, handler: Any, method: str) -> Any:
        coders = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary:
            if method.startswith(INFRASTRUCTURE):
                return handler
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary), *coders)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._watch(handler.unary_stream), *coders)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._conversation(handler.stream_stream, method), *coders
            )
        return handler

    def _unary(self, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        async def call(request: Any, context: Any) -> Any:
            with self._counted():
                return await behaviour(request, context)

        return call

    def _watch(self, behaviour: Callable[[Any, Any], Any]) -> Any:
        async def written(request: Any, context: Any) -> None:
            with self._counted():
                await self._run(behaviour(request, context))

        async def yielded(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._counted():
                async for answer in self._until_closed(behaviour(request, context)):
                    yield answer

        return yielded if inspect.isasyncgenfunction(behaviour) else written

    def _conversation(self, behaviour: Callable[[Any, Any], Any], method: str) -> Any:
        read = _all if method.startswith(WHOLE) else self._until_closed

        async def written(requests: AsyncIterator[Any], context: Any) -> None:
            with self._counted():
                await behaviour(read(requests), context)

        async def yielded(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            with self._counted():
                async for answer in behaviour(read(requests), context):
                    yield answer

        return yielded if inspect.isasyncgenfunction(behaviour) else written

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _run(self, coroutine: Any) -> None:
        """Await it, but no longer than until the drain begins."""
        work = asyncio.create_task(coroutine)
        closed = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait({work, closed}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
        finally:
            await _end(work, closed)

    async def _until_closed(self, source: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """What `source` gives until the drain begins."""
        closed = asyncio.create_task(self._closed.wait())
        context = contextvars.copy_context()  # one for all steps, as if they were one task
        step: asyncio.Task[Any] | None = None
        try:
            while not self._closed.is_set():
                step = asyncio.create_task(_next(source), context=context)
                await asyncio.wait({step, closed}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    return
                answer = step.result()
                if answer is END:
                    return
                yield answer
        finally:
            await _end(closed, *([] if step is None else [step]))


def _all(source: AsyncIterator[Any]) -> AsyncIterator[Any]:
    return source


async def _next(source: AsyncIterator[Any]) -> Any:
    return await anext(source, END)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _refuse(_: Any, context: Any) -> None:
    error = UnavailableError("The server is stopping; try another.")
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
