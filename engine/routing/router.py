"""One request from end to end: constraints, tokens, forward, kernel, choice."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.api.candidate import DEFAULT_ANSWER_TOKENS, Candidate
from engine.api.errors import (
    DeadlineError,
    NoEligibleCandidateError,
    OverloadedError,
    WaitTooLongError,
)
from engine.api.policy import Kind, Policy, Session
from engine.api.request_context import begin_decision
from engine.bundle.prompt import MAX_INSTRUCTION_TOKENS, Prompt, Tokenizer, render
from engine.bundle.training_set import TrainingSet
from engine.inference.batcher import Batcher, Scored
from engine.inference.cache import ScoreCache
from engine.registry.registry import Registry
from engine.registry.table import Table
from engine.routing import eligibility
from engine.routing.eligibility import Eligible
from engine.routing.ranking import Circumstances, decide
from engine.routing.sessions import Sessions

CHARS_PER_TOKEN = 4.0  # of text that is counted and not read
COUNTED = 32  # candidates of a likely size: of a large table a policy may leave few
# Of the time left at arrival, kept to choose without scores and to send the answer.
SPARE_SHARE, SPARE_S = 0.1, 0.005
Fallback = Literal["off", "deadline", "overload"]


@dataclass(frozen=True)
class Ranked:
    """An eligible candidate. expected_cost_usd is None where no price is known."""

    candidate: Candidate
    probability: float
    expected_cost_usd: float | None
    utility: float


@dataclass(frozen=True)
class Rules:
    """What the server decides where the caller does not say. fallback: see Settings. default: id
    chosen on abstention, "" for none. margin: utility that ends a session's choice."""

    fallback: Fallback = "off"
    default: str = ""
    margin: float = 0.05


@dataclass(frozen=True)
class Reading:
    """What of an instruction bears on a choice beside its scores; see Decision."""

    input_tokens: int
    truncated: bool
    unlikeness: float | None


@dataclass(frozen=True)
class Decision:
    """The choice and what it rests on; all of one revision. timing: phase -> seconds. id: cannot
    be guessed."""

    selected: Candidate
    reason: str
    ranking: tuple[Ranked, ...]
    exclusions: dict[str, str]
    revision: int
    input_tokens: int
    truncated: bool
    unlikeness: float | None
    kind: Kind
    timing: dict[str, float]
    id: str = ""


# (decision with the whole ranking, policy, text, whether it is a dry run); must not fail.
Observe = Callable[[Decision, Policy, str, bool], None]


class Router:
    """Stateless but for what it is given."""

    def __init__(
        self,
        registry: Registry,
        batcher: Batcher,
        tokenizer: Tokenizer,
        training_set: TrainingSet | None = None,
        cache: ScoreCache | None = None,
        sessions: Sessions | None = None,
        rules: Rules = Rules(),
        observe: Observe | None = None,
    ) -> None:
        self._observe = observe
        self._training_set = training_set
        self._cache = ScoreCache(0) if cache is None else cache
        self._registry = registry
        self._batcher = batcher
        self._tokenizer = tokenizer
        self._frame = len(render("", tokenizer).tokens)  # inquiry prompt around every text
        self._sessions = Sessions(0, math.inf) if sessions is None else sessions
        self._rules = rules

    async def route(
        self,
        text: str,
        policy: Policy,
        *,
        context_chars: int = 0,
        deadline: float = float("inf"),
        session: Session | None = None,
        dry_run: bool = False,
    ) -> Decision:
        """Choose for `text`. context_chars: what else the candidate will read, counted only.

        text: see prompt.check_text. deadline: of time.monotonic(). dry_run: the session is read
        and left as it is. Raises InvalidInputError, NoEligibleCandidateError, and what
        Batcher.submit raises where Rules.fallback does not answer in its place.
        """
        begun = time.monotonic()
        decision_id = begin_decision()
        if self._rules.fallback == "off" and not self._cache.useful:
            self._batcher.check_room(self._likely_size(text), deadline)
        ready = self._prepare(text, policy, context_chars)
        prepared = time.monotonic()
        scored, unscored = await self._scored_or_static(ready, deadline)
        scored_at = time.monotonic()
        under = self._circumstances(ready, session, unscored)
        decision = conclude(ready.table, ready.reading, ready.able, policy, scored.p, under)
        if session is not None and not dry_run and decision.kind in ("scored", "session"):
            self._sessions.remember(session.name, decision.selected.id)
        ended = time.monotonic()
        timing = {
            "prepare": prepared - begun,
            "queue": scored.queue_s,
            "forward": scored.forward_s,
            "score": scored.score_s,
            "choose": ended - scored_at,
            "total": ended - begun,
        }
        decision = replace(decision, timing=timing, id=decision_id)
        if self._observe is not None:
            self._observe(decision, policy, text, dry_run)
        if not policy.ranking_size:
            return decision
        return replace(decision, ranking=decision.ranking[: policy.ranking_size])

    def _likely_size(self, text: str) -> int:
        """Rows of a forward for `text`, before it is tokenised and anyone is found eligible."""
        tokens = min(round(len(text) / CHARS_PER_TOKEN), MAX_INSTRUCTION_TOKENS)
        candidates = min(len(self._registry.table().candidates), COUNTED)
        return tokens + self._frame + candidates

    async def _scored_or_static(self, ready: _Ready, deadline: float) -> tuple[Scored, str]:
        """The scores; or mean aptitude, and why."""
        if self._rules.fallback == "off":
            return await self._scored(ready, deadline), ""
        begun = time.monotonic()
        # The loop's clock is time.monotonic(). An answer that is known already is taken at once.
        spare = max(SPARE_S, SPARE_SHARE * (deadline - begun))
        last = None if deadline == math.inf else deadline - spare
        try:
            async with asyncio.timeout_at(last):
                return await self._scored(ready, deadline), ""
        except (TimeoutError, DeadlineError, WaitTooLongError):
            unscored = "the deadline is near"
        except OverloadedError:
            if self._rules.fallback != "overload":
                raise
            unscored = "the queue is full"
        static = ready.table.mean_accuracies[ready.able.rows]
        return Scored(static, time.monotonic() - begun, forward_s=0.0, score_s=0.0), unscored

    async def _scored(self, ready: _Ready, deadline: float) -> Scored:
        tokens, table, rows = ready.prompt.tokens, ready.table, ready.able.rows
        key = self._cache.key(table, tokens, rows)
        known = self._cache.get(key)
        if known is not None:
            return Scored(known, queue_s=0.0, forward_s=0.0, score_s=0.0)
        scored = await self._batcher.submit(tokens, table, rows, deadline)
        self._cache.put(key, scored.p)
        return scored

    def _circumstances(
        self, ready: _Ready, session: Session | None, unscored: str
    ) -> Circumstances:
        rules, unlikeness = self._rules, ready.reading.unlikeness
        if session is None:
            return Circumstances(unlikeness, rules.default, unscored=unscored)
        margin = rules.margin if session.margin is None else session.margin
        kept = self._sessions.candidate(session.name)
        return Circumstances(unlikeness, rules.default, kept, margin, unscored)

    def _prepare(self, text: str, policy: Policy, context_chars: int) -> _Ready:
        table = self._registry.table()  # once: the whole request sees one revision
        eligibility.check(policy, table)
        prompt, reading = read(text, context_chars, self._tokenizer, self._training_set)
        return _Ready(table, prompt, reading, admit(table, reading, policy))


@dataclass(frozen=True)
class _Ready:
    table: Table
    prompt: Prompt
    reading: Reading
    able: Eligible


def read(
    text: str, context_chars: int, tokenizer: Tokenizer, known: TrainingSet | None
) -> tuple[Prompt, Reading]:
    """What the backbone reads of `text`, and what else bears on the choice; see Router.route."""
    prompt = render(text, tokenizer)
    input_tokens = prompt.input_tokens + round(context_chars / CHARS_PER_TOKEN)
    unlikeness = None if known is None else known.unlikeness(prompt.tokens)
    return prompt, Reading(input_tokens, prompt.truncated, unlikeness)


def admit(table: Table, reading: Reading, policy: Policy) -> Eligible:
    """Who may be chosen under a checked `policy`; raises NoEligibleCandidateError."""
    able = eligibility.eligible(table, policy, reading.input_tokens, DEFAULT_ANSWER_TOKENS)
    if not len(able.rows):
        raise NoEligibleCandidateError(able.excluded)
    return able


def conclude(
    table: Table,
    reading: Reading,
    able: Eligible,
    policy: Policy,
    p: NDArray[np.float32],
    under: Circumstances,
) -> Decision:
    """The decision that probabilities p (E,) of the eligible lead to; untimed and unnamed. Raises
    UnavailableError where none of them is finite."""
    able, p = eligibility.scored(table, able, p)
    candidates = [table.candidates[row] for row in able.rows]
    choice = decide([c.id for c in candidates], p, able.costs, policy, under)
    ranking = tuple(
        Ranked(candidates[i], float(p[i]), able.costs[i], choice.utility[i]) for i in choice.order
    )
    return Decision(
        selected=ranking[0].candidate,
        reason=choice.reason,
        ranking=ranking,
        exclusions=able.excluded,
        revision=table.revision,
        input_tokens=reading.input_tokens,
        truncated=reading.truncated,
        unlikeness=reading.unlikeness,
        kind=choice.kind,
        timing={},
    )
