"""What is known of the current request: its decision and trace, and who sent it.

Logs add the IDs to every line. All are set in the task of a request, so whatever that task calls or
starts sees them. Callers are not authenticated where a value of theirs is "".

PRINCIPAL: name of the token that the call brought; without tokens the subject of the client's TLS
certificate. ROLE: of that token; "" means that every caller may do everything. PEER: address of the
client, as gRPC writes it. REFUSAL: why the request must not be scored although it goes on to its
method, which may have another answer; None lets it be scored. SEVERAL: whether others come with it,
with which it may share a forward pass.
"""

from __future__ import annotations

import re
from contextvars import ContextVar

from engine.api.errors import ModelsatError

DECISION: ContextVar[str] = ContextVar("decision", default="")
TRACE: ContextVar[str] = ContextVar("trace", default="")
PRINCIPAL: ContextVar[str] = ContextVar("principal", default="")
ROLE: ContextVar[str] = ContextVar("role", default="")
PEER: ContextVar[str] = ContextVar("peer", default="")
REFUSAL: ContextVar[ModelsatError | None] = ContextVar("refusal", default=None)
SEVERAL: ContextVar[bool] = ContextVar("several", default=False)
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-.{2}")


def trace_of(traceparent: str) -> str:
    """Return the trace ID of a W3C traceparent header; "" if it is malformed."""
    match = _TRACEPARENT.match(traceparent)
    return match[1] if match else ""
