"""`modelsat health`: is a server well? For containers and probes; exit status 0 if it is."""

from __future__ import annotations

import argparse
import os
from typing import cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.api.errors import UnavailableError
from engine.cli import server_flags
from engine.client.channel import open_channel

HELP = "ask a server for its health; exit status 0 if it is SERVING"
READINESS = "readiness"
Answer = health_pb2.HealthCheckResponse


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `modelsat health`."""
    server_flags.add_arguments(command)
    command.add_argument(
        "--service", default=READINESS, help="readiness (default), liveness, store, or a service"
    )
    command.add_argument("--timeout", type=float, default=2.0)
    command.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> None:
    """Print SERVING; raises UnavailableError with what else was found."""
    access = server_flags.access_from(parsed, os.environ)
    with open_channel(parsed.server, access) as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        request = health_pb2.HealthCheckRequest(service=parsed.service)
        try:
            status = stub.Check(request, timeout=parsed.timeout).status
        except grpc.RpcError as error:
            raise UnavailableError(_failed(parsed, cast(grpc.Call, error))) from error
    name = Answer.ServingStatus.Name(status)
    if status != Answer.SERVING:
        raise UnavailableError(f"{parsed.service} at {parsed.server} is {name}.")
    print(name)


def _failed(parsed: argparse.Namespace, call: grpc.Call) -> str:
    if call.code() is grpc.StatusCode.NOT_FOUND:
        return f"{parsed.server} knows no health name {parsed.service!r}; try readiness."
    return f"{parsed.server} did not say how it is ({call.code().name}: {call.details()})."
