"""Who a call comes from: its token's name, else the subject of its certificate, and its address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest

from engine.api.request_context import PEER, PRINCIPAL, ROLE
from engine.serving.auth.interceptor import AccessInterceptor
from engine.serving.auth.tls import Certificates, TlsFiles
from engine.serving.auth.tokens import TokenFile, new_token
from engine.serving.rpc.arrivals import Arrivals
from engine.serving.rpc.connections import ConnectionWatch
from engine.serving.rpc.fair_slots import FairSlots
from engine.serving.rpc.half_sent import HalfSentMessages
from tests.support.certificates import make

METHOD = "/modelsat.v1.RouterService/"


def _who() -> bytes:
    return f"{PRINCIPAL.get()}|{ROLE.get()}|{PEER.get().partition(':')[0]}".encode()


async def once(_: bytes, __: Any) -> bytes:
    return await asyncio.create_task(later())  # what a request starts sees it too


async def later() -> bytes:
    return _who()


async def many(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield _who()


class Turns(FairSlots):
    """Remembers whose calls took their turn."""

    def __init__(self) -> None:
        super().__init__(1, 1, "calls")
        self.principals: list[str] = []

    def slot(
        self, principal: str, left_s: float | None = None
    ) -> AbstractAsyncContextManager[None]:
        self.principals.append(principal)
        return super().slot(principal, left_s)


@pytest.mark.parametrize("case", ["token", "certificate", "both", "neither"])
async def test_the_principal_is_the_token_else_the_certificate(case: str, tmp_path: Path) -> None:
    text, entry = new_token("route", "gateway-1")
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"tokens": [vars(entry)]}))
    tokens = TokenFile(file) if case in ("token", "both") else None
    with_tls = case in ("certificate", "both")
    access = AccessInterceptor(tokens, client_certificates=with_tls)
    routes = Turns()
    arrivals = Arrivals(ConnectionWatch(), HalfSentMessages(), 1 << 20, access.note_caller, routes)
    server = grpc.aio.server(interceptors=[arrivals, access])
    methods = {
        "Route": grpc.unary_unary_rpc_method_handler(once),
        "StreamRoute": grpc.stream_stream_rpc_method_handler(many),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("modelsat.v1.RouterService", methods),)
    )
    if with_tls:
        authority = make(tmp_path, "authority")
        ours, client = make(tmp_path, "server", authority), make(tmp_path, "client", authority)
        files = TlsFiles(ours.cert, ours.key, authority.cert)
        port = server.add_secure_port("127.0.0.1:0", Certificates(files).credentials())
        pem = (p.read_bytes() for p in (authority.cert, client.key, client.cert))
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*pem))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    await server.start()
    metadata = (("authorization", f"Bearer {text}"),) if tokens else ()
    expected = {
        "token": b"gateway-1|route|ipv4",
        "both": b"gateway-1|route|ipv4",
        "certificate": b"CN=client||ipv4",
        "neither": b"||ipv4",
    }[case]
    async with channel:
        assert await channel.unary_unary(METHOD + "Route")(b"", metadata=metadata) == expected
        stream = channel.stream_stream(METHOD + "StreamRoute")(metadata=metadata)
        await stream.write(b"x")
        await stream.done_writing()
        assert await stream.read() == expected
    assert routes.principals == [p for p in [expected.decode().partition("|")[0]] if p]
    await server.stop(0)
