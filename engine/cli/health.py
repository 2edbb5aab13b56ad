"""`modelsat health`: check a server, for container health checks and probes."""

from __future__ import annotations

import argparse
import os
from typing import cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.api.errors import UnavailableError
from engine.cli import server_flags
from engine.client.channel import open_channel, way_to


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat health`."""
    command.add_argument(
        "--service",
        default="readiness",
        metavar="NAME",
        help="what to check: readiness (the default), liveness, store, or the full name of a gRPC"
        " service",
    )
    text = "seconds to wait for the answer (default %(default)g)"
    command.add_argument("--timeout-s", type=float, default=2.0, metavar="S", help=text)
    server_flags.add_arguments(command)
    command.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> None:
    """Print SERVING; raises UnavailableError for any other status or no answer."""
    credentials = server_flags.credentials_from(parsed, os.environ)
    with open_channel(parsed.server, credentials) as channel:
        request = health_pb2.HealthCheckRequest(service=parsed.service)
        try:
            status = (
                health_pb2_grpc.HealthStub(channel)
                .Check(request, timeout=parsed.timeout_s, metadata=credentials.metadata())
                .status
            )
        except grpc.RpcError as error:
            raise UnavailableError(_explain(parsed, cast(grpc.Call, error))) from error
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"{parsed.service} at {parsed.server} is {name}.")
    print(name)


def _explain(parsed: argparse.Namespace, call: grpc.Call) -> str:
    if call.code() is grpc.StatusCode.NOT_FOUND:
        return f"{parsed.server} has no service {parsed.service!r} to check; try readiness."
    return (
        f"health check of {parsed.server} failed: {call.code().name}, {call.details()}"
        f" (tried {way_to(parsed.server)})"
    )
