"""Authorize calls by bearer tokens with roles, before a request is read; note who calls.

Health is open to all, because load balancers have no token. Reflection needs any token. A method
that is not listed here needs the role admin.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_status import rpc_status

from engine.api.errors import ModelsatError, PermissionDeniedError, UnauthenticatedError
from engine.api.request_context import PEER, PRINCIPAL, ROLE
from engine.serving.auth.tokens import ROLES, Token, TokenFile
from engine.serving.rpc.interceptors import (
    Continuation,
    HandlerWrapper,
    behavior_of,
    surround,
    with_behavior,
)
from engine.serving.rpc.status import to_status
from engine.serving.telemetry.logs import RateLimitedLogger

OPEN = "/grpc.health.v1.Health/"
ANY_ROLE = "/grpc.reflection."
ROUTER, CANDIDATES = "/modelsat.v1.RouterService/", "/modelsat.v1.CandidateService/"
ADAPTATION = "/modelsat.v1.AdaptationService/"
EVERYONE = frozenset(ROLES)
ADMIN = frozenset({"admin"})
ROUTING, READING = ADMIN | {"route"}, ADMIN | {"read"}
EXTPROC = "/envoy.service.ext_proc.v3.ExternalProcessor/"
NEEDED: Mapping[str, frozenset[str]] = {
    EXTPROC + "Process": ROUTING,
    "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs": ROUTING | {"outcomes"},
    ROUTER + "Route": ROUTING,
    ROUTER + "BatchRoute": ROUTING,
    ROUTER + "StreamRoute": ROUTING,
    ROUTER + "RecordOutcome": ROUTING | {"outcomes"},
    ROUTER + "RecordComparison": ROUTING | {"outcomes"},
    ROUTER + "GetServerInfo": EVERYONE,
    ADAPTATION + "GetAdaptation": ROUTING | READING,
    ADAPTATION + "ListAdaptations": ROUTING | READING,
    ADAPTATION + "ExplainDecision": ROUTING | READING,
    ADAPTATION + "FreezeAdaptation": ADMIN,
    ADAPTATION + "UnfreezeAdaptation": ADMIN,
    ADAPTATION + "RollbackAdaptation": ADMIN,
    ADAPTATION + "ResetAdaptation": ADMIN,
    CANDIDATES + "GetCandidate": READING,
    CANDIDATES + "ListCandidates": READING,
    CANDIDATES + "ListRevisions": READING,
    CANDIDATES + "WatchCandidates": READING,
    CANDIDATES + "CreateCandidate": ADMIN,
    CANDIDATES + "UpdateCandidate": ADMIN,
    CANDIDATES + "DeleteCandidate": ADMIN,
    CANDIDATES + "BatchReplaceCandidates": ADMIN,
    CANDIDATES + "RollbackRevision": ADMIN,
}
SCHEME = "bearer "
REVOKED = "The token was revoked, or has another role now; the stream is closed."
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Grant:
    """What let a call in: its token, and the roles that may call the method."""

    token: Token
    needed: frozenset[str]


@dataclass
class _Stream:
    """A call that may outlive its token. revoked: whether it was ended for that."""

    grant: _Grant
    revoked: bool = False


_GRANT: ContextVar[_Grant | None] = ContextVar("grant", default=None)


class AccessInterceptor(HandlerWrapper):
    """Refuse calls with UNAUTHENTICATED or PERMISSION_DENIED; a refused request is never read.

    Sets PRINCIPAL and ROLE for every call with a token that it lets in; note_caller adds what only
    the call's context knows. Ends the streams of revoked tokens (end_revoked).
    """

    def __init__(self, tokens: TokenFile | None, *, client_certificates: bool) -> None:
        """Set up for one server.

        tokens: None lets every call in. client_certificates: whether clients must present one, so
        that its subject is the principal of a call without a token.
        """
        super().__init__()
        self._tokens = tokens
        self._client_certificates = client_certificates
        self._streams: dict[asyncio.Task[Any], _Stream] = {}  # open, of callers with a token
        self._log = RefusalLog()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await super().intercept_service(continuation, handler_call_details)
        method = handler_call_details.method
        if handler is None or self._tokens is None or method.startswith(OPEN):
            return handler
        text = bearer_token(handler_call_details.invocation_metadata)
        token = None if text is None else self._tokens.find(text)
        needed = EVERYONE if method.startswith(ANY_ROLE) else NEEDED.get(method, ADMIN)
        error = access_error(method, needed, text, token)
        if error is not None:
            return self._refuse_with(method, error, token)
        if token is not None:
            PRINCIPAL.set(token.name)
            ROLE.set(token.role)
            _GRANT.set(_Grant(token, needed))
        return handler

    def wrap(self, handler: Any, method: str) -> Any:
        """See HandlerWrapper."""
        if not (handler.request_streaming or handler.response_streaming):
            return handler
        return with_behavior(handler, surround(behavior_of(handler), self._until_revoked))

    def end_revoked(self) -> None:
        """End the streams whose token is no longer valid, or no longer has the role."""
        if self._tokens is None:
            return
        for task, stream in tuple(self._streams.items()):
            if not self._tokens.allows(stream.grant.token, stream.grant.needed):
                stream.revoked = True
                task.cancel()

    @asynccontextmanager
    async def _until_revoked(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """End the call with UNAUTHENTICATED if its token is revoked meanwhile."""
        grant, task = _GRANT.get(), asyncio.current_task()
        if grant is None or task is None:
            yield request
            return
        self._streams[task] = stream = _Stream(grant)
        try:
            yield request
        except asyncio.CancelledError:
            if not stream.revoked:
                raise
            task.uncancel()
            status = rpc_status.to_status(to_status(UnauthenticatedError(REVOKED)))
            await context.abort(status.code, status.details, status.trailing_metadata)
        finally:
            del self._streams[task]

    def note_caller(self, context: Any) -> None:
        """Set PEER, and PRINCIPAL for a call without a token; before the call's first wait."""
        PEER.set(context.peer())
        if self._client_certificates and not PRINCIPAL.get():
            PRINCIPAL.set(subject_of(context.auth_context()))

    def _refuse_with(self, method: str, error: ModelsatError, token: Token | None) -> Any:
        async def refuse(_: Any, context: Any) -> None:
            self._log.add(method, context.peer(), token)
            status = rpc_status.to_status(to_status(error))
            await context.abort(status.code, status.details, status.trailing_metadata)

        # As a stream for any method: gRPC would receive a single request first.
        return grpc.stream_stream_rpc_method_handler(refuse)


def subject_of(properties: Mapping[str, Iterable[bytes]]) -> str:
    """Return the subject of a client's certificate, "" if it presented none.

    properties: of a call, by ServicerContext.auth_context().
    """
    for name in ("x509_subject", "x509_common_name"):
        for value in properties.get(name, ()):
            return value.decode(errors="replace")
    return ""


def bearer_token(metadata: Iterable[tuple[str, Any]] | None) -> str | None:
    """Return the token of `authorization: Bearer TOKEN`, None unless there is exactly one."""
    values = [value for key, value in metadata or () if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        return None
    scheme, text = values[0][: len(SCHEME)], values[0][len(SCHEME) :].strip()
    return text if scheme.lower() == SCHEME and text else None


def access_error(
    method: str, needed: frozenset[str], text: str | None, token: Token | None
) -> ModelsatError | None:
    """Return why a call is refused, None if it is allowed.

    Args:
        method: for the message.
        needed: roles that may call it.
        text: what the caller sent as its token, None for nothing.
        token: the known token with that text, None if there is none.
    """
    if text is None:
        return UnauthenticatedError(
            "The call has no token; send the metadata `authorization: Bearer TOKEN` once."
        )
    if token is None:
        return UnauthenticatedError(
            "The token is not known to this server; `modelsat token` creates one and its entry for"
            " the server's tokens file."
        )
    if token.role in needed:
        return None
    return PermissionDeniedError(token.name, token.role, method, needed)


class RefusalLog:
    """Log refused calls, a few lines a second."""

    def __init__(self) -> None:
        self._lines = RateLimitedLogger(log, logging.WARNING, "calls refused")

    def add(self, method: str, peer: str, token: Token | None) -> None:
        """Log a refusal, never the token."""
        who = (
            "an unknown token or none" if token is None else f"token {token.name!r} ({token.role})"
        )
        self._lines.add("refused %s from %s: %s", method, peer, who)
