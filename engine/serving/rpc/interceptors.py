"""Interceptors around every gRPC method: error statuses, and telemetry.

Interceptors take the handler that gRPC found for a method, and put one in its place that does more.
Each replacement is made once (HandlerWrapper), by one function for every kind of method
(surround).
"""

from __future__ import annotations

import asyncio
import inspect
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.serving.rpc.status import failure_status, pushback
from engine.serving.telemetry import Telemetry

SERVICE_PREFIXES = ("/modelsat.", "/envoy.service.")
UNKNOWN_METHOD = "unknown"  # the metrics' one name for all methods that callers make up
CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
TIMER_ERROR_S = 0.005  # by which gRPC may end a call before its deadline
OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED = 0, 1, 2, 4, 12

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Behavior = Callable[[Any, Any], Any]  # (request or iterator of requests, context)
# The same arguments, around one call; gives what the method gets in place of the request.
Around = Callable[[Any, Any], AbstractAsyncContextManager[Any]]


def surround(behavior: Behavior, around: Around) -> Behavior:
    """Return a function of the same kind that calls a method within `around`.

    behavior: a coroutine or async generator function. A method that answers with a stream may be
    either: a coroutine function writes to its context.
    """

    async def call(request: Any, context: Any) -> Any:
        async with around(request, context) as given:
            response = behavior(given, context)
            return await response if inspect.isawaitable(response) else response

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async with (
            around(request, context) as given,
            aclosing(behavior(given, context)) as responses,
        ):
            async for response in responses:
                yield response

    return stream if inspect.isasyncgenfunction(behavior) else call


def behavior_of(handler: Any) -> Behavior:
    """Return the function of an RpcMethodHandler of any of the four kinds."""
    function: Behavior = getattr(handler, _kind(handler))
    return function


def with_behavior(
    handler: Any,
    behavior: Behavior,
    request_deserializer: Any = None,
    response_serializer: Any = None,
) -> Any:
    """Return a handler of the same kind with another function, and perhaps other converters."""
    return getattr(grpc, f"{_kind(handler)}_rpc_method_handler")(
        behavior,
        request_deserializer=request_deserializer or handler.request_deserializer,
        response_serializer=response_serializer or handler.response_serializer,
    )


def _kind(handler: Any) -> str:
    requests, responses = handler.request_streaming, handler.response_streaming
    return f"{'stream' if requests else 'unary'}_{'stream' if responses else 'unary'}"


class HandlerWrapper(grpc.aio.ServerInterceptor):
    """Base of interceptors that wrap handlers. Each handler is wrapped once; only methods that are
    served have handlers, so their number is bounded."""

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Any, Any]] = {}  # method -> (handler, its replacement)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None:
            return None
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = self.wrap(handler, method)
            self._wrapped[method] = (handler, wrapped)
        return wrapped

    @abstractmethod
    def wrap(self, handler: Any, method: str) -> Any:
        """Return what takes the place of `handler`. method: /package.Service/Method."""


class MalformedRequest:
    """Stands for a request whose bytes are not a message of its type."""

    def __init__(self, error_name: str) -> None:
        self.error_name = error_name


class RefusedRequest:
    """Stands for a request that was refused before its method."""

    def __init__(self, error: ModelsatError) -> None:
        self.error = error


class StatusInterceptor(HandlerWrapper):
    """Turn every exception of the project's own methods into a status.

    Malformed requests become INVALID_ARGUMENT, ModelsatErrors their own code, anything else
    INTERNAL without its text. A method may return an encoded message, because encoding a large one
    holds up the event loop. Goes last among the interceptors, next to the method.
    """

    def wrap(self, handler: Any, method: str) -> Any:
        """See HandlerWrapper."""
        if not method.startswith(SERVICE_PREFIXES):
            return handler

        check: Any = _checked_stream if handler.request_streaming else _checked

        @asynccontextmanager
        async def around(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                yield check(request, method)
            except Exception as error:  # noqa: BLE001 - no request may end the server
                await _abort(context, method, error)

        serialize = handler.response_serializer
        return with_behavior(
            handler,
            surround(behavior_of(handler), around),
            _tolerant(handler.request_deserializer),
            lambda answer: answer if isinstance(answer, bytes) else serialize(answer),
        )


def _tolerant(parse: Callable[[bytes], Message]) -> Callable[[bytes], Message | MalformedRequest]:
    """Let the method's wrapper answer for a malformed request: gRPC would end it with INTERNAL."""

    def deserialize(raw: bytes) -> Message | MalformedRequest:
        try:
            return parse(raw)
        except (DecodeError, UnicodeDecodeError, ValueError) as error:
            return MalformedRequest(type(error).__name__)

    return deserialize


async def _checked_stream(
    requests: AsyncIterator[Message | MalformedRequest], method: str
) -> AsyncGenerator[Message, None]:
    async for request in requests:
        yield _checked(request, method)


def _checked(request: Message | MalformedRequest | RefusedRequest, method: str) -> Message:
    if isinstance(request, RefusedRequest):
        raise request.error
    if isinstance(request, MalformedRequest):
        raise InvalidInputError(
            Violation(
                "request",
                f"cannot be parsed ({request.error_name}): its bytes are not a valid message of"
                f" {method}, or a string in it is not UTF-8. Send text as UTF-8.",
            )
        )
    return request


async def _abort(context: Any, method: str, error: Exception) -> NoReturn:
    """End a call with the status of `error`."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    status = failure_status(error, method)
    rich = rpc_status.to_status(status)
    await context.abort(rich.code, rich.details, (*rich.trailing_metadata, *pushback(status)))
    raise AssertionError("abort() raises")


class TelemetryInterceptor(HandlerWrapper):
    """Measure every call, and put its trace into the context. Goes first among the interceptors, so
    that it sees the status that the others end a call with."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self._telemetry = telemetry

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await super().intercept_service(continuation, handler_call_details)
        if handler is None:
            call = self._telemetry.begin(UNKNOWN_METHOD, {})
            self._telemetry.answered(call, CODE_NAMES[UNIMPLEMENTED], UNIMPLEMENTED)
        return handler

    def wrap(self, handler: Any, method: str) -> Any:
        """See HandlerWrapper."""
        name = method.removeprefix("/")

        @asynccontextmanager
        async def around(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self._telemetry.begin(name, dict(context.invocation_metadata() or ()))
            code = UNKNOWN
            try:
                yield request
                code = _code(context, OK)
            except (asyncio.CancelledError, GeneratorExit):
                left = context.time_remaining()
                code = CANCELLED if left is None or left > TIMER_ERROR_S else DEADLINE_EXCEEDED
                raise
            except BaseException:
                code = _code(context, UNKNOWN)
                raise
            finally:
                self._telemetry.answered(call, CODE_NAMES[code], code)

        return with_behavior(handler, surround(behavior_of(handler), around))


def _code(context: Any, default: int) -> int:
    """Return the code that the method set or aborted with, a number or a grpc.StatusCode."""
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return number if number in CODE_NAMES and number != OK else default
