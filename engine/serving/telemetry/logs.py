"""The log on stderr: text, or one JSON object a line.

Every line of a request has its decision ID and, if the caller sent a traceparent or spans are
recorded, its trace ID. Of an exception, type and frames are logged, but not its text, which may
contain what a caller sent.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from engine.api.request_context import DECISION, TRACE

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
# Attributes of every record; any other was passed as `extra`.
_OWN = {*logging.makeLogRecord({}).__dict__, "message", "asctime"}
LINES_PER_S = 10
IDS = ("decision_id", "trace_id")
# Their debug lines are about internals, thousands a minute.
QUIET = ("grpc", "opentelemetry", "asyncio")


class RateLimitedLogger:
    """Log at most LINES_PER_S lines a second, so that callers cannot fill the disk. what: completes
    the line "N more WHAT" about those left out."""

    def __init__(self, log: logging.Logger, level: int, what: str) -> None:
        self._log, self._level, self._what = log, level, what
        self._second = self._count = 0

    def add(self, message: str, *values: object) -> None:
        """See logging.Logger.log."""
        second = int(time.monotonic())
        if second != self._second:
            if self._count > LINES_PER_S:
                self._log.log(self._level, "%d more %s", self._count - LINES_PER_S, self._what)
            self._second, self._count = second, 0
        self._count += 1
        if self._count <= LINES_PER_S:
            self._log.log(self._level, message, *values)


def configure(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Send the log of the whole process to `stream`, stderr by default.

    Args:
        log_format: "text" or "json".
        level: name of the lowest level that is logged.
        stream: for tests.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.addFilter(_correlate)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))
    logging.captureWarnings(True)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was passed as `extra`, and the IDs of the request."""
    return {k: v for k, v in record.__dict__.items() if k not in _OWN}


class TextFormatter(logging.Formatter):
    """Format time, level, logger and message, then the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line = f"{_when(record)} {record.levelname} {record.name} {record.getMessage()}"
        line += "".join(f" {k}={v}" for k, v in fields_of(record).items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - named by logging
        """See format_exception."""
        return format_exception(ei)


class JsonFormatter(logging.Formatter):
    """Format one object a line: time (RFC 3339, UTC), level, logger, message, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line = {
            "time": _when(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = format_exception(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def format_exception(exc_info: ExcInfo) -> str:
    """Return type and frames of an exception and of its causes, the first cause first."""
    parts = []
    error = exc_info[1]
    while error is not None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"{frames}{type(error).__qualname__}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nthen\n".join(reversed(parts))


def _when(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _correlate(record: logging.LogRecord) -> bool:
    for name, value in zip(IDS, (DECISION.get(), TRACE.get()), strict=True):
        if value and not hasattr(record, name):
            setattr(record, name, value)
    return True
