"""Between proto messages and the project's own values; nothing is decided here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from engine.api.candidate import (
    MAX_CANDIDATES,
    PREFIX,
    TEST_TASKS,
    WORD_LISTS,
    Candidate,
    TaskResult,
    id_of,
    wrong_count,
)
from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import check_text
from engine.api.openai import MAX_PARTS
from engine.api.policy import POLICY_WORDS, Policy, Session
from engine.pb import candidate_pb2, router_service_pb2

OPTIONAL = (
    "context_window",
    "input_usd_per_million",
    "output_usd_per_million",
    "mean_output_tokens",
)
PRICES = ("max_input_usd_per_million", "max_output_usd_per_million")
LIMITS = (*PRICES, "max_ood_score")  # of a policy, where unset is not 0
AMOUNTS = (
    "expected_output_tokens",
    "ranking_size",
    "min_context_window",
    "abstain_below_probability",
)
MAX_SESSION_CHARS = 128
ROLES = set(router_service_pb2.Role.values()) - {router_service_pb2.ROLE_UNSPECIFIED}


def candidate_from(message: candidate_pb2.Candidate, field: str) -> Candidate:
    """Raises InvalidInputError where the name is no resource name, or the aptitude figures are too
    many to be read; the rest is not validated."""
    if (count := len(message.aptitude)) > TEST_TASKS:
        raise InvalidInputError(wrong_count(count, f"{field}.aptitude"))
    fields: dict[str, Any] = {k: getattr(message, k) for k in OPTIONAL if message.HasField(k)}
    fields |= {k: tuple(sorted(getattr(message, k))) for k in WORD_LISTS}
    return Candidate(
        id=id_of(message.name, f"{field}.name"),
        aptitude=tuple(TaskResult(r.task_keywords, r.accuracy) for r in message.aptitude),
        display_name=message.display_name,
        price_source=message.price_source,
        **fields,
    )


def candidate_to(candidate: Candidate) -> candidate_pb2.Candidate:
    """With its etag."""
    return candidate_pb2.Candidate(
        name=candidate.name,
        display_name=candidate.display_name,
        aptitude=[
            candidate_pb2.TaskResult(task_keywords=r.task, accuracy=r.accuracy)
            for r in candidate.aptitude
        ],
        price_source=candidate.price_source,
        etag=candidate.etag,
        **{k: getattr(candidate, k) for k in OPTIONAL if getattr(candidate, k) is not None},
        **{k: getattr(candidate, k) for k in WORD_LISTS},
    )


def policy_from(message: router_service_pb2.Policy) -> Policy:
    """Raises InvalidInputError where a list holds no resource names; values are not checked."""
    objective = message.WhichOneof("objective")
    default = message.default_candidate
    fields: dict[str, Any] = {}
    for name in AMOUNTS:
        fields[name] = getattr(message, name)
    for name in LIMITS:
        if message.HasField(name):
            fields[name] = getattr(message, name)
    for name in POLICY_WORDS:  # repeating a word does not require it twice
        fields[name] = tuple(sorted(set(getattr(message, name))))
    return Policy(
        objective=objective or "cost_sensitivity",
        value=getattr(message, objective) if objective else 0.0,
        allowed_candidates=_ids(message.allowed_candidates, "policy.allowed_candidates"),
        denied_candidates=_ids(message.denied_candidates, "policy.denied_candidates"),
        default_candidate=id_of(default, "policy.default_candidate") if default else "",
        **fields,
    )


def policy_to(policy: Policy) -> router_service_pb2.Policy:
    """The inverse of policy_from."""
    message = router_service_pb2.Policy(
        allowed_candidates=[PREFIX + i for i in policy.allowed_candidates],
        denied_candidates=[PREFIX + i for i in policy.denied_candidates],
        default_candidate=PREFIX + policy.default_candidate if policy.default_candidate else "",
        **{k: getattr(policy, k) for k in (*AMOUNTS, *LIMITS, *POLICY_WORDS)},
    )
    setattr(message, policy.objective, policy.value)
    return message


def session_from(request: router_service_pb2.RouteRequest) -> Session | None:
    """None where the request names no session; raises InvalidInputError."""
    if not request.HasField("session"):
        return None
    session, problems = request.session, []
    if not 1 <= len(session.id) <= MAX_SESSION_CHARS:
        problems.append(
            Violation(
                "session.id", f"is {len(session.id)} characters; expected 1 to {MAX_SESSION_CHARS}."
            )
        )
    margin = session.switching_margin if session.HasField("switching_margin") else None
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        problems.append(
            Violation(
                "session.switching_margin", f"is {margin}; expected a finite number of at least 0."
            )
        )
    if problems:
        raise InvalidInputError(*problems)
    return Session(session.id, margin)


def instruction_from(request: router_service_pb2.RouteRequest, limit: int) -> tuple[str, int]:
    """(the text to read, characters that are only counted); see Conversation in the proto.

    Raises InvalidInputError where there is nothing to read, or more than MAX_PARTS turns or texts,
    or more than `limit` bytes in all.
    """
    form = request.WhichOneof("instruction")
    if form == "text":
        check_text(request.text, limit)
        return request.text, 0
    if form is None:
        raise InvalidInputError(
            Violation("instruction", "is not set; send text or a conversation.")
        )
    turns = request.conversation.messages
    _check_turns(turns)
    texts = ["\n".join(turn.text_parts) for turn in turns]
    spoken = [i for i, turn in enumerate(turns) if turn.role == router_service_pb2.ROLE_USER]
    if not spoken:
        raise InvalidInputError(
            Violation("conversation", "has no user turn; the last one is what is read.")
        )
    check_text("\n".join(texts), limit, "conversation")
    text = texts[spoken[-1]]
    check_text(text, limit, f"conversation.messages[{spoken[-1]}].text_parts")
    return text, sum(map(len, texts)) - len(text)


def _check_turns(turns: Sequence[router_service_pb2.Message]) -> None:
    """Counted before anything is walked through, as over HTTP: an empty turn takes two bytes."""
    if (count := len(turns)) > MAX_PARTS:
        wrong = f"has {count} turns; at most {MAX_PARTS} are read."
        raise InvalidInputError(Violation("conversation.messages", wrong))
    if (count := sum(len(turn.text_parts) for turn in turns)) > MAX_PARTS:
        wrong = f"has {count} texts in its turns; at most {MAX_PARTS} are read."
        raise InvalidInputError(Violation("conversation.messages", wrong))
    for i, turn in enumerate(turns):
        if turn.role not in ROLES:
            raise InvalidInputError(
                Violation(
                    f"conversation.messages[{i}].role",
                    f"is {turn.role}; expected ROLE_SYSTEM, _USER, _ASSISTANT or _TOOL.",
                )
            )


def _ids(names: Sequence[str], field: str) -> tuple[str, ...]:
    if not names:
        return ()
    if len(names) > MAX_CANDIDATES:
        raise InvalidInputError(
            Violation(field, f"has {len(names)} names; a table holds at most {MAX_CANDIDATES}.")
        )
    return tuple(id_of(name, f"{field}[{i}]") for i, name in enumerate(names))
