"""Convert between proto messages and the values of engine.api, in both directions.

`X_from` reads a message, `X_to` makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from engine.api.errors import InvalidInputError, Violation
from engine.api.openai import MAX_PARTS
from engine.api.policy import POLICY_WORDS, Policy, Session, named_session
from engine.pb import candidate_pb2, router_service_pb2

OPTIONAL_FIELDS = (  # of a candidate; unset means unknown
    "context_window",
    "input_usd_per_million",
    "output_usd_per_million",
    "mean_output_tokens",
)
# Fields of a policy. Unset, the first mean no limit; the others are the same unset and 0.
OPTIONAL_LIMITS = ("max_input_usd_per_million", "max_output_usd_per_million", "max_ood_score")
NUMBER_FIELDS = (
    "expected_output_tokens",
    "ranking_size",
    "min_context_window",
    "abstain_below_probability",
)
ROLES = set(router_service_pb2.Role.values()) - {router_service_pb2.ROLE_UNSPECIFIED}


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
        aptitude=tuple(TaskResult(r.task_keywords, r.accuracy) for r in message.aptitude),
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
            candidate_pb2.TaskResult(task_keywords=r.task, accuracy=r.accuracy)
            for r in candidate.aptitude
        ],
        price_source=candidate.price_source,
        etag=candidate.etag,
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
        **fields,
    )


def policy_to(policy: Policy) -> router_service_pb2.Policy:
    """Convert a policy; the inverse of policy_from."""
    default = policy.default_candidate
    message = router_service_pb2.Policy(
        allowed_candidates=[NAME_PREFIX + i for i in policy.allowed_candidates],
        denied_candidates=[NAME_PREFIX + i for i in policy.denied_candidates],
        default_candidate=NAME_PREFIX + default if default else "",
        **{k: getattr(policy, k) for k in (*NUMBER_FIELDS, *OPTIONAL_LIMITS, *POLICY_WORDS)},
    )
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


def instruction_from(request: router_service_pb2.RouteRequest, limit: int) -> tuple[str, int]:
    """Return the text to route by, and the number of characters in the rest of the conversation,
    which count for context and cost alone; see Conversation in the proto.

    Raises InvalidInputError if there is no text, more than MAX_PARTS turns or texts, or more than
    `limit` bytes in all.
    """
    form = request.WhichOneof("instruction")
    if form == "text":
        check_text(request.text, limit)
        return request.text, 0
    if form is None:
        raise InvalidInputError(
            Violation("instruction", "is not set; send text or a conversation.")
        )
    _check_turns(request.conversation.messages)
    turns = [
        (turn.role == router_service_pb2.ROLE_USER, "\n".join(turn.text_parts))
        for turn in request.conversation.messages
    ]
    return last_user_turn(turns, limit)


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


def last_user_turn(turns: Sequence[tuple[bool, str]], limit_bytes: int) -> tuple[str, int]:
    """Return the text of the last user turn, and the number of characters in all other turns.

    Args:
        turns: (whether the user's, text), oldest first.
        limit_bytes: of all texts together, in UTF-8.

    Raises:
        InvalidInputError: there is no user turn, its text is empty, or the limit is exceeded.
    """
    users = [i for i, (is_user, _) in enumerate(turns) if is_user]
    if not users:
        raise InvalidInputError(
            Violation("conversation", "has no user turn; the last one is the text to route by.")
        )
    texts = [text for _, text in turns]
    check_text("\n".join(texts), limit_bytes, "conversation")
    text = texts[users[-1]]
    check_text(text, limit_bytes, f"conversation.messages[{users[-1]}].text_parts")
    return text, sum(map(len, texts)) - len(text)


def _check_turns(turns: Sequence[router_service_pb2.Message]) -> None:
    """Check counts and roles before any text is joined: an empty turn takes two bytes only, so a
    request of a few MB can hold millions."""
    if (count := len(turns)) > MAX_PARTS:
        problem = f"has {count} turns; at most {MAX_PARTS} are read."
        raise InvalidInputError(Violation("conversation.messages", problem))
    if (count := sum(len(turn.text_parts) for turn in turns)) > MAX_PARTS:
        problem = f"has {count} texts in its turns; at most {MAX_PARTS} are read."
        raise InvalidInputError(Violation("conversation.messages", problem))
    for i, turn in enumerate(turns):
        if turn.role not in ROLES:
            raise InvalidInputError(
                Violation(
                    f"conversation.messages[{i}].role",
                    f"is {turn.role}; expected ROLE_SYSTEM, _USER, _ASSISTANT or _TOOL.",
                )
            )
