"""Which decision and which trace the running task works for; the log puts both into every line.

Set in the task of a request, and so seen by whatever that task calls and by the tasks it starts.
"""

from __future__ import annotations

import re
from contextvars import ContextVar

DECISION: ContextVar[str] = ContextVar("decision", default="")
TRACE: ContextVar[str] = ContextVar("trace", default="")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-.{2}")


def trace_of(traceparent: str) -> str:
    """The trace id of a W3C traceparent, "" where it is none."""
    found = _TRACEPARENT.match(traceparent)
    return found[1] if found else ""
