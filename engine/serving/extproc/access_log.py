"""Envoy's access log, v3: how each attempt of the gateway at an upstream ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.api.request_context import PRINCIPAL, ROLE
from engine.pb import access_log_pb2 as pb
from engine.pb import access_log_pb2_grpc
from engine.routing.health import CandidateHealth
from engine.serving.auth.outcome_gate import scope_of
from engine.serving.extproc.body import is_routed

NAME = pb.DESCRIPTOR.services_by_name["AccessLogService"].full_name
MAX_ENTRIES = 10_000  # of one message; Envoy sends 16 KiB or a second's at a time
FAILED_STATUSES = frozenset({0, 401, 403, 408, 429, *range(500, 600)})  # 0: no answer


class AccessLog(access_log_pb2_grpc.AccessLogServiceServicer):
    """Reports the attempts that a gateway logs to CandidateHealth."""

    def __init__(
        self,
        health: CandidateHealth,
        registered: Callable[[], Collection[str]],
        model_header: str,
        upstream_names: Mapping[str, str],
    ) -> None:
        """Read which model an attempt was of from `model_header`.

        Args:
            health: receives how attempts ended.
            registered: returns the IDs of candidates.
            model_header: a request header that the gateway logs.
            upstream_names: candidate ID -> the upstream's name for it, if that differs.
        """
        self._health = health
        self._registered = registered
        self._model_header = model_header
        self._upstream_names = upstream_names
        self._ids: dict[str, list[str]] = {}
        for identifier, name in upstream_names.items():
            self._ids.setdefault(name, []).append(identifier)

    async def StreamAccessLogs(  # noqa: N802 - named by the proto
        self, requests: AsyncIterator[pb.StreamAccessLogsMessage], context: Any
    ) -> pb.StreamAccessLogsResponse:
        """Read entries for as long as the gateway sends some."""
        scope = scope_of(PRINCIPAL.get(), ROLE.get())
        async for message in requests:
            entries = message.http_logs.log_entry
            if len(entries) > MAX_ENTRIES:
                problem = f"has {len(entries)} entries; at most {MAX_ENTRIES}."
                raise InvalidInputError(Violation("http_logs.log_entry", problem))
            for entry in entries:
                self._report(entry, scope)
        return pb.StreamAccessLogsResponse()

    def _report(self, entry: pb.HttpLogEntry, scope: str) -> None:
        common, status = entry.common_properties, entry.response.response_code.value
        flags, path = common.response_flags, entry.request.path
        if flags.downstream_connection_termination or flags.downstream_remote_reset:
            return  # the client went away, whatever the upstream would have done
        if path and not is_routed(path):
            return  # counting tokens works, and is quick, while answers fail
        error, latency_s = "", None
        if common.HasField("time_to_last_upstream_rx_byte"):
            latency_s = common.time_to_last_upstream_rx_byte.ToNanoseconds() / 1e9
        if status in FAILED_STATUSES:
            error = f"HTTP {status}" if status else "no answer"
        elif not 200 <= status < 300:
            return  # the request is wrong
        for identifier in self._candidates(entry.request.request_headers[self._model_header]):
            self._health.report(identifier, error, scope, None if error else latency_s)

    def _candidates(self, name: str) -> Iterator[str]:
        """Yield the candidates that the upstreams know by `name`."""
        registered = self._registered()
        for identifier in self._ids.get(name, ()):
            if identifier in registered:
                yield identifier
        if name in registered and name not in self._upstream_names:
            yield name
