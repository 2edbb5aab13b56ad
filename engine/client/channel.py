"""Channels of the clients: addresses, TLS, bearer tokens, retries."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import MAX_MESSAGE_BYTES
from engine.api.loopback import is_this_machine

DEFAULT_SERVER = "127.0.0.1:50051"
TOKEN_VARIABLE = "MODELSAT_TOKEN"  # noqa: S105 - the name of the environment variable
# Only methods that can be sent twice. A change of candidates cannot: the server may have made it
# although its answer was lost, so the caller decides.
IDEMPOTENT_METHODS = {
    "modelsat.v1.RouterService": (
        "Route",
        "BatchRoute",
        "RecordOutcome",
        "RecordComparison",
        "GetServerInfo",
    ),
    "modelsat.v1.CandidateService": ("GetCandidate", "ListCandidates", "ListRevisions"),
    "modelsat.v1.AdaptationService": ("GetAdaptation", "ListAdaptations", "ExplainDecision"),
}
RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
_TARGET_SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):")


@dataclass(frozen=True)
class Credentials:
    """TLS files and bearer token of a client.

    The channel is encrypted if any file is given, else it is plain text, which is right on the
    loopback interface and behind a service mesh.

    Attributes:
        tls_ca: PEM file of the authority that signed the server's certificate. None means the
            authorities that gRPC knows.
        tls_cert: PEM file of the client's own certificate, for servers that demand one (mTLS).
        tls_key: PEM file of its private key; set both or neither.
        token: Bearer token, as `modelsat token` prints it. Empty sends none.
        tls_server_name: Name that the server's certificate must be for, if it is not the host.

    Raises:
        InvalidInputError: `token` holds a space, a line break or anything else that is not
            printable ASCII.

    Example:
        credentials = Credentials(tls_ca="ca.pem", token=os.environ["MODELSAT_TOKEN"])
    """

    tls_ca: str | PathLike[str] | None = None
    tls_cert: str | PathLike[str] | None = None
    tls_key: str | PathLike[str] | None = None
    token: str = field(default="", repr=False)
    tls_server_name: str = ""

    def __post_init__(self) -> None:
        if any(character in "\r\n" for character in self.token):
            problem = "has a line break, as text read from a file has at its end; strip the token."
            raise InvalidInputError(Violation("token", problem))
        if not all(0x20 < ord(character) < 0x7F for character in self.token):
            problem = "has a space or a character beyond printable ASCII; give the token alone."
            raise InvalidInputError(Violation("token", problem))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata that every call must carry. gRPC's own call credentials would refuse
        to send a token in plain text."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Read the files.

        Returns:
            None for plain text.

        Raises:
            InvalidInputError: a file cannot be read, or only one of tls_cert and tls_key is set.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidInputError(
                Violation("tls_cert", "and tls_key belong together; set both or neither.")
            )
        if self.tls_ca is None and self.tls_cert is None:
            return None
        files = {"tls_ca": self.tls_ca, "tls_key": self.tls_key, "tls_cert": self.tls_cert}
        return grpc.ssl_channel_credentials(
            *(None if file is None else read_file(name, file) for name, file in files.items())
        )


INSECURE = Credentials()


def check_address(address: str) -> None:
    """Raise InvalidInputError unless an address is HOST:PORT or a gRPC target."""
    problem = ""
    host, colon, port = address.rpartition(":")
    if address != address.strip() or not address:
        problem = "is empty or begins or ends with white space"
    elif _TARGET_SCHEME.match(address):
        return
    elif "://" in address or "/" in address:
        problem = "is a URL; TLS is a matter of the credentials (--tls-ca), not of the address"
    elif not (colon and host and port) or (":" in host and not host.endswith("]")):
        problem = "has no port"
    elif not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        problem = f"has the port {port!r}"
    if problem:
        expected = f"expected HOST:PORT, such as {DEFAULT_SERVER} or [::1]:50051"
        raise InvalidInputError(Violation("server", f"{address!r} {problem}; {expected}."))


def read_file(field_name: str, path: str | PathLike[str]) -> bytes:
    """Read a file that a setting names; raises InvalidInputError with the setting's name."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            Violation(field_name, f"is {path}, which cannot be read ({reason}).")
        ) from error


def is_local(address: str) -> bool:
    """True if every address of a gRPC target is on this machine, where no proxy may be asked."""
    scheme, separator, rest = address.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    if scheme in {"dns", "ipv4", "ipv6"} and separator:
        address = rest.rpartition("/")[2]
    hosts = [
        a if a.count(":") > 1 and "]" not in a else a.rpartition(":")[0] or a
        for a in address.split(",")
    ]
    return all(is_this_machine(host.partition("]")[0]) for host in hosts)


def way_to(address: str) -> str:
    """Say how calls reach `address`: directly, or through a proxy of the environment."""
    names = ("grpc_proxy", "https_proxy", "http_proxy")  # in the order in which gRPC reads them
    proxy = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not proxy or is_local(address):
        return "directly"
    return f"through the proxy {proxy.rpartition('@')[2].rpartition('://')[2]}"


def open_channel(
    address: str, credentials: Credentials = INSECURE, *, retries: bool = True
) -> grpc.Channel:
    """Open a channel for threads. Calls must carry `credentials.metadata()`.

    Args:
        address: HOST:PORT, or any gRPC target ("dns:///router:50051",
            "ipv4:10.0.0.1:50051,10.0.0.2:50051"); calls go round robin over its addresses.
        credentials: TLS files and token.
        retries: Repeat idempotent calls that were refused or found no server.

    Raises:
        InvalidInputError: the address is none; see also `Credentials.channel_credentials`.
    """
    check_address(address)
    tls = credentials.channel_credentials()
    options = _channel_options(address, credentials, retries)
    if tls is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, tls, options)


def open_aio_channel(
    address: str, credentials: Credentials = INSECURE, *, retries: bool = True
) -> grpc.aio.Channel:
    """Open a channel for the running event loop; see `open_channel`."""
    check_address(address)
    tls = credentials.channel_credentials()
    options = _channel_options(address, credentials, retries)
    if tls is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, tls, options)


def _channel_options(
    address: str, credentials: Credentials, retries: bool
) -> list[tuple[str, Any]]:
    service_config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        names = [
            {"service": service, "method": method}
            for service, methods in IDEMPOTENT_METHODS.items()
            for method in methods
        ]
        service_config["methodConfig"] = [{"name": names, "retryPolicy": RETRY_POLICY}]
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Reconnect within a second of a server's return; gRPC's default backs off to 2 minutes.
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if is_local(address):
        options.append(("grpc.enable_http_proxy", 0))
    if credentials.tls_server_name:
        options.append(("grpc.ssl_target_name_override", credentials.tls_server_name))
    return options
