"""Around every gRPC method: what it raises becomes a status, bytes that are no message too."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
)
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from engine.api.errors import InvalidInputError, Violation
from engine.serving.rpc.status import failure_status, pushback
from engine.serving.telemetry import TRACE_HEADERS, Telemetry

OURS = ("/modelsat.", "/envoy.service.ext_proc.")


class Unreadable:
    """Stands for a request whose bytes are no message of its type."""

    def __init__(self, why: str) -> None:
        self.why = why


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Around every method of the project: unreadable requests become INVALID_ARGUMENT, the
    project's errors their status, anything else INTERNAL without its text.

    Methods that answer with a stream are async generators."""

    def __init__(self) -> None:
        self._wrapped = Wrapped(_around)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OURS):
            return handler
        return self._wrapped.of(handler, method)


def _around(handler: Any, method: str) -> Any:
    coders = {
        "request_deserializer": _tolerant(handler.request_deserializer),
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary is not None:
        guarded = _guarded(handler.unary_unary, method)
        return grpc.unary_unary_rpc_method_handler(guarded, **coders)
    if handler.unary_stream is not None:
        streaming = _streaming(handler.unary_stream, method)
        return grpc.unary_stream_rpc_method_handler(streaming, **coders)
    if handler.stream_stream is not None:
        streaming = _streaming(handler.stream_stream, method)
        return grpc.stream_stream_rpc_method_handler(streaming, **coders)
    return handler


def _tolerant(parse: Callable[[bytes], Message]) -> Callable[[bytes], Message | Unreadable]:
    def deserialize(raw: bytes) -> Message | Unreadable:
        try:
            return parse(raw)
        except (DecodeError, UnicodeDecodeError, ValueError) as error:
            return Unreadable(type(error).__name__)

    return deserialize


def _guarded(
    behaviour: Callable[[Any, Any], Awaitable[Message]], method: str
) -> Callable[[Any, Any], Awaitable[Message]]:
    async def call(request: Message | Unreadable, context: Any) -> Message:
        try:
            return await behaviour(_readable(request, method), context)
        except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
            await _end(context, method, error)

    return call


def _streaming(
    behaviour: Callable[[Any, Any], AsyncGenerator[Message, None]], method: str
) -> Callable[[Any, Any], AsyncGenerator[Message, None]]:
    """request: one message, or the iterator of a stream of them."""

    async def call(request: Any, context: Any) -> AsyncGenerator[Message, None]:
        try:
            several = hasattr(request, "__aiter__")
            asked = _readables(request, method) if several else _readable(request, method)
            async with aclosing(behaviour(asked, context)) as answers:
                async for answer in answers:
                    yield answer
        except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
            await _end(context, method, error)

    return call


async def _readables(
    requests: AsyncIterable[Message | Unreadable], method: str
) -> AsyncGenerator[Message, None]:
    async for request in requests:
        yield _readable(request, method)


def _readable(request: Message | Unreadable, method: str) -> Message:
    if isinstance(request, Unreadable):
        wrong = Violation(
            "request",
            f"cannot be read ({request.why}): its bytes are no valid message of {method}, or a"
            " text in it is not UTF-8. Send text as UTF-8.",
        )
        raise InvalidInputError(wrong)
    return request


async def _end(context: Any, method: str, error: Exception) -> NoReturn:
    """End a call with the status of what went wrong."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    await _abort(context, failure_status(error, method))


async def _abort(context: Any, status: status_pb2.Status) -> NoReturn:
    found = rpc_status.to_status(status)
    await context.abort(found.code, found.details, (*found.trailing_metadata, *pushback(status)))
    raise AssertionError("abort() raises")


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


class Wrapped:
    """wrap: (handler, method) -> the handler that takes its place. Only methods that are served
    have handlers, so what is kept is bounded by them."""

    def __init__(self, wrap: Callable[[Any, str], Any]) -> None:
        self._wrap = wrap
        self._known: dict[str, tuple[Any, Any]] = {}

    def of(self, handler: Any, method: str) -> Any:
        """What stands around `handler`; made anew where another handler comes for `method`."""
        known, wrapped = self._known.get(method, (None, None))
        if known is not handler:
            wrapped = self._wrap(handler, method)
            self._known[method] = (handler, wrapped)
        return wrapped
