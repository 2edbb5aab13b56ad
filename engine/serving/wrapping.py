"""Handlers of gRPC methods, wrapped once each and not at every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Wrapped:
    """wrap: (handler, method) -> the handler that takes its place. Only methods that are served
    have handlers, so what is kept is bounded by them."""

    def __init__(self, wrap: Callable[[Any, str], Any]) -> None:
        self._wrap = wrap
        self._known: dict[str, tuple[Any, Any]] = {}

    def of(self, handler: Any, method: str) -> Any:
        """What stands around `handler`; made anew where another handler comes for `method`."""
        known, wrapped = self._known.get(method, (None, None))
        if known is not handler:
            wrapped = self._wrap(handler, method)
            self._known[method] = (handler, wrapped)
        return wrapped
