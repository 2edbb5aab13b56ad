"""One address of the server: port, TLS, limits, and the health and reflection services."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from engine.api.errors import BundleError
from engine.api.limits import MAX_MESSAGE_BYTES
from engine.serving.rpc.connections import MAX_CONNECTIONS
from engine.serving.setting_values import is_loopback
from engine.serving.settings import Settings, flag

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
READINESS, LIVENESS = "readiness", "liveness"
PROBES = ("", READINESS, LIVENESS)
STORE = "store"  # whether candidates can be changed; readiness does not depend on it
CANDIDATES = "modelsat.v1.CandidateService"
ROUTER = "modelsat.v1.RouterService"
SECOND_MS = 1000
PENDING = 1_000_000
LIMITS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A message that no handler has asked for is sent no further than one window.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    # Equal: between a soft and a hard limit gRPC refuses at random.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1024),  # per connection; further calls wait in the client
    ("grpc.server_handshake_timeout_ms", 10 * SECOND_MS),
    ("grpc.keepalive_time_ms", 60 * SECOND_MS),  # of silence before a ping
    ("grpc.keepalive_timeout_ms", 20 * SECOND_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10 * SECOND_MS),
    ("grpc.http2.max_ping_strikes", 2),  # then GOAWAY, too_many_pings
    # Calls that the event loop has not taken yet. gRPC would end those above its limits with
    # CANCELLED, which no client retries; connections and their streams bound the number as well.
    ("grpc.server.max_pending_requests", PENDING),
    ("grpc.server.max_pending_requests_hard_limit", PENDING),
    ("grpc.so_reuseport", 0),  # a second server on the port is an error
)


@dataclass(frozen=True)
class Service:
    """A gRPC service. name: its full name. add: registers it with a server."""

    name: str
    add: Callable[[grpc.aio.Server], None]


@dataclass(frozen=True)
class Listener:
    """A gRPC server on one address, HOST:PORT with the actual port."""

    address: str
    port: int
    names: tuple[str, ...]
    _server: grpc.aio.Server
    _health: health.aio.HealthServicer

    async def start(self, has_candidates: bool = True) -> None:
        """Start to answer, with every health name SERVING that `ready` does not turn off."""
        for name in self.names:
            await self._report(name, True)
        await self.ready(has_candidates)
        await self._server.start()

    async def ready(self, has_candidates: bool) -> None:
        """Report whether requests can be routed: under the name of RouterService, and under
        `readiness` of its address. Candidates can be registered in any case."""
        for name in (READINESS, ROUTER) if ROUTER in self.names else ():
            await self._report(name, has_candidates)

    async def store(self, connected: bool) -> None:
        """Report whether the candidate store can be reached: under the health name `store`, and
        under that of CandidateService, which cannot change anything without it."""
        for name in (STORE, CANDIDATES):
            if name in self.names:
                await self._report(name, connected)

    async def live(self, alive: bool) -> None:
        """Report under the health name `liveness` whether the process works; if not, restart it."""
        await self._report(LIVENESS, alive)

    async def _report(self, name: str, healthy: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(name, status.SERVING if healthy else status.NOT_SERVING)

    async def retire(self) -> None:
        """Turn every health name NOT_SERVING for good; calls are still answered."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, shutdown_grace_period_s: float) -> None:
        """Accept nothing more; cancel what has not ended after shutdown_grace_period_s."""
        await self._server.stop(shutdown_grace_period_s)


def bind(
    settings: Settings,
    name: str,
    services: Sequence[Service],
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    credentials: grpc.ServerCredentials | None,
    max_connections: int = MAX_CONNECTIONS,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> Listener:
    """Listen on the address in the setting `name`.

    Args:
        settings: addresses and limits.
        name: field of Settings that holds the address.
        services: to serve there.
        interceptors: outermost first.
        credentials: None means plain text.
        max_connections: further ones are refused.
        max_message_bytes: of a request.

    Raises:
        BundleError: the address is taken, or not one of this machine.
    """
    address = getattr(settings, name)
    options = [
        *_options(settings),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_receive_message_length", max_message_bytes),
    ]
    server = grpc.aio.server(interceptors=list(interceptors), options=options)
    for service in services:
        service.add(server)
    names = tuple(service.name for service in services)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    _add_reflection(server, names)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise BundleError(
            f"cannot listen on {address}: the port is taken, or this machine does not have the"
            f" address; set {flag(name)} to another HOST:PORT."
        ) from error
    bound = f"{address.rpartition(':')[0]}:{port}"
    return Listener(bound, port, (*PROBES, STORE, *names), server, health_service)


def insecure_listener_warnings(settings: Settings) -> list[str]:
    """Warn of addresses that other machines can reach without TLS or without tokens."""
    names = ("address", "admin_address", "extproc_address", "console_address")
    addresses = [getattr(settings, name) for name in names]
    exposed = [a for a in addresses if a and not is_loopback(a)]
    missing = [
        flag
        for flag, path in (
            ("--tls-certificate", settings.tls_certificate),
            ("--auth-tokens-file", settings.auth_tokens_file),
        )
        if not path.name
    ]
    return [
        f"{address} can be reached from other machines without {' and '.join(missing)}"
        for address in exposed
        if missing
    ]


def _options(settings: Settings) -> list[tuple[str, int]]:
    options = [
        *LIMITS,
        ("grpc.max_connection_idle_ms", settings.max_connection_idle_s * SECOND_MS),
    ]
    if age_s := settings.max_connection_age_s:
        options.append(("grpc.max_connection_age_ms", age_s * SECOND_MS))
        options.append(
            ("grpc.max_connection_age_grace_ms", settings.shutdown_grace_period_s * SECOND_MS)
        )
    return options


def _add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Serve v1alpha from grpcio-reflection, and v1: the same messages under another name."""
    names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
    reflection.enable_server_reflection(names, server)
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    method = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(REFLECTION_V1, method),))
