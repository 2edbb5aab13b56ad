"""The flags of every command that calls a server, and the client they ask for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from engine.api.errors import InvalidInputError, Violation
from engine.client.channel import DEFAULT_SERVER, NO_FILE, TOKEN, Access, read_file
from engine.client.sync import Client


def add_arguments(
    command: argparse.ArgumentParser,
    flag: str = "--server",
    default: str | None = DEFAULT_SERVER,
) -> None:
    """The flags of every command that calls a server."""
    add = command.add_argument
    add(flag, dest="server", default=default, metavar="HOST:PORT")
    add("--tls-ca", type=Path, default=NO_FILE, metavar="FILE", help="authority of the server")
    add("--tls-cert", type=Path, default=NO_FILE, metavar="FILE", help="our certificate (mTLS)")
    add("--tls-key", type=Path, default=NO_FILE, metavar="FILE", help="its key")
    add("--tls-server-name", default="", metavar="NAME", help="in the certificate, if not HOST")
    add("--token-file", type=Path, metavar="FILE", help=f"bearer token; without it ${TOKEN}")


def access_from(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Access:
    """What the flags and the environment say. Raises InvalidInputError."""
    token = environ.get(TOKEN, "").strip()
    if parsed.token_file is not None:
        token = (
            read_file("--token-file", parsed.token_file).decode("utf-8", errors="replace").strip()
        )
    if not all(0x20 < ord(c) < 0x7F for c in token):
        raise InvalidInputError(
            Violation("token", "holds more than one word of printable ASCII; give it alone.")
        )
    files = (parsed.tls_ca, parsed.tls_cert, parsed.tls_key)
    return Access(*files, token, parsed.tls_server_name)


def connect(parsed: argparse.Namespace) -> Client:
    """The client that add_arguments' flags and MODELSAT_TOKEN ask for."""
    return Client(parsed.server, access=access_from(parsed, os.environ))
