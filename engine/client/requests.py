"""Requests of both clients, built from plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.api.candidate import NAME_PREFIX, Candidate, parse_name
from engine.api.conversation.body import from_body
from engine.api.conversation.conversation import ROLES, Conversation, ConversationTurn, Role
from engine.api.conversation.reading import find_ask, hinted_session, in_tool_loop
from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import MAX_BATCH_REQUESTS, MAX_MESSAGE_BYTES, ROUTER_MESSAGE_BYTES
from engine.api.policy import Policy, Session, session_name
from engine.api.proto import candidate_to, check_text, conversation_to, policy_to
from engine.api.usage import Usage
from engine.client.errors import translate_value_errors
from engine.pb import candidate_pb2, candidate_service_pb2, router_service_pb2

DEFAULT_POLICY = Policy()
NO_USAGE: Mapping[str, Usage] = {}
MAX_BATCH_BYTES = ROUTER_MESSAGE_BYTES // 2  # unless a single request is larger
REVISION_METADATA = "modelsat-revision-token"
FRAMING_BYTES = 6  # at most, that a batch adds to each request


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation. The router ranks candidates for the last user turn and counts the
    tokens of the others.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        text: What was said.

    Example:
        conversation = [Turn("system", "Be brief."), Turn("user", "Who wrote Faust?")]
    """

    role: Role
    text: str


@dataclass(frozen=True)
class Outcome:
    """How well a candidate answered, to be recorded within `route_stream`.

    Attributes:
        decision_id: Names the decision, see `RouteDecision.decision_id`.
        candidate: ID of the candidate that answered.
        score: Quality of the answer in [0, 1]; 1 is right.
        text: The instruction, if it may be stored.
        category: Your own label for this kind of instruction.
        usage: What the call of the candidate used.

    Example:
        outcome = Outcome(decision.decision_id, decision.selected, 1.0)
    """

    decision_id: str
    candidate: str
    score: float
    text: str = ""
    category: str = ""
    usage: Usage | None = None


Instruction = str | Sequence[Turn] | Conversation


def conversation_from_body(body: Mapping[str, Any], path: str = "") -> Conversation:
    """Read a request body into a conversation, which clients take as an instruction.

    Its tools, formats, images and limit on the reply become constraints of the policy.

    Args:
        body: A request of OpenAI's chat completions, completions or responses API, Anthropic's
            messages, Gemini's generateContent, Bedrock's converse, or one of their dialects.
        path: Path of the HTTP request, if known; it tells whose sizes of images apply.

    Raises:
        InvalidInputError: The body has no turns, prompt or input.

    Example:
        decision = client.route(conversation_from_body(json.loads(raw), "/v1/messages"))
    """
    return from_body(body, path)


def resource_name(candidate: str) -> str:
    """Return `candidates/{id}` of an ID or resource name; raises InvalidInputError."""
    name = NAME_PREFIX + candidate.removeprefix(NAME_PREFIX)
    parse_name(name)
    return name


@translate_value_errors()
def route_request(
    instruction: Instruction,
    policy: Policy,
    session: Session | None,
    dry_run: bool,
    min_revision_token: str = "",
) -> router_service_pb2.RouteRequest:
    """Build a request; raises InvalidInputError if the instruction is empty or not UTF-8."""
    if isinstance(instruction, Conversation):
        policy = instruction.needs.constrain(policy)
        if session is None and instruction.session:
            _, asked_at = find_ask(instruction.turns)
            in_loop = in_tool_loop(instruction.turns, asked_at)
            session = hinted_session(instruction.session, in_loop)
    request = router_service_pb2.RouteRequest(
        policy=policy_to(policy), dry_run=dry_run, min_revision_token=min_revision_token
    )
    if isinstance(instruction, str):
        check_text(instruction, MAX_MESSAGE_BYTES)
        request.text = instruction
    elif isinstance(instruction, Conversation):
        request.conversation.CopyFrom(conversation_to(instruction))
    else:
        request.conversation.CopyFrom(conversation(instruction))
    if session is not None:
        request.session.id = session_name(session.name)
        if session.margin is not None:
            request.session.switching_margin = session.margin
    return request


def conversation(turns: Sequence[Turn]) -> router_service_pb2.Conversation:
    """Convert turns; raises InvalidInputError if there are none, or a role is unknown."""
    if not turns:
        raise InvalidInputError(Violation("conversation", "has no turns; send at least a user's."))
    expected = set(ROLES.values())
    if unknown := [turn.role for turn in turns if turn.role not in expected]:
        names = ", ".join(dict.fromkeys(ROLES.values()))
        problem = f"has the role {unknown[0]!r}; expected one of {names}."
        raise InvalidInputError(Violation("conversation", problem))
    spoken = tuple(ConversationTurn(turn.role, (turn.text,)) for turn in turns)
    return conversation_to(Conversation(spoken))


def batches(
    instructions: Sequence[Instruction], policy: Policy, dry_run: bool
) -> Iterator[router_service_pb2.BatchRouteRequest]:
    """Split instructions over as few BatchRoute requests as a server accepts."""
    requests = [route_request(each, policy, None, dry_run) for each in instructions]
    start = size = 0
    for i, request in enumerate(requests):
        request_size = request.ByteSize() + FRAMING_BYTES
        is_full = i - start == MAX_BATCH_REQUESTS or size + request_size > MAX_BATCH_BYTES
        if i > start and is_full:
            yield router_service_pb2.BatchRouteRequest(requests=requests[start:i])
            start, size = i, 0
        size += request_size
    if requests:
        yield router_service_pb2.BatchRouteRequest(requests=requests[start:])


def token_in(metadata: Any) -> str:
    """Return the revision token in the trailing metadata of a change, "" of any other call."""
    values = [value for key, value in metadata or () if key == REVISION_METADATA]
    return str(values[-1]) if values else ""


@translate_value_errors()
def outcome_request(
    decision_id: str,
    candidate: str,
    score: float,
    text: str,
    category: str,
    usage: Usage | None = None,
    store_text: bool = True,
) -> router_service_pb2.RecordOutcomeRequest:
    """Build a request; `candidate` is an ID or resource name."""
    return router_service_pb2.RecordOutcomeRequest(
        decision_id=decision_id,
        candidate=resource_name(candidate),
        score=score,
        text=text,
        category=category,
        usage=None if usage is None else usage_message(usage),
        store_text=None if store_text else False,
    )


def stream_request(
    position: int, sent: Instruction | Outcome, policy: Policy, dry_run: bool
) -> router_service_pb2.StreamRouteRequest:
    """Build a message of StreamRoute; see route_request and outcome_request."""
    message = router_service_pb2.StreamRouteRequest(id=str(position))
    if isinstance(sent, Outcome):
        message.outcome.CopyFrom(
            outcome_request(
                sent.decision_id, sent.candidate, sent.score, sent.text, sent.category, sent.usage
            )
        )
    else:
        message.request.CopyFrom(route_request(sent, policy, None, dry_run))
    return message


@translate_value_errors()
def comparison_request(
    scores: Mapping[str, float],
    decision_id: str,
    text: str,
    store_text: bool,
    category: str,
    grader: str,
    disagreement: float | None,
    usage: Mapping[str, Usage],
) -> router_service_pb2.RecordComparisonRequest:
    """Build a request; candidates are IDs or resource names."""
    request = router_service_pb2.RecordComparisonRequest(
        decision_id=decision_id,
        text=text,
        store_text=store_text,
        category=category,
        grader=grader,
        disagreement=disagreement,
    )
    for candidate, score in scores.items():
        used = usage.get(candidate)
        request.candidates.add(
            candidate=resource_name(candidate),
            score=score,
            usage=None if used is None else usage_message(used),
        )
    return request


def usage_message(usage: Usage) -> router_service_pb2.Usage:
    """Convert what a call used."""
    message = router_service_pb2.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_usd=usage.cost_usd,
        error=usage.error,
    )
    if usage.latency_s is not None:
        message.latency.FromNanoseconds(round(usage.latency_s * 1e9))
    return message


def create_request(
    candidate: Candidate, validate_only: bool
) -> candidate_service_pb2.CreateCandidateRequest:
    """Build a request."""
    return candidate_service_pb2.CreateCandidateRequest(
        candidate=_candidate_message(candidate), validate_only=validate_only
    )


@translate_value_errors()
def update_request(
    candidate: Candidate,
    fields: Sequence[str],
    etag: str,
    allow_missing: bool,
    validate_only: bool,
) -> candidate_service_pb2.UpdateCandidateRequest:
    """Build a request. fields: names to take from `candidate`; empty means all."""
    request = candidate_service_pb2.UpdateCandidateRequest(
        candidate=_candidate_message(candidate),
        allow_missing=allow_missing,
        validate_only=validate_only,
    )
    request.candidate.etag = etag
    request.update_mask.paths.extend(fields or ["*"])
    return request


@translate_value_errors()
def delete_request(
    candidate: str, etag: str, allow_missing: bool, validate_only: bool
) -> candidate_service_pb2.DeleteCandidateRequest:
    """Build a request; `candidate` is an ID or resource name."""
    return candidate_service_pb2.DeleteCandidateRequest(
        name=resource_name(candidate),
        etag=etag,
        allow_missing=allow_missing,
        validate_only=validate_only,
    )


def replace_request(
    candidates: Sequence[Candidate], validate_only: bool
) -> candidate_service_pb2.BatchReplaceCandidatesRequest:
    """Build a request."""
    return candidate_service_pb2.BatchReplaceCandidatesRequest(
        candidates=[_candidate_message(c) for c in candidates], validate_only=validate_only
    )


@translate_value_errors()
def rollback_request(
    revision: int, validate_only: bool
) -> candidate_service_pb2.RollbackRevisionRequest:
    """Build a request."""
    return candidate_service_pb2.RollbackRevisionRequest(
        revision=revision, validate_only=validate_only
    )


@translate_value_errors()
def watch_request(last_seen_revision: int) -> candidate_service_pb2.WatchCandidatesRequest:
    """Build a request."""
    return candidate_service_pb2.WatchCandidatesRequest(last_seen_revision=last_seen_revision)


@translate_value_errors()
def _candidate_message(candidate: Candidate) -> candidate_pb2.Candidate:
    """Convert a candidate, without an etag: it would have to be that of the server's copy."""
    message = candidate_to(candidate)
    message.ClearField("etag")
    return message
