"""Flags of every command that calls a server, and the client that they describe."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from engine.api.prices import UNITS
from engine.client.channel import DEFAULT_SERVER, TOKEN_VARIABLE, Credentials, read_file
from engine.client.sync import Client

SERVER_VARIABLE = "MODELSAT_SERVER"


def add_arguments(
    command: argparse.ArgumentParser, title: str = "server"
) -> argparse._ArgumentGroup:
    """Add --server and the flags of its TLS and token; return their group."""
    group = command.add_argument_group(title)
    group.add_argument(
        "--server",
        type=server_address,
        default=default_server(),
        metavar="HOST:PORT",
        help=f"address of the server (default ${SERVER_VARIABLE}, else {DEFAULT_SERVER})",
    )
    add_credentials(group)
    return group


def add_optional(command: argparse.ArgumentParser, about: str) -> None:
    """Add --server, None if it is not given, and the flags of its TLS and token.

    about: what the command does with a server.
    """
    group = command.add_argument_group("server")
    group.add_argument("--server", type=server_address, metavar="HOST:PORT", help=about)
    add_credentials(group)


def default_server() -> str:
    """Return the server of a command that names none."""
    return os.environ.get(SERVER_VARIABLE, "").strip() or DEFAULT_SERVER


def server_address(text: str) -> str:
    """Check an address of a server, which gRPC would try in vain for a minute if it is wrong."""
    address = text.strip()
    scheme, separator, _ = address.partition("://")
    if separator and scheme.lower() in {"http", "https", "grpc", "grpcs", "tcp"}:
        problem = f"{text} is a URL; give HOST:PORT, without {scheme}://"
        raise argparse.ArgumentTypeError(problem)
    target = separator or address.startswith(("unix:", "dns:", "ipv4:", "ipv6:"))
    port = address.rpartition(":")[2]
    if not target and (":" not in address or not port.isdigit() or not 0 < int(port) < 65536):
        host, colon, _ = address.strip(":").rpartition(":")
        example = f"{host if colon else address.strip(':')}:{DEFAULT_SERVER.rpartition(':')[2]}"
        problem = f"{text} has {f'the port {port!r}' if colon else 'no port'}; give HOST:PORT"
        problem += f", such as {example}"
        raise argparse.ArgumentTypeError(problem)
    return address


def add_credentials(group: argparse._ArgumentGroup) -> None:
    """Add the flags of TLS and token."""
    for flag, text in (
        ("--tls-ca", "PEM file of the authority that signed the server's certificate; enables TLS"),
        ("--tls-cert", "PEM file of your client certificate, if the server demands one (mTLS)"),
        ("--tls-key", "PEM file of the private key of --tls-cert"),
        ("--token-file", f"file that holds your bearer token (default: ${TOKEN_VARIABLE})"),
    ):
        group.add_argument(flag, type=Path, metavar="FILE", help=text)
    name = "name in the server's certificate, if it is not HOST"
    group.add_argument("--tls-server-name", default="", metavar="NAME", help=name)


def add_price_unit(group: argparse._ActionsContainer) -> None:
    """Add --price-unit."""
    group.add_argument(
        "--price-unit",
        choices=tuple(UNITS),
        help="the prices are in US dollars per this many tokens (default: million, and prices that"
        " look like another unit are refused)",
    )


def credentials_from(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Credentials:
    """Read the token; raises InvalidInputError if it or its file is unusable."""
    token = environ.get(TOKEN_VARIABLE, "")
    if parsed.token_file is not None:
        token = read_file("--token-file", parsed.token_file).decode("utf-8", errors="replace")
    files = (parsed.tls_ca, parsed.tls_cert, parsed.tls_key)
    return Credentials(*files, token.strip(), parsed.tls_server_name)


def connect(parsed: argparse.Namespace) -> Client:
    """Open the client that the flags and MODELSAT_TOKEN describe."""
    return Client(parsed.server, credentials=credentials_from(parsed, os.environ))
