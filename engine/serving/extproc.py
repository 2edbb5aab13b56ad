"""Envoy's ExternalProcessor, v3: one stream for an HTTP request.

Only the request side is of interest, so the stream is ended (with OK) once that is answered: Envoy
then goes on by itself, responses never come here, and a server that stops cuts none of them.

"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from google.protobuf.json_format import MessageToDict

from engine.contract.errors import InvalidInputError, Violation
from engine.pb import external_processor_pb2 as pb
from engine.pb import external_processor_pb2_grpc
from engine.pb.external_processor_pb2 import HeaderValue, HeaderValueOption
from engine.pb.external_processor_pb2 import ProcessingResponse as Response
from engine.serving.gateway import (
    Answer,
    Gateway,
    HttpError,
    HttpRequest,
    error_of,
)
from engine.serving.wishes import NAMESPACE, WISHES

NAME = pb.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
METHOD = f"{NAME}/Process"
CHUNK_BYTES = 62_000  # Envoy takes no more at once in FULL_DUPLEX_STREAMED
OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
NONE, BUFFERED, DUPLEX = pb.NONE, pb.BUFFERED, pb.FULL_DUPLEX_STREAMED
# (method, headers) -> the span below which decisions of this task go
Traced = Callable[[str, Mapping[str, str]], AbstractContextManager[None]]
EMPTY: Mapping[str, Response] = {
    "request_headers": Response(request_headers=pb.HeadersResponse()),
    "request_trailers": Response(request_trailers=pb.TrailersResponse()),
    "response_headers": Response(response_headers=pb.HeadersResponse()),
    "response_body": Response(response_body=pb.BodyResponse()),
    "response_trailers": Response(response_trailers=pb.TrailersResponse()),
}
log = logging.getLogger(__name__)


class ExternalProcessor(external_processor_pb2_grpc.ExternalProcessorServicer):
    """body_timeout_s: in which the body must come where Envoy keeps no time itself."""

    def __init__(self, gateway: Gateway, traced: Traced, body_timeout_s: float) -> None:
        self._gateway = gateway
        self._traced = traced
        self._body_timeout_s = body_timeout_s

    async def Process(  # noqa: N802 - named by the proto
        self, requests: AsyncIterator[pb.ProcessingRequest], context: Any
    ) -> AsyncIterator[Response]:
        """Answer one HTTP request."""
        exchange = Exchange(self._gateway, self._traced, dict(context.invocation_metadata() or ()))
        try:
            async for response in self._answers(exchange, requests):
                yield response
        finally:
            exchange.close()

    async def _answers(
        self, exchange: Exchange, requests: AsyncIterator[pb.ProcessingRequest]
    ) -> AsyncIterator[Response]:
        deadline = None
        while not exchange.done:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await anext(requests, None)
            except TimeoutError:
                why = f"The body did not come within {self._body_timeout_s:g} s."
                yield _immediate(HttpError(408, "body_timeout", why), self._gateway)
                return
            if message is None:
                return
            for response in await exchange.answer(message):
                yield response
            if deadline is None and exchange.collecting:
                deadline = asyncio.get_running_loop().time() + self._body_timeout_s


class Exchange:
    """What was said about one HTTP request. done: nothing more is to be said. Must be closed."""

    def __init__(self, gateway: Gateway, traced: Traced, metadata: Mapping[str, Any]) -> None:
        self._gateway = gateway
        self._traced = traced
        self._metadata = metadata
        self._request: HttpRequest | None = None
        self._request_mode, self._response_mode = BUFFERED, NONE
        self._observing = False
        self._chunks: list[bytes] = []
        self._size = 0
        self.collecting = False  # chunks of a body in DUPLEX, the headers unanswered
        self.done = False

    async def answer(self, message: pb.ProcessingRequest) -> list[Response]:
        """What to send for it, which may be nothing yet. Raises InvalidInputError where it is no
        message of the protocol."""
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
                    return await self._on_trailers()
                case "response_body" if self._response_mode == DUPLEX:
                    body = message.response_body
                    return list(_streamed("response_body", body.body, body.end_of_stream))
                case str():
                    return [EMPTY[kind]]
        except Exception as error:  # noqa: BLE001 - the stream stays whole whatever fails
            self.done = True
            return [_immediate(error, self._gateway)]
        raise InvalidInputError(Violation("request", "holds nothing that this version knows."))

    def _on_headers(self, message: pb.ProcessingRequest) -> list[Response]:
        if self._request is not None:
            raise HttpError(500, "protocol_error", "ext_proc: request headers came twice.")
        self._request = request = _http_request(message)
        mode = self._request_mode
        if message.request_headers.end_of_stream or mode == NONE:
            return self._finish([self._headers_reply(Answer())])
        if mode not in (BUFFERED, DUPLEX):
            known = {number: name for name, number in pb.BodySendMode.items()}
            word = known.get(mode, str(mode))
            why = (
                f"ext_proc: request_body_mode is {word}, in which the model can no longer change;"
                " set BUFFERED or FULL_DUPLEX_STREAMED in Envoy's processing_mode."
            )
            log.error("%s", why)
            raise HttpError(500, "unsupported_body_mode", why)
        if not self._gateway.check_readable(request):
            reply = [self._headers_reply(Answer())]
            return reply if mode == DUPLEX else self._finish(reply)
        length = request.headers.get("content-length", "")
        if length.isdecimal():
            self._gateway.check_size(int(length[:20]))
        if mode == BUFFERED:
            return [EMPTY["request_headers"]]
        self.collecting = True
        return []

    async def _on_body(self, body: pb.HttpBody) -> list[Response]:
        if self._request is None:
            why = "ext_proc: a body came without headers; set request_header_mode SEND in Envoy."
            log.error("%s", why)
            raise HttpError(500, "protocol_error", why)
        if self._request_mode != DUPLEX:
            self._hold(body.body)
            return self._finish([self._body_reply(await self._answer(body.body))])
        if not self.collecting:
            self.done = body.end_of_stream
            return list(_streamed("request_body", body.body, body.end_of_stream))
        self._hold(body.body)
        self._chunks.append(body.body)
        return self._finish(await self._duplex(True)) if body.end_of_stream else []

    def _hold(self, piece: bytes) -> None:
        self._gateway.check_size(self._size + len(piece))
        self._gateway.hold(len(piece))
        self._size += len(piece)

    def close(self) -> None:
        """Let go of the body."""
        self._gateway.release(self._size)
        self._size = 0

    async def _on_trailers(self) -> list[Response]:
        collected = await self._duplex(False) if self.collecting else []
        return self._finish([*collected, EMPTY["request_trailers"]])

    async def _duplex(self, ends: bool) -> list[Response]:
        """Headers and the whole body; ends: no trailers follow."""
        raw, streamed = b"".join(self._chunks), bool(self._chunks)
        self._chunks.clear()
        answer = await self._answer(raw)
        body = raw if answer.body is None else answer.body
        pieces = _streamed("request_body", body, ends) if streamed else ()
        return [self._headers_reply(answer, len(body)), *pieces]

    async def _answer(self, raw: bytes) -> Answer:
        assert self._request is not None
        # Envoy's own span, where it traces; else what the client sent.
        ours = "traceparent" in self._metadata
        headers = self._metadata if ours else self._request.headers
        with self._traced(METHOD, headers):
            return await self._gateway.answer(self._request, raw)

    def _headers_reply(self, answer: Answer, size: int = 0) -> Response:
        common = self._common(answer, size)
        return Response(
            request_headers=pb.HeadersResponse(response=common),
            dynamic_metadata=_metadata(answer),
        )

    def _body_reply(self, answer: Answer) -> Response:
        common = self._common(answer, len(answer.body or b""))
        if answer.body is not None:
            common.body_mutation.body = answer.body
        return Response(
            request_body=pb.BodyResponse(response=common), dynamic_metadata=_metadata(answer)
        )

    def _common(self, answer: Answer, size: int) -> pb.CommonResponse:
        headers = dict(answer.headers)
        if answer.body is not None and self._request and "content-length" in self._request.headers:
            headers["content-length"] = str(size)
        forged = [h for h in self._gateway.options.own_headers if h not in headers]
        mutation = pb.HeaderMutation(set_headers=_options(headers), remove_headers=forged)
        return pb.CommonResponse(header_mutation=mutation, clear_route_cache=True)

    def _finish(self, responses: list[Response]) -> list[Response]:
        self.done = True
        return responses


def _http_request(message: pb.ProcessingRequest) -> HttpRequest:
    headers: dict[str, str] = {}
    for each in message.request_headers.headers.headers:
        value = each.raw_value.decode("latin-1") or each.value
        key = each.key.lower()
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    known = message.metadata_context.filter_metadata
    given = MessageToDict(known[NAMESPACE]) if NAMESPACE in known else {}
    return HttpRequest(headers, {k: v for k, v in given.items() if k in WISHES})


def _options(headers: Mapping[str, str]) -> list[HeaderValueOption]:
    return [
        HeaderValueOption(
            header=HeaderValue(key=key, raw_value=value.encode()), append_action=OVERWRITE
        )
        for key, value in headers.items()
    ]


def _metadata(answer: Answer) -> dict[str, Any] | None:
    return {NAMESPACE: dict(answer.metadata)} if answer.metadata else None


def _streamed(kind: str, body: bytes, ends: bool) -> Iterator[Response]:
    """`body` in chunks, at least one."""
    for at in range(0, len(body) or 1, CHUNK_BYTES):
        last = ends and at + CHUNK_BYTES >= len(body)
        response = Response()
        piece = getattr(response, kind).response.body_mutation.streamed_response
        piece.body, piece.end_of_stream = body[at : at + CHUNK_BYTES], last
        yield response


def _immediate(error: Exception, gateway: Gateway) -> Response:
    status, headers, body = error_of(error, METHOD)
    mutation = pb.HeaderMutation(set_headers=_options(headers))
    answer = pb.ImmediateResponse(
        status={"code": status}, headers=mutation, body=body, details="modelsat"
    )
    return Response(immediate_response=answer)
