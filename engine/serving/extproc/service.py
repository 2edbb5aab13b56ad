"""Envoy's ExternalProcessor, v3: one stream for each HTTP request.

Only the request side matters, so the stream is ended with OK once that is answered. Envoy then
continues by itself: responses never come here, and a server that shuts down interrupts none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from engine.api.errors import InvalidInputError, Violation
from engine.api.overrides import ADDED_METADATA, NAMESPACE
from engine.pb import external_processor_pb2 as pb
from engine.pb import external_processor_pb2_grpc
from engine.pb.external_processor_pb2 import HeaderValue, HeaderValueOption
from engine.pb.external_processor_pb2 import ProcessingResponse as Response
from engine.serving.extproc.gateway import (
    Gateway,
    HttpChanges,
    HttpError,
    HttpRequest,
    Reservation,
    error_response,
)
from engine.serving.telemetry import Telemetry
from engine.serving.telemetry.logs import RateLimitedLogger

NAME = pb.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
METHOD = f"{NAME}/Process"
ROUTED, PASSED_THROUGH = "routed", "passed"
NONE, BUFFERED, DUPLEX = pb.NONE, pb.BUFFERED, pb.FULL_DUPLEX_STREAMED
BODY_TIMEOUT_S = 60.0
MAX_HEADERS = 2000  # of one HTTP request; Envoy allows 100 unless configured
MAX_OVERRIDE_BYTES = 128 * 1024  # of the metadata that is read; 1,000 names are 80,000
# An end of the stream alone may reach Envoy after more of the body than its buffer holds, which it
# would answer with 413.
NOTHING_MORE = pb.ProcessingMode(
    request_body_mode=pb.NONE,
    response_header_mode=pb.SKIP,
    response_body_mode=pb.NONE,
    request_trailer_mode=pb.SKIP,
    response_trailer_mode=pb.SKIP,
)
CHUNK_BYTES = 62_000  # Envoy accepts no more at once in FULL_DUPLEX_STREAMED
OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
EMPTY: Mapping[str, Response] = {
    "request_headers": Response(request_headers=pb.HeadersResponse()),
    "request_trailers": Response(request_trailers=pb.TrailersResponse()),
    "response_headers": Response(response_headers=pb.HeadersResponse()),
    "response_body": Response(response_body=pb.BodyResponse()),
    "response_trailers": Response(response_trailers=pb.TrailersResponse()),
}
configuration_errors = RateLimitedLogger(
    logging.getLogger(__name__), logging.ERROR, "requests met the same configuration error"
)


class ExternalProcessor(external_processor_pb2_grpc.ExternalProcessorServicer):
    """body_timeout_s: for a body to arrive in FULL_DUPLEX_STREAMED, where Envoy has no time-out."""

    def __init__(
        self, gateway: Gateway, telemetry: Telemetry, body_timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        self._gateway = gateway
        self._telemetry = telemetry
        self._body_timeout_s = body_timeout_s

    async def Process(  # noqa: N802 - named by the proto
        self, requests: AsyncIterator[pb.ProcessingRequest], context: Any
    ) -> AsyncIterator[Response]:
        """Answer one HTTP request."""
        deadline = None
        with self._gateway.memory.reservation() as memory:
            stream = ExtProcStream(
                self._gateway, self._telemetry, memory, dict(context.invocation_metadata() or ())
            )
            try:
                while not stream.done:
                    try:
                        async with asyncio.timeout_at(deadline if stream.collecting else None):
                            message = await anext(requests, None)
                    except TimeoutError:
                        text = f"The body did not arrive within {self._body_timeout_s:g} s."
                        yield stream.refuse(HttpError(408, "body_timeout", text))
                        return
                    if message is None:
                        return
                    for response in await stream.answer(message):
                        yield response
                    if deadline is None and stream.collecting:
                        deadline = asyncio.get_running_loop().time() + self._body_timeout_s
            finally:
                if stream.outcome:
                    self._telemetry.extproc_answered(stream.outcome)


class ExtProcStream:
    """State of the stream of one HTTP request.

    collecting: whether chunks of a body arrive before the headers are answered (DUPLEX). outcome:
    ROUTED, PASSED_THROUGH or the code of an error; "" before the request is answered. done: whether
    nothing more is to be sent.
    """

    def __init__(
        self,
        gateway: Gateway,
        telemetry: Telemetry,
        memory: Reservation,
        metadata: Mapping[str, Any],
    ) -> None:
        self._gateway = gateway
        self._telemetry = telemetry
        self._memory = memory
        self._metadata = metadata
        self._request: HttpRequest | None = None
        self._request_mode, self._response_mode = BUFFERED, NONE
        self._observing = False
        self._chunks: list[bytes] = []
        self.collecting = False
        self.outcome = ""
        self.done = False

    async def answer(self, message: pb.ProcessingRequest) -> list[Response]:
        """Return the responses to one message, which may be none yet.

        Raises:
            InvalidInputError: it is not a message of this version of the protocol.
        """
        if message.HasField("protocol_config"):
            self._request_mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode
        self._observing = self._observing or message.observability_mode
        kind = message.WhichOneof("request")
        if self._observing and kind is not None:
            return []
        try:
            match kind:
                case "request_headers":
                    return self._on_headers(message)
                case "request_body":
                    return await self._on_body(message.request_body)
                case "request_trailers":
                    responses = await self._route_chunks(False) if self.collecting else []
                    self.done = True
                    return [*responses, EMPTY["request_trailers"]]
                case "response_body" if self._response_mode == DUPLEX:
                    body = message.response_body
                    return list(streamed("response_body", body.body, body.end_of_stream))
                case str():
                    return [EMPTY[kind]]
        except Exception as error:  # noqa: BLE001 - no request may end the server
            return [self.refuse(error)]
        raise InvalidInputError(
            Violation("request", "is not of a kind that this version supports.")
        )

    def _on_headers(self, message: pb.ProcessingRequest) -> list[Response]:
        if self._request is not None:
            raise HttpError(500, "protocol_error", "ext_proc: request headers came twice.")
        self._request = request = http_request(message)
        mode = self._request_mode
        if message.request_headers.end_of_stream or mode == NONE:
            self.done = True
            return [self._pass_through()]
        if mode not in (BUFFERED, DUPLEX):
            names = {number: name for name, number in pb.BodySendMode.items()}
            text = (
                f"ext_proc: request_body_mode is {names.get(mode, str(mode))}, in which the model"
                " cannot be changed; set BUFFERED or FULL_DUPLEX_STREAMED in Envoy's"
                " processing_mode."
            )
            configuration_errors.add("%s", text)
            raise HttpError(500, "unsupported_body_mode", text)
        length = request.headers.get("content-length", "")
        if not self._gateway.should_parse(request, int(length[:20]) if length.isdecimal() else 0):
            passed = self._pass_through()
            if mode == BUFFERED:
                self.done = True
                passed.mode_override.CopyFrom(NOTHING_MORE)
            return [passed]
        if mode == BUFFERED:
            # Whatever comes next, headers that the client spoofed are removed here.
            return [self._headers_reply(HttpChanges())]
        self.collecting = True
        return []

    async def _on_body(self, body: pb.HttpBody) -> list[Response]:
        if self._request is None:
            text = "ext_proc: a body came without headers; set request_header_mode SEND in Envoy."
            configuration_errors.add("%s", text)
            raise HttpError(500, "protocol_error", text)
        size, ends = len(body.body), body.end_of_stream
        if self._request_mode == DUPLEX and not self.collecting:
            self.done = ends
            return list(streamed("request_body", body.body, ends))
        parse = self._gateway.should_parse(self._request, self._memory.size + size)
        if self._request_mode != DUPLEX:
            self.done = True
            if not parse:
                self.outcome = PASSED_THROUGH
                return [self._body_reply(HttpChanges())]
            self._memory.reserve(size)
            return [self._body_reply(await self._route(body.body))]
        self._chunks.append(body.body)
        if not parse:
            return self._pass_chunks(ends)
        self._memory.reserve(size)
        if not ends:
            return []
        self.done = True
        return await self._route_chunks(True)

    def _pass_chunks(self, ends: bool) -> list[Response]:
        """Stop collecting: everything passes as it comes."""
        self.collecting, self.done = False, ends
        raw = b"".join(self._chunks)
        self._chunks.clear()
        self._memory.release()
        return [self._pass_through(), *streamed("request_body", raw, ends)]

    def refuse(self, error: Exception) -> Response:
        """Return the last response: an HTTP error in place of the upstream's answer."""
        self.done = True
        status, headers, self.outcome, body = error_response(error, METHOD)
        response = pb.ImmediateResponse(
            status={"code": status},
            headers=pb.HeaderMutation(set_headers=header_options(headers)),
            body=body,
            details="modelsat",
        )
        return Response(immediate_response=response)

    async def _route_chunks(self, ends: bool) -> list[Response]:
        """Answer headers and collected body. ends: whether no trailers follow."""
        raw, chunked = b"".join(self._chunks), bool(self._chunks)
        self._chunks.clear()
        changes = await self._route(raw)
        body = raw if changes.body is None else changes.body
        pieces = streamed("request_body", body, ends) if chunked else ()
        return [self._headers_reply(changes, len(body)), *pieces]

    async def _route(self, raw: bytes) -> HttpChanges:
        assert self._request is not None
        # Envoy's own span if it traces, else what the client sent.
        envoy_traces = "traceparent" in self._metadata
        headers = self._metadata if envoy_traces else self._request.headers
        with self._telemetry.traced(METHOD, headers):
            changes = await self._gateway.route(self._request, raw)
        self.outcome = ROUTED if changes.metadata else PASSED_THROUGH
        return changes

    def _pass_through(self) -> Response:
        self.outcome = PASSED_THROUGH
        return self._headers_reply(HttpChanges())

    def _headers_reply(self, changes: HttpChanges, size: int = 0) -> Response:
        return Response(
            request_headers=pb.HeadersResponse(response=self._common(changes, size)),
            dynamic_metadata=dynamic_metadata(changes),
        )

    def _body_reply(self, changes: HttpChanges) -> Response:
        common = self._common(changes, len(changes.body or b""))
        if changes.body is not None:
            common.body_mutation.body = changes.body
        return Response(
            request_body=pb.BodyResponse(response=common),
            dynamic_metadata=dynamic_metadata(changes),
        )

    def _common(self, changes: HttpChanges, size: int) -> pb.CommonResponse:
        headers = dict(changes.headers)
        if changes.body is not None and self._request and "content-length" in self._request.headers:
            headers["content-length"] = str(size)
        mutation = pb.HeaderMutation(set_headers=header_options(headers))
        for name in self._gateway.options.set_headers:
            if name not in headers:  # a client may have spoofed it
                mutation.remove_headers.append(name)
        return pb.CommonResponse(header_mutation=mutation, clear_route_cache=True)


def http_request(message: pb.ProcessingRequest) -> HttpRequest:
    """Read the first message of a stream."""
    headers: dict[str, str] = {}
    if (count := len(message.request_headers.headers.headers)) > MAX_HEADERS:
        problem = f"has {count} headers; at most {MAX_HEADERS}."
        raise InvalidInputError(Violation("request_headers", problem))
    for each in message.request_headers.headers.headers:
        value = each.raw_value.decode("latin-1") or each.value
        key = each.key.lower()
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    namespaces = message.metadata_context.filter_metadata
    if NAMESPACE not in namespaces:
        return HttpRequest(headers)
    given = namespaces[NAMESPACE].fields
    known = {name: value for name, value in given.items() if name not in ADDED_METADATA}
    if (size := sum(value.ByteSize() for value in known.values())) > MAX_OVERRIDE_BYTES:
        problem = f"is {size} bytes; at most {MAX_OVERRIDE_BYTES}."
        raise InvalidInputError(Violation(f"metadata {NAMESPACE}", problem))
    return HttpRequest(headers, MessageToDict(Struct(fields=known)))


def header_options(headers: Mapping[str, str]) -> list[HeaderValueOption]:
    """Set each header in place of what the request has."""
    options = []
    for key, value in headers.items():
        header = HeaderValue(key=key, raw_value=value.encode())
        options.append(HeaderValueOption(header=header, append_action=OVERWRITE))
    return options


def dynamic_metadata(changes: HttpChanges) -> dict[str, Any] | None:
    """Return Envoy's dynamic metadata: namespace -> values."""
    return {NAMESPACE: dict(changes.metadata)} if changes.metadata else None


def streamed(kind: str, body: bytes, ends: bool) -> Iterator[Response]:
    """Yield `body` in chunks, at least one. ends: whether the last one ends the stream."""
    for at in range(0, len(body) or 1, CHUNK_BYTES):
        response = Response()
        piece = getattr(response, kind).response.body_mutation.streamed_response
        piece.body = body[at : at + CHUNK_BYTES]
        piece.end_of_stream = ends and at + CHUNK_BYTES >= len(body)
        yield response
