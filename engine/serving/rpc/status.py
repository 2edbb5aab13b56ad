"""Errors on the wire: a google.rpc.Status with ErrorInfo and other details for every failure.

It never contains a stack trace or the text of an instruction.
"""

from __future__ import annotations

import logging
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from engine.api.candidate import NAME_PREFIX
from engine.api.errors import (
    AdaptationNotFoundError,
    AlreadyExistsError,
    ConflictError,
    DeadlineError,
    DecisionNotFoundError,
    EtagMismatchError,
    InvalidInputError,
    ModelsatError,
    NoEligibleCandidateError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RevisionLostError,
    RevisionNotFoundError,
    StoreError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
    WaitTooLongError,
)
from engine.api.request_context import ROLE

DOMAIN = "modelsat"
_INTERNAL = (code_pb2.INTERNAL, "INTERNAL")
CODES: dict[type[Exception], tuple[int, str]] = {
    InvalidInputError: (code_pb2.INVALID_ARGUMENT, "INVALID_INPUT"),
    NotFoundError: (code_pb2.NOT_FOUND, "NOT_FOUND"),
    AdaptationNotFoundError: (code_pb2.NOT_FOUND, "ADAPTATION_NOT_FOUND"),
    RevisionNotFoundError: (code_pb2.NOT_FOUND, "REVISION_NOT_FOUND"),
    DecisionNotFoundError: (code_pb2.NOT_FOUND, "DECISION_NOT_FOUND"),
    RevisionLostError: (code_pb2.FAILED_PRECONDITION, "REVISION_LOST"),
    AlreadyExistsError: (code_pb2.ALREADY_EXISTS, "ALREADY_EXISTS"),
    EtagMismatchError: (code_pb2.ABORTED, "ETAG_MISMATCH"),
    ConflictError: (code_pb2.ABORTED, "REVISION_CONFLICT"),
    NoEligibleCandidateError: (code_pb2.FAILED_PRECONDITION, "NO_ELIGIBLE_CANDIDATE"),
    TooManyCallsError: (code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS"),
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
log = logging.getLogger(__name__)


def may_list(role: str) -> bool:
    """Whether a caller may list candidates, and so read about them in errors. role: see ROLE."""
    return role in ("", "read", "admin")


def code_of(error: Exception) -> int:
    """Return the google.rpc.Code of anything that was raised."""
    return int(CODES.get(type(error), _INTERNAL)[0])


def to_status(error: ModelsatError) -> status_pb2.Status:
    """Convert an error to a google.rpc.Status, shortened to what a trailer can carry."""
    code, reason = CODES.get(type(error), _INTERNAL)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    return status_pb2.Status(
        code=code,
        message=_cut(str(error), MAX_MESSAGE_BYTES),
        details=[_packed(info), *(_packed(detail) for detail in _details(error))],
    )


def failure_status(error: Exception, method: str) -> status_pb2.Status:
    """Convert anything that a call of `method` raised to a google.rpc.Status.

    What is not a ModelsatError becomes INTERNAL, without its text. Failures that an operator should
    know of are logged."""
    if isinstance(error, NoEligibleCandidateError) and not may_list(ROLE.get()):
        return to_status(error.for_outsiders())
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
    """Return ErrorInfo.reason of a status from to_status or failure_status."""
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.reason)


def pushback(status: status_pb2.Status) -> tuple[tuple[str, str], ...]:
    """Return the trailer that makes a gRPC client's retryPolicy wait as long as RetryInfo says."""
    retry = error_details_pb2.RetryInfo()
    delays = [retry.retry_delay.ToMilliseconds() for d in status.details if d.Unpack(retry)]
    return tuple(("grpc-retry-pushback-ms", str(delay)) for delay in delays)


def _details(error: ModelsatError) -> list[Message]:
    if isinstance(error, InvalidInputError):
        request = error_details_pb2.BadRequest()
        for wrong in error.violations:
            field, description = _cut(wrong.field, 100), _cut(wrong.description, 300)
            if not _add(request.field_violations, request, field=field, description=description):
                break  # the rest does not fit
        return [request]
    if isinstance(error, NotFoundError | AlreadyExistsError | EtagMismatchError):
        kind = getattr(error, "resource_type", "modelsat.v1.Candidate")
        return [error_details_pb2.ResourceInfo(resource_type=kind, resource_name=error.name)]
    if isinstance(error, RevisionNotFoundError | DecisionNotFoundError | AdaptationNotFoundError):
        kind = "modelsat.v1." + type(error).__name__.removesuffix("NotFoundError")
        return [error_details_pb2.ResourceInfo(resource_type=kind, resource_name=error.name)]
    if isinstance(error, NoEligibleCandidateError):
        failure = error_details_pb2.PreconditionFailure()
        for name, why in error.reasons.items():
            subject, words = NAME_PREFIX + name, _cut(why, 300)
            if not _add(
                failure.violations, failure, type="ELIGIBILITY", subject=subject, description=words
            ):
                break
        return [failure]
    if isinstance(error, OverloadedError | UnavailableError | StoreError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(1000 * getattr(error, "retry_after_s", 1.0)))
        return [retry]
    return []


def _add(entries: Any, whole: Message, **values: str) -> bool:
    """Append to a repeated field; return False instead if the detail would exceed its share of the
    trailer."""
    entry = entries.add(**values)
    fits = whole.ByteSize() <= MAX_DETAIL_BYTES
    if not fits:
        entries.remove(entry)
    return fits


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _cut(text: str, limit: int) -> str:
    """Shorten to at most `limit` bytes of UTF-8."""
    raw = text.encode("utf-8", errors="replace")
    return text if len(raw) <= limit else raw[: limit - 3].decode("utf-8", "ignore") + "..."


def _log_failure(method: str, error: BaseException) -> None:
    """Log type and place of an exception; its text may contain what a caller sent."""
    log.error("%s failed: %s at %s", method, type(error).__name__, _innermost(error))


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
