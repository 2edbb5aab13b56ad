"""The messages of ext_proc: what is read of them, and those that are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from engine.pb import external_processor_pb2 as pb
from engine.pb.external_processor_pb2 import HeaderValue, HeaderValueOption
from engine.pb.external_processor_pb2 import ProcessingResponse as Response
from engine.serving.gateway import Answer, HttpRequest
from engine.serving.wishes import NAMESPACE, WISHES

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
