"""Envoy's ExternalProcessor, v3: one stream for an HTTP request.

Only the request side is of interest, so the stream is ended (with OK) once that is answered: Envoy
then goes on by itself, responses never come here, and a server that stops cuts none of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from engine.api.errors import InvalidInputError, Violation
from engine.pb import external_processor_pb2 as pb
from engine.pb import external_processor_pb2_grpc
from engine.pb.external_processor_pb2 import HeaderValue, HeaderValueOption
from engine.pb.external_processor_pb2 import ProcessingResponse as Response
from engine.serving.extproc.gateway import (
    Answer,
    Gateway,
    HttpError,
    HttpRequest,
    error_of,
)
from engine.serving.extproc.overrides import NAMESPACE, WISHES
from engine.serving.telemetry import Telemetry
from engine.serving.telemetry.logs import FewLines

NAME = pb.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
METHOD = f"{NAME}/Process"
ROUTED, PASSED = "routed", "passed"
NONE, BUFFERED, DUPLEX = pb.NONE, pb.BUFFERED, pb.FULL_DUPLEX_STREAMED
misconfigured = FewLines(logging.getLogger(__name__), logging.ERROR, "requests met the same")


class ExternalProcessor(external_processor_pb2_grpc.ExternalProcessorServicer):
    """body_timeout_s: in which the body must come where Envoy keeps no time itself."""

    def __init__(self, gateway: Gateway, telemetry: Telemetry, body_timeout_s: float) -> None:
        self._gateway = gateway
        self._telemetry = telemetry
        self._body_timeout_s = body_timeout_s

    async def Process(  # noqa: N802 - named by the proto
        self, requests: AsyncIterator[pb.ProcessingRequest], context: Any
    ) -> AsyncIterator[Response]:
        """Answer one HTTP request."""
        exchange = Exchange(
            self._gateway, self._telemetry, dict(context.invocation_metadata() or ())
        )
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
                async with asyncio.timeout_at(deadline if exchange.collecting else None):
                    message = await anext(requests, None)
            except TimeoutError:
                why = f"The body did not come within {self._body_timeout_s:g} s."
                yield exchange.refuse(HttpError(408, "body_timeout", why))
                return
            if message is None:
                return
            for response in await exchange.answer(message):
                yield response
            if deadline is None and exchange.collecting:
                deadline = asyncio.get_running_loop().time() + self._body_timeout_s


class Exchange:
    """What was said about one HTTP request. done: nothing more is to be said. Must be closed."""

    def __init__(self, gateway: Gateway, telemetry: Telemetry, metadata: Mapping[str, Any]) -> None:
        self._gateway = gateway
        self._telemetry = telemetry
        self._metadata = metadata
        self._request: HttpRequest | None = None
        self._request_mode, self._response_mode = BUFFERED, NONE
        self._observing = False
        self._chunks: list[bytes] = []
        self._size = 0
        self.collecting = False  # chunks of a body in DUPLEX, the headers unanswered
        self.outcome = ""  # ROUTED, PASSED, or the code of an error
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
                    return list(streamed("response_body", body.body, body.end_of_stream))
                case str():
                    return [EMPTY[kind]]
        except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
            return [self.refuse(error)]
        raise InvalidInputError(Violation("request", "holds nothing that this version knows."))

    def _on_headers(self, message: pb.ProcessingRequest) -> list[Response]:
        if self._request is not None:
            raise HttpError(500, "protocol_error", "ext_proc: request headers came twice.")
        self._request = request = http_request(message)
        mode = self._request_mode
        if message.request_headers.end_of_stream or mode == NONE:
            return self._finish([self._pass()])
        if mode not in (BUFFERED, DUPLEX):
            known = {number: name for name, number in pb.BodySendMode.items()}
            word = known.get(mode, str(mode))
            why = (
                f"ext_proc: request_body_mode is {word}, in which the model can no longer change;"
                " set BUFFERED or FULL_DUPLEX_STREAMED in Envoy's processing_mode."
            )
            misconfigured.add("%s", why)
            raise HttpError(500, "unsupported_body_mode", why)
        length = request.headers.get("content-length", "")
        if not self._gateway.check_readable(request, int(length[:20]) if length.isdecimal() else 0):
            return [self._pass()] if mode == DUPLEX else self._finish([self._pass()])
        if mode == BUFFERED:
            return [self._headers_reply(Answer())]  # what is forged goes, whatever comes next
        self.collecting = True
        return []

    async def _on_body(self, body: pb.HttpBody) -> list[Response]:
        if self._request is None:
            why = "ext_proc: a body came without headers; set request_header_mode SEND in Envoy."
            misconfigured.add("%s", why)
            raise HttpError(500, "protocol_error", why)
        ends = body.end_of_stream
        if self._request_mode == DUPLEX and not self.collecting:
            self.done = ends
            return list(streamed("request_body", body.body, ends))
        readable = self._gateway.check_readable(self._request, self._size + len(body.body))
        if self._request_mode != DUPLEX:
            if not readable:
                self.outcome = PASSED
                return self._finish([self._body_reply(Answer())])
            self._hold(len(body.body))
            return self._finish([self._body_reply(await self._answer(body.body))])
        self._chunks.append(body.body)
        if not readable:
            return self._pass_chunks(ends)
        self._hold(len(body.body))
        return self._finish(await self._duplex(True)) if ends else []

    def _hold(self, size: int) -> None:
        self._gateway.hold(size)
        self._size += size

    def _pass_chunks(self, ends: bool) -> list[Response]:
        """From here on, everything as it comes."""
        self.collecting, self.done = False, ends
        raw = b"".join(self._chunks)
        self._chunks.clear()
        self._release()
        return [self._pass(), *streamed("request_body", raw, ends)]

    def refuse(self, error: Exception) -> Response:
        """The last answer."""
        self.done = True
        status, headers, self.outcome, body = error_of(error, METHOD)
        return immediate(status, headers, body)

    def close(self) -> None:
        """Let go of the body, and count the answer if there was one."""
        self._release()
        if self.outcome:
            self._telemetry.extproc_answered(self.outcome)

    def _release(self) -> None:
        self._gateway.release(self._size)
        self._size = 0

    async def _on_trailers(self) -> list[Response]:
        collected = await self._duplex(False) if self.collecting else []
        return self._finish([*collected, EMPTY["request_trailers"]])

    async def _duplex(self, ends: bool) -> list[Response]:
        """Headers and the whole body; ends: no trailers follow."""
        raw, chunked = b"".join(self._chunks), bool(self._chunks)
        self._chunks.clear()
        answer = await self._answer(raw)
        body = raw if answer.body is None else answer.body
        pieces = streamed("request_body", body, ends) if chunked else ()
        return [self._headers_reply(answer, len(body)), *pieces]

    async def _answer(self, raw: bytes) -> Answer:
        assert self._request is not None
        # Envoy's own span, where it traces; else what the client sent.
        ours = "traceparent" in self._metadata
        headers = self._metadata if ours else self._request.headers
        with self._telemetry.traced(METHOD, headers):
            answer = await self._gateway.answer(self._request, raw)
        self.outcome = ROUTED if answer.metadata else PASSED
        return answer

    def _pass(self) -> Response:
        self.outcome = PASSED
        return self._headers_reply(Answer())

    def _headers_reply(self, answer: Answer, size: int = 0) -> Response:
        common = self._common(answer, size)
        return Response(
            request_headers=pb.HeadersResponse(response=common),
            dynamic_metadata=metadata(answer),
        )

    def _body_reply(self, answer: Answer) -> Response:
        common = self._common(answer, len(answer.body or b""))
        if answer.body is not None:
            common.body_mutation.body = answer.body
        return Response(
            request_body=pb.BodyResponse(response=common), dynamic_metadata=metadata(answer)
        )

    def _common(self, answer: Answer, size: int) -> pb.CommonResponse:
        headers = dict(answer.headers)
        if answer.body is not None and self._request and "content-length" in self._request.headers:
            headers["content-length"] = str(size)
        forged = [h for h in self._gateway.options.own_headers if h not in headers]
        mutation = pb.HeaderMutation(set_headers=options(headers), remove_headers=forged)
        return pb.CommonResponse(header_mutation=mutation, clear_route_cache=True)

    def _finish(self, responses: list[Response]) -> list[Response]:
        self.done = True
        return responses


CHUNK_BYTES = 62_000  # Envoy takes no more at once in FULL_DUPLEX_STREAMED
OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
EMPTY: Mapping[str, Response] = {
    "request_headers": Response(request_headers=pb.HeadersResponse()),
    "request_trailers": Response(request_trailers=pb.TrailersResponse()),
    "response_headers": Response(response_headers=pb.HeadersResponse()),
    "response_body": Response(response_body=pb.BodyResponse()),
    "response_trailers": Response(response_trailers=pb.TrailersResponse()),
}


def http_request(message: pb.ProcessingRequest) -> HttpRequest:
    """Of the first message."""
    headers: dict[str, str] = {}
    for each in message.request_headers.headers.headers:
        value = each.raw_value.decode("latin-1") or each.value
        key = each.key.lower()
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    known = message.metadata_context.filter_metadata
    given = MessageToDict(known[NAMESPACE]) if NAMESPACE in known else {}
    return HttpRequest(headers, {k: v for k, v in given.items() if k in WISHES})


def options(headers: Mapping[str, str]) -> list[HeaderValueOption]:
    """Each to be set in place of what is there."""
    return [
        HeaderValueOption(
            header=HeaderValue(key=key, raw_value=value.encode()), append_action=OVERWRITE
        )
        for key, value in headers.items()
    ]


def metadata(answer: Answer) -> dict[str, Any] | None:
    """Dynamic metadata, by namespace."""
    return {NAMESPACE: dict(answer.metadata)} if answer.metadata else None


def streamed(kind: str, body: bytes, ends: bool) -> Iterator[Response]:
    """`body` in chunks, at least one."""
    for at in range(0, len(body) or 1, CHUNK_BYTES):
        last = ends and at + CHUNK_BYTES >= len(body)
        response = Response()
        piece = getattr(response, kind).response.body_mutation.streamed_response
        piece.body, piece.end_of_stream = body[at : at + CHUNK_BYTES], last
        yield response


def immediate(status: int, headers: Mapping[str, str], body: bytes) -> Response:
    """An HTTP answer in place of the upstream's."""
    answer = pb.ImmediateResponse(
        status={"code": status},
        headers=pb.HeaderMutation(set_headers=options(headers)),
        body=body,
        details="modelsat",
    )
    return Response(immediate_response=answer)
