"""Around every method of a gRPC server, unary or streaming: how long it took and how it ended."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from engine.serving.telemetry import TRACE_HEADERS, Telemetry
from engine.serving.wrapping import Wrapped

NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
OK, CANCELLED, UNKNOWN = 0, 1, 2
DEADLINE_EXCEEDED, UNIMPLEMENTED = 4, 12
NO_METHOD = "unknown"  # one name for whatever callers make up


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """Goes first among the interceptors, so that it sees what the others answer."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._wrapped = Wrapped(self._wrap)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            call = self._telemetry.begin(NO_METHOD, {})
            self._telemetry.answered(call, NAMES[UNIMPLEMENTED], UNIMPLEMENTED)
            return None
        return self._wrapped.of(handler, handler_call_details.method)

    def _wrap(self, handler: Any, method: str) -> Any:
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            self._around(getattr(handler, kind), method.removeprefix("/")),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _around(self, behaviour: Callable[[Any, Any], Any], method: str) -> Callable[..., Any]:
        """The same kind of function as `behaviour`: gRPC tells them apart by it."""

        async def answer(request: Any, context: Any) -> Any:
            with self._watched(method, context):
                result = behaviour(request, context)
                return await result if inspect.isawaitable(result) else result

        async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._watched(method, context):
                async for message in behaviour(request, context):
                    yield message

        return answers if inspect.isasyncgenfunction(behaviour) else answer

    @contextmanager
    def _watched(self, method: str, context: Any) -> Iterator[None]:
        headers = {k: v for k, v in context.invocation_metadata() or () if k in TRACE_HEADERS}
        call = self._telemetry.begin(method, headers)
        code = UNKNOWN
        try:
            yield
            code = _code(context, OK)
        except (asyncio.CancelledError, GeneratorExit):
            left = context.time_remaining()
            code = CANCELLED if left is None or left > 0 else DEADLINE_EXCEEDED
            raise
        except BaseException:
            code = _code(context, UNKNOWN)
            raise
        finally:
            self._telemetry.answered(call, NAMES[code], code)


def _code(context: Any, default: int) -> int:
    """What the method set or aborted with; context.code() is a number, or a grpc.StatusCode."""
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return number if number in NAMES and number != OK else default
