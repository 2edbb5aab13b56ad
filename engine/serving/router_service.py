"""RouterService: from proto to Router and back."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.router import Router
from engine.serving.convert import instruction_from, policy_from, response_from

Info = Callable[[], pb.GetServerInfoResponse]


class RouterService(router_service_pb2_grpc.RouterServiceServicer):
    """See proto/modelsat/v1/router_service.proto; errors are mapped by StatusInterceptor."""

    def __init__(self, router: Router, info: Info, max_text_bytes: int) -> None:
        self._router = router
        self._max_text_bytes = max_text_bytes
        self._info = info

    async def Route(
        self,
        request: pb.RouteRequest,
        context: grpc.aio.ServicerContext[pb.RouteRequest, pb.RouteResponse],
    ) -> pb.RouteResponse:
        """Choose a candidate."""
        left = context.time_remaining()
        deadline = float("inf") if left is None else time.monotonic() + left
        text, context_chars = instruction_from(request, self._max_text_bytes)
        decision = await self._router.route(
            text,
            policy_from(request.policy),
            context_chars=context_chars,
            deadline=deadline,
            dry_run=request.dry_run,
        )
        return response_from(decision)

    async def GetServerInfo(
        self,
        request: pb.GetServerInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse],
    ) -> pb.GetServerInfoResponse:
        """Say what is served."""
        return self._info()
