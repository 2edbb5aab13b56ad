"""Errors of the client.

    ModelsatError
    |-- InvalidInputError    one of your values is wrong; nothing was sent
    `-- ModelsatClientError  the call failed; `code` is the gRPC status

No other error leaves a client, whatever the server, the network or gRPC does. A value of the wrong
Python type is a mistake of the program and stays a TypeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.client.channel import way_to
from engine.pb import router_service_pb2

STATUS_DETAILS = "grpc-status-details-bin"  # the trailer that holds a google.rpc.Status


class ModelsatClientError(ModelsatError):
    """A call failed. The message is the server's own, and says what to do.

    Attributes:
        code: Name of the gRPC status, such as "NOT_FOUND", "RESOURCE_EXHAUSTED" or "UNAVAILABLE".
        reason: Cause for programs, such as "QUEUE_FULL"; empty if no server answered.
        retry_after_s: Seconds after which the server expects to have room; None if it did not say.
    """

    def __init__(
        self, code: str, message: str, reason: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s


def error_of_result(error: router_service_pb2.RouteError) -> ModelsatClientError:
    """Convert the error of one instruction among several."""
    return ModelsatClientError(code_pb2.Code.Name(error.code), error.message, error.reason)


@contextmanager
def translate_errors(address: str) -> Iterator[None]:
    """Raise every error of gRPC as ModelsatClientError."""
    try:
        yield
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # every RpcError of a channel is one
        code = call.code().name
        message = call.details() or code
        if code == "UNAVAILABLE":
            message = _explain_unavailable(message, address)
        raise ModelsatClientError(code, message, *_error_details(call)) from error
    except (ValueError, grpc.aio.UsageError) as error:  # what gRPC raises for a closed channel
        message = f"The call was not sent: {error} Is the client closed?"
        raise ModelsatClientError("CANCELLED", message) from error


@contextmanager
def translate_value_errors() -> Iterator[None]:
    """Raise protobuf's ValueError as InvalidInputError; its text may quote an instruction."""
    try:
        yield
    except ValueError as error:
        problem = "has text that is not valid UTF-8, or a number that is out of range."
        raise InvalidInputError(Violation("request", problem)) from error


def _explain_unavailable(message: str, address: str) -> str:
    lowered = message.lower()
    if "handshake" in lowered or "socket closed" in lowered:
        return (
            f"TLS with {address} failed; check that both sides use it, that tls_ca signed the"
            f" server's certificate, and tls_cert if the server wants one of clients ({message})"
        )
    if "connect" in lowered:
        return (
            f"Cannot connect to {address} (tried {way_to(address)}); is a server running?"
            " `modelsat serve` starts one."
        )
    return message


def _error_details(call: grpc.Call) -> tuple[str, float | None]:
    """Read (reason, seconds to wait) from the google.rpc.Status in the trailers."""
    status = status_pb2.Status()
    for key, value in call.trailing_metadata() or ():
        if key == STATUS_DETAILS and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:  # from a proxy, say; code and message are enough
                return "", None
    reason, retry_after_s = "", None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return reason, retry_after_s
