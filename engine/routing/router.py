"""Route one request: check the policy, tokenize, score, rank."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from engine.adaptation.adaptation import Adaptation
from engine.adaptation.answer_length import AnswerLengths
from engine.adaptation.recent_decisions import RecentDecisions
from engine.api.candidate import Candidate
from engine.api.conversation.tokens import NO_TOKENS, TokenCount, TokenCounter
from engine.api.errors import DeadlineError, OverloadedError, WaitTooLongError
from engine.api.policy import Policy, Session
from engine.api.request_context import DECISION, PRINCIPAL
from engine.bundle.prompt import MAX_INSTRUCTION_TOKENS, Prompt, Tokenizer, render
from engine.bundle.training_set import TrainingSet
from engine.bundle.types import Float32Array
from engine.inference.batcher import Batcher, ScoreResult
from engine.inference.cache import ScoreCache
from engine.registry.registry import Registry
from engine.registry.table import Table
from engine.routing.decision import (
    CHARS_PER_TOKEN,
    Correction,
    Decision,
    PromptInfo,
    TokenizerCounter,
    build_decision,
    escalation,
    harder,
    prepare_prompt,
    select_eligible,
    with_unusualness,
)
from engine.routing.eligibility import Eligible, leave_out, revise_costs, validate_policy
from engine.routing.exploration import NO_EXPLORATION, Exploration, explore
from engine.routing.health import CandidateHealth
from engine.routing.ranking import DecisionContext
from engine.routing.sessions import SessionStore

# Upper bound for the early size estimate: a policy may leave few candidates of a large table.
ASSUMED_ELIGIBLE = 32
# Part of the time left at arrival that is kept to rank without scores and to send the answer.
DEADLINE_RESERVE_SHARE, DEADLINE_RESERVE_S = 0.1, 0.005
# A session stays with the candidate of such a decision. That a drawn one is among them keeps a
# conversation with one candidate.
STICKY_KINDS = ("ranked", "session_affinity", "explored")
FallbackMode = Literal["off", "deadline", "overload"]


@dataclass(frozen=True)
class RouterConfig:
    """Server-wide defaults for what a request leaves unset.

    fallback: when to rank by mean accuracy instead of scores; see Settings. default_candidate: ID
    selected on abstention, "" for none. switching_margin: utility that another candidate must gain
    before a session switches to it. confidence, escalate_after_failures: see Policy.
    exploration: off by default.
    willingness_to_pay_usd: in US dollars per success, of policies without an objective; infinite
    takes the highest probability.
    """

    fallback: FallbackMode = "off"
    default_candidate: str = ""
    switching_margin: float = 0.05
    confidence: float = 0.0
    exploration: Exploration = NO_EXPLORATION
    willingness_to_pay_usd: float = math.inf
    escalate_after_failures: int = 0


# Called with (decision with its whole ranking, policy, text, whether it is a dry run); must not
# raise.
DecisionHook = Callable[[Decision, Policy, str, bool], None]


@dataclass(frozen=True)
class _PreparedRequest:
    table: Table
    prompt: Prompt
    info: PromptInfo
    eligible: Eligible
    admitted_size: int  # by which the batcher admitted it already, 0 if it has not
    lengths: AnswerLengths | None  # expected of answers, None if no length is known


class Router:
    """Select a candidate for each request. For one event loop.

    token_counter: counts context by the bundle's tokenizer; for any thread. health: of the
    candidates, by what is reported.
    """

    def __init__(
        self,
        registry: Registry,
        batcher: Batcher,
        tokenizer: Tokenizer,
        training_set: TrainingSet | None = None,
        cache: ScoreCache | None = None,
        sessions: SessionStore | None = None,
        config: RouterConfig = RouterConfig(),
        on_decision: DecisionHook | None = None,
        new_id: Callable[[], str] | None = None,
        adaptation: Callable[[], Adaptation | None] = lambda: None,
        draw: Callable[[], float] = random.random,
        recent: RecentDecisions | None = None,
        answer_lengths: Callable[[], AnswerLengths | None] = lambda: None,
        health: CandidateHealth | None = None,
    ) -> None:
        self.health = CandidateHealth() if health is None else health
        self._answer_lengths = answer_lengths
        self._recent = recent
        self._draw = draw
        self._adaptation = adaptation
        self._new_id = new_id or partial(secrets.token_hex, 16)
        self._on_decision = on_decision
        self._training_set = training_set
        self._cache = ScoreCache(0) if cache is None else cache
        self._registry = registry
        self._batcher = batcher
        self._tokenizer = tokenizer
        self.token_counter: TokenCounter = TokenizerCounter(tokenizer)
        self._prompt_overhead = len(render("", tokenizer).tokens)  # tokens around every text
        self._sessions = SessionStore(0, math.inf) if sessions is None else sessions
        self._config = config

    async def require_revision(self, token: str, deadline: float) -> None:
        """Wait for a revision; see Registry.require."""
        await self._registry.require(token, deadline)

    async def route(
        self,
        text: str,
        policy: Policy,
        *,
        context: TokenCount = NO_TOKENS,
        deadline: float = float("inf"),
        session: Session | None = None,
        dry_run: bool = False,
        failures: int = 0,
    ) -> Decision:
        """Select a candidate for `text`.

        Args:
            text: the instruction, valid by engine.api.proto.check_text; "" if the request has none,
                then candidates are ranked by mean accuracy.
            policy: the caller's objective and constraints.
            context: tokens that the selected candidate will read besides `text`; they are counted,
                not scored.
            deadline: of time.monotonic(), infinite for none.
            session: requests of one session stick to one candidate.
            dry_run: read the session but leave it unchanged.
            failures: how much failed since the ask; see recent_failures.

        Raises:
            InvalidInputError: the policy is invalid.
            NoEligibleCandidateError: the policy excludes every candidate.
            OverloadedError, DeadlineError, UnavailableError: see Batcher.submit; the first two
                unless RouterConfig.fallback covers them.
        """
        started = time.monotonic()
        decision_id = self._new_id()
        policy = policy.or_willingness(self._config.willingness_to_pay_usd)
        DECISION.set(decision_id)  # so that every log line of this request carries it
        request = self._prepare(text, policy, context, deadline)
        prepared = time.monotonic()
        if text:
            scored, fallback_reason = await self._score_or_fall_back(request, deadline)
        else:
            scored, fallback_reason = _levels(request, 0.0), "the request has no text to route by"
        scored_at = time.monotonic()
        info = with_unusualness(request.info, scored.unusualness)
        info = replace(info, failures=failures) if failures else info
        conditions = self._context(info, session, fallback_reason, policy)
        correction = None if fallback_reason else self._correction(scored)
        eligible, p = self._with_expected_costs(request, scored, policy)
        p = harder(p, failures)
        eligible = self._with_cached_input(request, eligible, session)
        decision = build_decision(request.table, info, eligible, policy, p, conditions, correction)
        if self._config.exploration.share and not conditions.escalation:
            draw = None if dry_run else self._draw()
            decision = explore(decision, self._config.exploration, draw)
        if session is not None and not dry_run and decision.kind in STICKY_KINDS:
            self._sessions.put(
                session.name, decision.selected.id, PRINCIPAL.get(), info.input_tokens
            )
        ended = time.monotonic()
        timing = {
            "tokenize": prepared - started,
            "queue": scored.queue_s,
            "inference": scored.inference_s,
            "scoring": scored.scoring_s,
            "selection": ended - scored_at,
            "total": ended - started,
        }
        decision = replace(decision, timing=timing, id=decision_id)
        if not (dry_run or fallback_reason):
            self._remember(request, scored, decision)
        if self._on_decision is not None:
            self._on_decision(decision, policy, text, dry_run)
        if not policy.ranking_size:
            return decision
        return replace(decision, ranking=decision.ranking[: policy.ranking_size])

    def is_registered(self, identifier: str) -> bool:
        """Whether there is a candidate with that ID."""
        return identifier in self._registry.table().rows

    def standing_candidate(self, policy: Policy, session: Session | None = None) -> Candidate:
        """Return the candidate for a request that leaves no choice to make, such as one that counts
        tokens: the session's, else the default one, else that of the highest mean accuracy.

        It leaves no trace. Of those that are not eligible none is returned.

        Raises:
            InvalidInputError, NoEligibleCandidateError: see route.
        """
        table = self._registry.table()
        validate_policy(policy, table)
        rows = self._eligible(table, PromptInfo(0, False, None), policy).rows
        current = "" if session is None else self._sessions.get(session.name, PRINCIPAL.get())
        for name in (current, policy.default_candidate, self._config.default_candidate):
            if (row := table.rows.get(name)) is not None and row in rows:
                return table.candidates[row]
        best: int = rows[table.mean_accuracies[rows].argmax()]
        return table.candidates[best]

    def _prepare(
        self, text: str, policy: Policy, context: TokenCount, deadline: float
    ) -> _PreparedRequest:
        table = self._registry.table()  # read once, so that the request sees one revision
        # A request that will be refused should cost as little as possible, so it is refused by an
        # estimate of its size, before it is tokenized. Not if the answer may be in the cache.
        size = 0
        if text and self._config.fallback == "off" and not self._cache.useful:
            tokens = min(round(len(text) / CHARS_PER_TOKEN), MAX_INSTRUCTION_TOKENS)
            candidates = min(len(table.candidates), ASSUMED_ELIGIBLE)
            size = tokens + self._prompt_overhead + candidates
            self._batcher.check_admission(size, deadline)
        validate_policy(policy, table)
        prompt, info = prepare_prompt(text, context, self._tokenizer, self._training_set)
        lengths = self._answer_lengths()
        eligible = self._eligible(table, info, policy, lengths)
        return _PreparedRequest(table, prompt, info, eligible, size, lengths)

    def _eligible(
        self, table: Table, info: PromptInfo, policy: Policy, lengths: AnswerLengths | None = None
    ) -> Eligible:
        """Return the candidates that a valid policy admits, by what was reported of them as well;
        raises NoEligibleCandidateError."""
        principal = PRINCIPAL.get()
        eligible = select_eligible(
            table,
            info,
            policy,
            None if lengths is None else lengths.mean,
            lambda candidate: self.health.latency_ms(candidate.id, principal),
        )
        return leave_out(table, eligible, self.health.set_aside(principal))

    async def _score_or_fall_back(
        self, request: _PreparedRequest, deadline: float
    ) -> tuple[ScoreResult, str]:
        """Return scores and "", or mean accuracies and why there are no scores."""
        if self._config.fallback == "off":
            return await self._score(request, deadline), ""
        started = time.monotonic()
        reserve = max(DEADLINE_RESERVE_S, DEADLINE_RESERVE_SHARE * (deadline - started))
        try:
            # The loop's clock is time.monotonic(). A cached answer is returned without a wait.
            async with asyncio.timeout_at(None if deadline == math.inf else deadline - reserve):
                return await self._score(request, deadline), ""
        except (TimeoutError, DeadlineError, WaitTooLongError):
            reason = "the deadline is near"
        except OverloadedError:
            if self._config.fallback != "overload":
                raise
            reason = "the queue is full"
        return _levels(request, time.monotonic() - started), reason

    async def _score(self, request: _PreparedRequest, deadline: float) -> ScoreResult:
        tokens, table, rows = request.prompt.tokens, request.table, request.eligible.rows
        key = self._cache.key(table, tokens, rows, PRINCIPAL.get())
        cached = self._cache.get(key)
        if cached is not None:
            p, embedding = cached
            unusualness = None if table.match is None else table.match.unusualness(embedding)
            return ScoreResult(p, 0.0, 0.0, 0.0, embedding, unusualness=unusualness)
        scored = await self._batcher.submit(
            tokens, table, rows, deadline, admitted_size=request.admitted_size
        )
        if scored.embedding is not None:
            self._cache.put(key, scored.p, scored.embedding)
        return scored

    def _with_expected_costs(
        self, request: _PreparedRequest, scored: ScoreResult, policy: Policy
    ) -> tuple[Eligible, Float32Array]:
        """Return the eligible candidates and their p, costs by the length of answers to similar
        instructions if some are known."""
        lengths, table = request.lengths, request.table
        if lengths is None or scored.embedding is None:
            return request.eligible, scored.p
        candidates = [table.candidates[row] for row in request.eligible.rows]
        expected = lengths.expected(scored.embedding, candidates)
        costs = [
            None if tokens is None else candidate.cost_usd(request.info.input_tokens, tokens)
            for candidate, tokens in zip(candidates, expected, strict=True)
        ]
        return revise_costs(table, request.eligible, scored.p, policy, costs)

    def _with_cached_input(
        self, request: _PreparedRequest, eligible: Eligible, session: Session | None
    ) -> Eligible:
        """Return the eligible candidates, at a lower cost the one that the session uses: it would
        read the conversation so far from its provider's prompt cache."""
        if session is None:
            return eligible
        principal = PRINCIPAL.get()
        current = request.table.rows.get(self._sessions.get(session.name, principal))
        tokens = self._sessions.cached_tokens(session.name, principal, request.info.input_tokens)
        if current is None or not tokens:
            return eligible
        saving = request.table.candidates[current].cache_saving_usd(tokens)
        costs = tuple(
            cost if cost is None or row != current else max(0.0, cost - saving)
            for row, cost in zip(eligible.rows.tolist(), eligible.costs, strict=True)
        )
        return replace(eligible, costs=costs)

    def _remember(self, request: _PreparedRequest, scored: ScoreResult, decision: Decision) -> None:
        """Keep what an outcome of the decision needs to be learned from."""
        if self._recent is None or scored.embedding is None:
            return
        propensity = 1.0 if decision.propensity is None else decision.propensity
        instruction = self._recent.scored(
            request.table,
            request.eligible.rows,
            scored.p,
            scored.embedding,
            decision.selected.id,
            decision.kind == "explored",
            propensity,
            self._match(request, scored),
        )
        self._recent.add(decision.id, PRINCIPAL.get(), instruction, decision.adaptation_id)

    @staticmethod
    def _match(request: _PreparedRequest, scored: ScoreResult) -> Float32Array | None:
        """Return the log-odds (E,) that the match added; of a cached result they are not kept."""
        match = request.table.match
        if scored.match is not None or match is None or scored.embedding is None:
            return scored.match
        added: Float32Array = match.log_odds(scored.embedding[None, :])[0]
        return np.asarray(added[request.eligible.rows])

    def _context(
        self, info: PromptInfo, session: Session | None, fallback_reason: str, policy: Policy
    ) -> DecisionContext:
        config, limit = self._config, policy.escalate_after_failures
        current, margin = "", config.switching_margin
        if session is not None:
            margin = margin if session.margin is None else session.margin
            current = self._sessions.get(session.name, PRINCIPAL.get())
        return DecisionContext(
            info.ood_score,
            config.default_candidate,
            current,
            margin,
            fallback_reason,
            config.confidence,
            escalation(info.failures, config.escalate_after_failures if limit is None else limit),
        )

    def _correction(self, scored: ScoreResult) -> Correction | None:
        """Return the correction by the adaptation that is served now, if there is one."""
        adaptation = self._adaptation()
        if adaptation is None or not adaptation.decides or scored.embedding is None:
            return None
        return Correction(adaptation, scored.embedding)


def _levels(request: _PreparedRequest, queue_s: float) -> ScoreResult:
    """Return mean accuracies in place of scores."""
    means = request.table.mean_accuracies[request.eligible.rows]
    return ScoreResult(means, queue_s, inference_s=0.0, scoring_s=0.0)
