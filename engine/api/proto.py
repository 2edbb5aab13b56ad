"""Convert between proto messages and the values of engine.api, in both directions.

`X_from` reads a message, `X_to` makes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.api.candidate import (
    MAX_REPEATED_WORDS,
    MAX_WORDS,
    NAME_PREFIX,
    TEST_TASKS,
    WORD_LISTS,
    Candidate,
    TaskResult,
    check_counts,
    parse_name,
    parse_names,
    task_count_violation,
)
from engine.api.conversation.conversation import (
    MAX_PARTS,
    Conversation,
    ConversationTurn,
    Role,
    with_ask,
)
from engine.api.conversation.harness import human_text
from engine.api.conversation.reading import ConversationReading, read
from engine.api.conversation.tokens import NO_TOKENS, TokenCounter
from engine.api.errors import InvalidInputError, Violation
from engine.api.policy import POLICY_WORDS, Policy, Session, named_session
from engine.pb import candidate_pb2, router_service_pb2

OPTIONAL_FIELDS = (  # of a candidate; unset means unknown
    "context_window",
    "input_usd_per_million",
    "output_usd_per_million",
    "mean_output_tokens",
    "time_to_first_token_ms",
    "cached_input_usd_per_million",
    "output_tokens_per_s",
)
# Fields of a policy. The first mean something else unset than at 0: no limit, or the server's
# setting.
OPTIONAL_LIMITS = (
    "max_input_usd_per_million",
    "max_output_usd_per_million",
    "max_ood_score",
    "confidence",
    "max_latency_ms",
    "escalate_after_failures",
)
NUMBER_FIELDS = (
    "expected_output_tokens",
    "ranking_size",
    "min_context_window",
    "abstain_below_probability",
)
ROLES: Mapping[int, Role] = {
    router_service_pb2.ROLE_SYSTEM: "system",
    router_service_pb2.ROLE_USER: "user",
    router_service_pb2.ROLE_ASSISTANT: "assistant",
    router_service_pb2.ROLE_TOOL: "tool",
}
ROLE_NUMBERS = {role: number for number, role in ROLES.items()}
MAX_UNCOUNTED = 32  # words of Conversation.uncounted


def candidate_from(message: candidate_pb2.Candidate, field: str) -> Candidate:
    """Convert a candidate without validating it.

    field: path of the message in the request, for errors. Raises InvalidInputError if the name is
    not a resource name, or if there are more aptitude results or words than a candidate may have.
    """
    if (count := len(message.aptitude)) > TEST_TASKS:
        raise InvalidInputError(task_count_violation(count, f"{field}.aptitude"))
    check_counts(message, field, WORD_LISTS, MAX_WORDS)
    fields: dict[str, Any] = {
        k: getattr(message, k) for k in OPTIONAL_FIELDS if message.HasField(k)
    }
    fields |= {k: tuple(sorted(getattr(message, k))) for k in WORD_LISTS}
    return Candidate(
        id=parse_name(message.name, f"{field}.name"),
        aptitude=tuple(
            TaskResult(r.task_keywords, r.accuracy, r.questions, r.place) for r in message.aptitude
        ),
        display_name=message.display_name,
        price_source=message.price_source,
        **fields,
    )


def candidate_to(candidate: Candidate) -> candidate_pb2.Candidate:
    """Convert a candidate, with its etag."""
    return candidate_pb2.Candidate(
        name=candidate.name,
        display_name=candidate.display_name,
        aptitude=[
            candidate_pb2.TaskResult(
                task_keywords=r.task, accuracy=r.accuracy, questions=r.questions, place=r.place
            )
            for r in candidate.aptitude
        ],
        price_source=candidate.price_source,
        etag=candidate.etag,
        level_standard_error=candidate.level_standard_error(),
        **{k: getattr(candidate, k) for k in OPTIONAL_FIELDS if getattr(candidate, k) is not None},
        **{k: getattr(candidate, k) for k in WORD_LISTS},
    )


def policy_from(message: router_service_pb2.Policy) -> Policy:
    """Convert a policy without validating its values.

    Raises InvalidInputError if a list of candidates holds anything but resource names.
    """
    check_counts(message, "policy", POLICY_WORDS, MAX_REPEATED_WORDS)
    objective = message.WhichOneof("objective")
    default = message.default_candidate
    fields: dict[str, Any] = {}
    for name in NUMBER_FIELDS:
        fields[name] = getattr(message, name)
    for name in OPTIONAL_LIMITS:
        if message.HasField(name):
            fields[name] = getattr(message, name)
    for name in POLICY_WORDS:  # a repeated word has no effect
        fields[name] = tuple(sorted(set(getattr(message, name))))
    return Policy(
        objective=objective or "cost_sensitivity",
        value=getattr(message, objective) if objective else 0.0,
        allowed_candidates=parse_names(message.allowed_candidates, "policy.allowed_candidates"),
        denied_candidates=parse_names(message.denied_candidates, "policy.denied_candidates"),
        default_candidate=parse_name(default, "policy.default_candidate") if default else "",
        required_api=message.required_api,
        **fields,
    )


def policy_to(policy: Policy) -> router_service_pb2.Policy:
    """Convert a policy; the inverse of policy_from."""
    default = policy.default_candidate
    message = router_service_pb2.Policy(
        allowed_candidates=[NAME_PREFIX + i for i in policy.allowed_candidates],
        denied_candidates=[NAME_PREFIX + i for i in policy.denied_candidates],
        default_candidate=NAME_PREFIX + default if default else "",
        required_api=policy.required_api,
        **{k: getattr(policy, k) for k in (*NUMBER_FIELDS, *OPTIONAL_LIMITS, *POLICY_WORDS)},
    )
    if policy.has_objective:
        setattr(message, policy.objective, policy.value)
    return message


def session_from(request: router_service_pb2.RouteRequest) -> Session | None:
    """Return the request's session, None if it names none.

    Raises InvalidInputError if its margin is invalid.
    """
    if not request.HasField("session"):
        return None
    margin = None
    if request.session.HasField("switching_margin"):
        margin = request.session.switching_margin
    return named_session(request.session.id, margin)


def reading_from(
    request: router_service_pb2.RouteRequest, limit: int, counter: TokenCounter | None = None
) -> ConversationReading:
    """Read what to route by; see Conversation in the proto.

    Args:
        request: the request.
        limit: of the ask, in bytes.
        counter: see `read`.

    Raises:
        InvalidInputError: there is no instruction, or the ask is over the limit.
    """
    form = request.WhichOneof("instruction")
    if form == "text":
        check_text(request.text, limit)
        if human_text((request.text,)) == request.text.strip():
            return ConversationReading(request.text, NO_TOKENS, "instruction")
        # A caller may pass on a user turn as it is, with what a coding agent wrote into it.
        return read(Conversation((ConversationTurn("user", (request.text,)),)), counter)
    if form is None:
        raise InvalidInputError(
            Violation("instruction", "is not set; send text or a conversation.")
        )
    reading = read(conversation_from(request.conversation), counter)
    if reading.ask:
        check_text(reading.ask, limit, "conversation")
    return reading


def conversation_from(message: router_service_pb2.Conversation) -> Conversation:
    """Convert the last MAX_PARTS turns and parts of a conversation.

    An empty turn takes two bytes only, so a request of a few MB can hold millions: they are counted
    before any is read.

    Raises:
        InvalidInputError: a role is invalid, there is no turn, or media_tokens is negative.
    """
    messages, turns = message.messages, []
    count, budget = len(messages), MAX_PARTS
    first = count
    while first and budget > 0:
        turn = messages[first - 1]
        if turn.role not in ROLES:
            problem = f"is {turn.role}; expected ROLE_SYSTEM, _USER, _ASSISTANT or _TOOL."
            field = f"conversation.messages[{first - 1}].role"
            raise InvalidInputError(Violation(field, problem))
        parts = turn.text_parts
        newest = parts if len(parts) < budget else parts[len(parts) - budget :]
        turns.append(ConversationTurn(ROLES[turn.role], tuple(newest), turn.failed))
        budget -= 1 + len(newest)
        first -= 1
    if not count:
        raise InvalidInputError(
            Violation(
                "conversation", "has no messages; the last turn of a user is the text to route by."
            )
        )
    if message.media_tokens < 0:
        problem = f"is {message.media_tokens}; expected 0 or more."
        raise InvalidInputError(Violation("conversation.media_tokens", problem))
    others = message.other_texts
    left_out = max(0, len(others) - MAX_PARTS)
    return Conversation(
        turns=tuple(turns[::-1] if first else with_ask(turns[::-1])),
        other_texts=tuple(others[left_out:]),
        media_tokens=message.media_tokens,
        uncounted=tuple(word[:100] for word in message.uncounted[:MAX_UNCOUNTED]),
        unread_turns=first + left_out,
    )


def conversation_to(conversation: Conversation) -> router_service_pb2.Conversation:
    """Convert a conversation; its needs and limits belong into the policy."""
    message = router_service_pb2.Conversation(
        other_texts=conversation.other_texts,
        media_tokens=conversation.media_tokens,
        uncounted=conversation.uncounted,
    )
    for turn in conversation.turns:
        message.messages.add(
            role=ROLE_NUMBERS[turn.role], text_parts=turn.parts, failed=turn.failed
        )
    return message


def check_text(text: str, limit_bytes: int, field: str = "text") -> None:
    """Raise InvalidInputError if `text` is blank, not valid UTF-8, or over `limit_bytes`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInputError(
            Violation(field, "is not valid UTF-8; send text as UTF-8.")
        ) from None
    if not text.strip():
        raise InvalidInputError(
            Violation(field, "is empty or white space; send the instruction to route.")
        )
    if size > limit_bytes:
        raise InvalidInputError(
            Violation(
                field,
                f"is {size} bytes, the limit is {limit_bytes}; send only the part that holds the"
                " instruction, or start the server with a larger --max-text-bytes.",
            )
        )
