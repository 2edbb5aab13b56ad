"""One address: its port, credentials and limits, and health and reflection of what it serves."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from engine.api.errors import BundleError
from engine.api.limits import MAX_MESSAGE_BYTES
from engine.serving.settings import Settings, flag

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
LIVENESS = "liveness"
PROBES = ("", "readiness", LIVENESS)
STORE = "store"  # whether changes are accepted; readiness does not depend on it
SECOND_MS = 1000
LIMITS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Equal, so that nothing is refused at random between a soft and a hard limit.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1024),  # of a connection; more wait at the client
    ("grpc.server_handshake_timeout_ms", 10 * SECOND_MS),
    ("grpc.keepalive_time_ms", 60 * SECOND_MS),  # of silence, then the peer is asked
    ("grpc.keepalive_timeout_ms", 20 * SECOND_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10 * SECOND_MS),
    ("grpc.http2.max_ping_strikes", 2),  # then GOAWAY, too_many_pings
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a twin
)


@dataclass(frozen=True)
class Service:
    """A gRPC service. name: its full name; add: registers it with a server."""

    name: str
    add: Callable[[grpc.aio.Server], None]


@dataclass(frozen=True)
class Listener:
    """A server on one address, HOST:PORT with the port that was taken."""

    address: str
    names: tuple[str, ...]
    _server: grpc.aio.Server
    _health: health.aio.HealthServicer

    async def start(self) -> None:
        """Answer, with every name SERVING from the first call on."""
        for name in self.names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def store(self, connected: bool) -> None:
        """Say under the name `store` whether the candidate store answers; routing goes on."""
        await self._say(STORE, connected)

    async def live(self, alive: bool) -> None:
        """Say under the name `liveness` whether a restart would help."""
        await self._say(LIVENESS, alive)

    async def _say(self, name: str, well: bool) -> None:
        answer = health_pb2.HealthCheckResponse
        await self._health.set(name, answer.SERVING if well else answer.NOT_SERVING)

    async def retire(self) -> None:
        """Turn every name NOT_SERVING for good; calls are still answered."""
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
) -> Listener:
    """Take the port of the setting `name`; raises BundleError where that fails. credentials: None
    means plain text."""
    address = getattr(settings, name)
    server = grpc.aio.server(interceptors=list(interceptors), options=_options(settings))
    for service in services:
        service.add(server)
    names = tuple(service.name for service in services)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    _add_reflection(server, names)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise BundleError(
            f"cannot listen on {address}: it is taken or not an address of this machine; give"
            f" {flag(name)} another HOST:PORT."
        ) from error
    return Listener(
        f"{address.rpartition(':')[0]}:{port}", (*PROBES, STORE, *names), server, healthy
    )


def exposure(settings: Settings) -> list[str]:
    """What to warn of: an address that others reach, without TLS or without tokens."""
    given = settings
    addresses = (given.address, given.admin_address, given.extproc_address, given.console_address)
    open_to_others = [a for a in addresses if a and not _local(a)]
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
        for address in open_to_others
        if missing
    ]


def _local(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _options(settings: Settings) -> list[tuple[str, int]]:
    options = list(LIMITS)
    if age_s := settings.max_connection_age_s:
        options.append(("grpc.max_connection_age_ms", age_s * SECOND_MS))
        options.append(
            ("grpc.max_connection_age_grace_ms", settings.shutdown_grace_period_s * SECOND_MS)
        )
    return options


def _add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """v1alpha from grpcio-reflection, and v1: the same messages under another service name."""
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
