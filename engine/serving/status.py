"""Errors on the wire: every failure is a google.rpc.Status with ErrorInfo and what fits beside it.

Never a stack trace, never the text of an instruction.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from engine.contract.candidate import PREFIX
from engine.contract.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineError,
    EtagMismatchError,
    InvalidInputError,
    ModelsatError,
    NoEligibleCandidateError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RevisionNotFoundError,
    StoreError,
    UnauthenticatedError,
    UnavailableError,
    Violation,
    WaitTooLongError,
)
from engine.serving.wrapping import Wrapped

DOMAIN = "modelsat"
_INTERNAL = (code_pb2.INTERNAL, "INTERNAL")
CODES: dict[type[Exception], tuple[int, str]] = {
    InvalidInputError: (code_pb2.INVALID_ARGUMENT, "INVALID_INPUT"),
    NotFoundError: (code_pb2.NOT_FOUND, "NOT_FOUND"),
    RevisionNotFoundError: (code_pb2.NOT_FOUND, "REVISION_NOT_FOUND"),
    AlreadyExistsError: (code_pb2.ALREADY_EXISTS, "ALREADY_EXISTS"),
    EtagMismatchError: (code_pb2.ABORTED, "ETAG_MISMATCH"),
    ConflictError: (code_pb2.ABORTED, "REVISION_CONFLICT"),
    NoEligibleCandidateError: (code_pb2.FAILED_PRECONDITION, "NO_ELIGIBLE_CANDIDATE"),
    OverloadedError: (code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    WaitTooLongError: (code_pb2.RESOURCE_EXHAUSTED, "WAIT_TOO_LONG"),
    DeadlineError: (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    UnavailableError: (code_pb2.UNAVAILABLE, "UNAVAILABLE"),
    StoreError: (code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE"),
    UnauthenticatedError: (code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED"),
    PermissionDeniedError: (code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED"),
}
HTTP_STATUS = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DEADLINE_EXCEEDED: 504,
}  # anything else is 500
# A status travels in trailers that gRPC rejects at random above 8 KB: the message percent-encoded
# (3 bytes for 1), and message and details again in base64 (4 for 3).
MAX_MESSAGE_BYTES = 700
MAX_DETAIL_BYTES = 2500
OURS = ("/modelsat.", "/envoy.service.ext_proc.")
log = logging.getLogger(__name__)


def code_of(error: Exception) -> int:
    """google.rpc.Code of anything that was raised."""
    return int(CODES.get(type(error), _INTERNAL)[0])


def to_status(error: ModelsatError) -> status_pb2.Status:
    """The google.rpc.Status of `error`, cut to what a trailer can carry."""
    code, reason = CODES.get(type(error), _INTERNAL)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    return status_pb2.Status(
        code=code,
        message=_cut(str(error), MAX_MESSAGE_BYTES),
        details=[_packed(info), *(_packed(detail) for detail in _details(error))],
    )


def failure_status(error: Exception, method: str) -> status_pb2.Status:
    """The google.rpc.Status of anything a call of `method` raised; what an operator should see is
    logged. What is not the project's own is INTERNAL, without its text."""
    if isinstance(error, ModelsatError):
        if isinstance(error, UnavailableError | StoreError):
            _log_failure(method, error.__cause__ or error)
        return to_status(error)
    _log_failure(method, error)
    return status_pb2.Status(
        code=code_pb2.INTERNAL,
        message=f"{method} failed inside the server ({type(error).__name__}); see its log.",
        details=[_packed(error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN))],
    )


def reason_of(status: status_pb2.Status) -> str:
    """ErrorInfo.reason of a status that to_status or failure_status made."""
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.reason)


def pushback(status: status_pb2.Status) -> tuple[tuple[str, str], ...]:
    """The trailer by which a gRPC client's own retryPolicy waits as long as RetryInfo says."""
    retry = error_details_pb2.RetryInfo()
    delays = [retry.retry_delay.ToMilliseconds() for d in status.details if d.Unpack(retry)]
    return tuple(("grpc-retry-pushback-ms", str(delay)) for delay in delays)


def _details(error: ModelsatError) -> list[Message]:
    if isinstance(error, InvalidInputError):
        request = error_details_pb2.BadRequest()
        for wrong in error.violations:
            field, description = _cut(wrong.field, 100), _cut(wrong.description, 300)
            _add(request.field_violations, request, field=field, description=description)
        return [request]
    if isinstance(error, NotFoundError | AlreadyExistsError | EtagMismatchError):
        kind = getattr(error, "resource_type", "modelsat.v1.Candidate")
        return [error_details_pb2.ResourceInfo(resource_type=kind, resource_name=error.name)]
    if isinstance(error, RevisionNotFoundError):
        kind = "modelsat.v1.Revision"
        return [error_details_pb2.ResourceInfo(resource_type=kind, resource_name=error.name)]
    if isinstance(error, NoEligibleCandidateError):
        failure = error_details_pb2.PreconditionFailure()
        for name, why in error.reasons.items():
            subject, words = PREFIX + name, _cut(why, 300)
            _add(
                failure.violations, failure, type="ELIGIBILITY", subject=subject, description=words
            )
        return [failure]
    if isinstance(error, OverloadedError | UnavailableError | StoreError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(1000 * getattr(error, "retry_after_s", 1.0)))
        return [retry]
    return []


def _add(entries: Any, whole: Message, **values: str) -> None:
    """Append to a repeated field unless the detail would outgrow its share of the trailer."""
    entry = entries.add(**values)
    if whole.ByteSize() > MAX_DETAIL_BYTES:
        entries.remove(entry)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8."""
    raw = text.encode("utf-8", errors="replace")
    return text if len(raw) <= limit else raw[: limit - 3].decode("utf-8", "ignore") + "..."


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


def _log_failure(method: str, error: BaseException) -> None:
    """The text of an exception may hold what a caller sent; its kind and place do not."""
    log.error("%s failed: %s at %s", method, type(error).__name__, _innermost(error))


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


async def _abort(context: Any, status: status_pb2.Status) -> NoReturn:
    found = rpc_status.to_status(status)
    await context.abort(found.code, found.details, (*found.trailing_metadata, *pushback(status)))
    raise AssertionError("abort() raises")
