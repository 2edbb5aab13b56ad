"""IDs of the current decision and trace, which logs add to every line.

They are set in the task of a request, so whatever that task calls or starts sees them.
"""

from __future__ import annotations

import re
from contextvars import ContextVar

DECISION: ContextVar[str] = ContextVar("decision", default="")
TRACE: ContextVar[str] = ContextVar("trace", default="")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-.{2}")


def trace_of(traceparent: str) -> str:
    """Return the trace ID of a W3C traceparent header; "" if it is malformed."""
    match = _TRACEPARENT.match(traceparent)
    return match[1] if match else ""
