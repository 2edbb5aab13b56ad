"""Status of whatever a method raises or receives, for every kind of method that takes a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from engine.pb import candidate_service_pb2 as pb
from engine.serving.rpc.interceptors import StatusInterceptor

CODERS = (
    pb.WatchCandidatesRequest.FromString,
    pb.WatchCandidatesResponse.SerializeToString,
)
BAD_REVISION = 13


async def echo(requests: Any, _: Any) -> AsyncIterator[pb.WatchCandidatesResponse]:
    async for request in requests:
        if request.last_seen_revision == BAD_REVISION:
            raise ZeroDivisionError("secret words")
        yield pb.WatchCandidatesResponse(revision=request.last_seen_revision)


async def last(requests: Any, context: Any) -> pb.WatchCandidatesResponse:
    return [response async for response in echo(requests, context)][-1]


async def test_streams_of_requests_are_guarded_whether_one_or_many_responses_follow() -> None:
    server = grpc.aio.server(interceptors=[StatusInterceptor()])
    methods = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo, *CODERS),
        "Last": grpc.stream_unary_rpc_method_handler(last, *CODERS),
    }
    handler = grpc.method_handlers_generic_handler("modelsat.v1.Test", methods)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    good, raising = (
        pb.WatchCandidatesRequest(last_seen_revision=n).SerializeToString()
        for n in (7, BAD_REVISION)
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        both = channel.stream_stream("/modelsat.v1.Test/Echo")
        one = channel.stream_unary("/modelsat.v1.Test/Last")
        for method in (both, one):
            for final, code, words in (
                (good, grpc.StatusCode.OK, ""),
                (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "cannot be parsed"),
                (raising, grpc.StatusCode.INTERNAL, "ZeroDivisionError"),
            ):
                call = method()
                await call.write(good)
                if method is both:
                    assert pb.WatchCandidatesResponse.FromString(await call.read()).revision == 7
                await call.write(final)
                await call.done_writing()
                if method is both and code == grpc.StatusCode.OK:
                    assert await call.read()
                assert await call.code() == code
                assert words in await call.details()
                assert "secret" not in await call.details()
    await server.stop(0)
