"""What both clients share: requests made from plain values, and errors in the server's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import grpc

from engine.api.candidate import PREFIX, Candidate, id_of
from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.api.limits import MAX_MESSAGE_BYTES, check_text
from engine.api.openai import Role
from engine.api.policy import Policy, Session
from engine.api.proto import candidate_to, policy_to
from engine.pb import candidate_service_pb2, router_service_pb2

DEFAULT_POLICY = Policy()
MAX_BATCH = 256  # requests of a BatchRoute
FRAME_BYTES = 6  # at most, that a request takes in a batch beside its own
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES // 2  # but for a request that is larger by itself
ROLES: dict[Role, router_service_pb2.Role] = {
    "system": router_service_pb2.ROLE_SYSTEM,
    "user": router_service_pb2.ROLE_USER,
    "assistant": router_service_pb2.ROLE_ASSISTANT,
    "tool": router_service_pb2.ROLE_TOOL,
}


@dataclass(frozen=True)
class Turn:
    """Of a conversation; the router reads the last user turn and counts the others' tokens."""

    role: Role
    text: str


Instruction = str | Sequence[Turn]


class ModelsatClientError(ModelsatError):
    """code: the gRPC status name. The message is the server's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Any gRPC error as ModelsatClientError."""
    try:
        yield
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # every RpcError of a channel is one
        code = call.code().name
        message = call.details() or code
        if code == "UNAVAILABLE":
            message = _unavailable(message, address)
        raise ModelsatClientError(code, message) from error


def _unavailable(message: str, address: str) -> str:
    found = message.lower()
    if "handshake" in found or "socket closed" in found:
        return (
            f"{address} and this client do not agree on TLS; --tls-ca names the authority of the"
            f" server's certificate, --tls-cert and --tls-key a certificate of your own ({message})"
        )
    if "connect" in found:
        return f"no server answers at {address}; `make serve` starts one."
    return message


def resource_name(identifier: str) -> str:
    """Of a candidate, by id or resource name."""
    name = PREFIX + identifier.removeprefix(PREFIX)
    id_of(name)
    return name


def route_request(
    instruction: Instruction, policy: Policy, session: Session | None, dry_run: bool
) -> router_service_pb2.RouteRequest:
    """Raises InvalidInputError where there is nothing to read."""
    request = router_service_pb2.RouteRequest(policy=policy_to(policy), dry_run=dry_run)
    if isinstance(instruction, str):
        check_text(instruction, MAX_MESSAGE_BYTES)
        request.text = instruction
    else:
        request.conversation.CopyFrom(conversation(instruction))
    if session is not None:
        request.session.id = session.name
        if session.margin is not None:
            request.session.switching_margin = session.margin
    return request


def conversation(turns: Sequence[Turn]) -> router_service_pb2.Conversation:
    """Raises InvalidInputError where there is no turn."""
    if not turns:
        raise InvalidInputError(Violation("conversation", "has no turn; send at least a user's."))
    messages = [router_service_pb2.Message(role=ROLES[t.role], text_parts=[t.text]) for t in turns]
    return router_service_pb2.Conversation(messages=messages)


def batches(
    instructions: Sequence[Instruction], policy: Policy, dry_run: bool
) -> Iterator[router_service_pb2.BatchRouteRequest]:
    """As many BatchRoute requests as it takes."""
    requests = [route_request(one, policy, None, dry_run) for one in instructions]
    first = size = 0
    for i, request in enumerate(requests):
        more = request.ByteSize() + FRAME_BYTES
        if i > first and (i - first == MAX_BATCH or size + more > MAX_BATCH_BYTES):
            yield router_service_pb2.BatchRouteRequest(requests=requests[first:i])
            first, size = i, 0
        size += more
    if requests:
        yield router_service_pb2.BatchRouteRequest(requests=requests[first:])


def outcome_request(
    decision_id: str, candidate: str, score: float, text: str, category: str
) -> router_service_pb2.RecordOutcomeRequest:
    """candidate: id or resource name."""
    return router_service_pb2.RecordOutcomeRequest(
        decision_id=decision_id,
        candidate=resource_name(candidate),
        score=score,
        text=text,
        category=category,
    )


def replace_request(
    candidates: Sequence[Candidate],
) -> candidate_service_pb2.BatchReplaceCandidatesRequest:
    """The table to come."""
    return candidate_service_pb2.BatchReplaceCandidatesRequest(
        candidates=[candidate_to(c) for c in candidates]
    )
