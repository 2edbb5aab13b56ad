"""What happens to a call between its headers and its method: its connection counts as in use."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

from engine.serving.rpc.connections import ConnectionWatch
from engine.serving.rpc.interceptors import Behavior, HandlerWrapper, wrap_handler


class CallTracker(HandlerWrapper):
    """Tell ConnectionWatch which connections have calls."""

    def __init__(self, connections: ConnectionWatch) -> None:
        super().__init__()
        self._connections = connections

    def wrap(self, handler: Any, method: str) -> Any:
        """See HandlerWrapper."""

        def unary(behavior: Behavior) -> Behavior:
            async def call(request: Any, context: Any) -> Any:
                with self._connections.calling(context.peer()):
                    response = behavior(request, context)
                    return await response if inspect.isawaitable(response) else response

            return call

        def stream(behavior: Behavior) -> Behavior:
            async def call(request: Any, context: Any) -> AsyncIterator[Any]:
                with self._connections.calling(context.peer()):
                    async for response in behavior(request, context):
                        yield response

            return call

        return wrap_handler(handler, unary, stream)
