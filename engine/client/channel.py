"""How a client reaches a server: TLS, a certificate of its own, a bearer token."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import MAX_MESSAGE_BYTES

DEFAULT_SERVER = "127.0.0.1:50051"
TOKEN = "MODELSAT_TOKEN"  # noqa: S105 - the name of the variable
NO_FILE = Path()
# Methods that may be sent twice: a change of the candidates may have been made although its answer
# was lost, and is left to the caller.
REPEATABLE = {
    "modelsat.v1.RouterService": ("Route", "BatchRoute", "RecordOutcome", "GetServerInfo"),
    "modelsat.v1.CandidateService": ("GetCandidate", "ListCandidates", "ListRevisions"),
}
RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}


@dataclass(frozen=True)
class Access:
    """tls_ca: PEM of the authority of the server's certificate; with it, or with a certificate of
    the client's own (tls_cert and tls_key), the channel speaks TLS. server_name: the one that the
    server's certificate must be for, if it is not the address. token: empty sends none."""

    tls_ca: Path = NO_FILE
    tls_cert: Path = NO_FILE
    tls_key: Path = NO_FILE
    token: str = field(default="", repr=False)
    server_name: str = ""

    def tls(self) -> bool:
        """Whether any of the files is given."""
        return any(path.name for path in (self.tls_ca, self.tls_cert, self.tls_key))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for plain text. Raises InvalidInputError where a file cannot be read or one of a
        pair is missing."""
        if bool(self.tls_cert.name) != bool(self.tls_key.name):
            raise InvalidInputError(
                Violation("--tls-key", "and --tls-cert go together; give both.")
            )
        if not self.tls():
            return None
        return grpc.ssl_channel_credentials(
            _given("--tls-ca", self.tls_ca),
            _given("--tls-key", self.tls_key),
            _given("--tls-cert", self.tls_cert),
        )


PLAIN = Access()


def channel_options(access: Access, retries: bool) -> list[tuple[str, Any]]:
    """Calls are spread over all addresses of the target. retries: repeat what was refused."""
    service_config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        names = [{"service": s, "method": m} for s, found in REPEATABLE.items() for m in found]
        service_config["methodConfig"] = [{"name": names, "retryPolicy": RETRY_POLICY}]
    named = [("grpc.ssl_target_name_override", access.server_name)] if access.server_name else []
    return [
        *named,
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # How long a server that was away stays away: by default the channel backs off to 2 minutes.
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def open_channel(address: str, access: Access, *, retries: bool = True) -> grpc.Channel:
    """address: HOST:PORT, or any target that gRPC knows ("ipv4:10.0.0.1:50051,10.0.0.2:50051",
    "dns:///router:50051"). Raises InvalidInputError as Access.credentials()."""
    credentials, options = access.credentials(), channel_options(access, retries)
    if credentials is not None:
        channel = grpc.secure_channel(address, credentials, options)
    else:
        channel = grpc.insecure_channel(address, options)
    if not access.token:
        return channel
    return grpc.intercept_channel(channel, _Bearer(access))


def open_aio_channel(address: str, access: Access, *, retries: bool = True) -> grpc.aio.Channel:
    """As open_channel; calls carry access.metadata() themselves."""
    credentials, options = access.credentials(), channel_options(access, retries)
    if credentials is not None:
        return grpc.aio.secure_channel(address, credentials, options)
    return grpc.aio.insecure_channel(address, options)


class _Details(grpc.ClientCallDetails):
    """Those of a call, with other metadata."""

    def __init__(
        self, given: grpc.ClientCallDetails, metadata: tuple[tuple[str, Any], ...]
    ) -> None:
        self.method = given.method
        self.timeout = given.timeout
        self.metadata = metadata
        self.credentials = given.credentials
        self.wait_for_ready = given.wait_for_ready
        self.compression = given.compression


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends the token with every call. gRPC's own call credentials refuse plain text, which is
    right for the loopback and behind a mesh's TLS."""

    def __init__(self, access: Access) -> None:
        self._metadata = access.metadata()

    def _call(self, continuation: Callable[..., Any], given: Any, request: Any) -> Any:
        return continuation(_Details(given, (*(given.metadata or ()), *self._metadata)), request)

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """See grpc.UnaryUnaryClientInterceptor."""
        return self._call(continuation, client_call_details, request)

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """See grpc.UnaryStreamClientInterceptor."""
        return self._call(continuation, client_call_details, request)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """See grpc.StreamStreamClientInterceptor."""
        return self._call(continuation, client_call_details, request_iterator)


def _given(flag: str, path: Path) -> bytes | None:
    return read_file(flag, path) if path.name else None


def read_file(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            Violation(flag, f"is {path}, which cannot be read ({error.strerror}).")
        ) from error
