"""One request from end to end: constraints, tokens, forward, kernel, choice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine import policy as policies
from engine.contract.candidate import DEFAULT_ANSWER_TOKENS, Candidate
from engine.contract.correlation import begin_decision
from engine.contract.errors import NoEligibleCandidateError
from engine.contract.prompt import Prompt, Tokenizer, render
from engine.contract.training_set import TrainingSet
from engine.policy import Eligible, Policy
from engine.registry.registry import Registry
from engine.registry.table import Table
from engine.scoring.batcher import Batcher, Scored
from engine.scoring.cache import ScoreCache

# Answer length where a candidate's own was never measured; about what instruct models write.
CHARS_PER_TOKEN = 4.0  # of text that is counted and not read


@dataclass(frozen=True)
class Ranked:
    """An eligible candidate. expected_cost_usd is None where no price is known."""

    candidate: Candidate
    probability: float
    expected_cost_usd: float | None
    utility: float


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
        observe: Observe | None = None,
    ) -> None:
        self._observe = observe
        self._training_set = training_set
        self._cache = ScoreCache(0) if cache is None else cache
        self._registry = registry
        self._batcher = batcher
        self._tokenizer = tokenizer

    async def route(
        self,
        text: str,
        policy: Policy,
        *,
        context_chars: int = 0,
        deadline: float = float("inf"),
        dry_run: bool = False,
    ) -> Decision:
        """Choose for `text`. context_chars: what else the candidate will read, counted only.

        text: see prompt.check_text. deadline: of time.monotonic(). Raises InvalidInputError,
        NoEligibleCandidateError, and what Batcher.submit raises.
        """
        begun = time.monotonic()
        decision_id = begin_decision()
        ready = self._prepare(text, policy, context_chars)
        prepared = time.monotonic()
        scored = await self._scored(ready, deadline)
        scored_at = time.monotonic()
        decision = _decide(ready, policy, scored)
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

    async def _scored(self, ready: _Ready, deadline: float) -> Scored:
        tokens, table, rows = ready.prompt.tokens, ready.table, ready.able.rows
        key = self._cache.key(table, tokens, rows)
        known = self._cache.get(key)
        if known is not None:
            return Scored(known, queue_s=0.0, forward_s=0.0, score_s=0.0)
        scored = await self._batcher.submit(tokens, table, rows, deadline)
        self._cache.put(key, scored.p)
        return scored

    def _prepare(self, text: str, policy: Policy, context_chars: int) -> _Ready:
        table = self._registry.table()  # once: the whole request sees one revision
        policies.check(policy, table)
        prompt = render(text, self._tokenizer)
        input_tokens = prompt.input_tokens + round(context_chars / CHARS_PER_TOKEN)
        able = policies.eligible(table, policy, input_tokens, DEFAULT_ANSWER_TOKENS)
        if not len(able.rows):
            raise NoEligibleCandidateError(able.excluded)
        known = self._training_set
        unlikeness = None if known is None else known.unlikeness(prompt.tokens)
        return _Ready(table, prompt, input_tokens, able, unlikeness)


@dataclass(frozen=True)
class _Ready:
    table: Table
    prompt: Prompt
    input_tokens: int
    able: Eligible
    unlikeness: float | None


def _decide(ready: _Ready, policy: Policy, scored: Scored) -> Decision:
    candidates = [ready.table.candidates[row] for row in ready.able.rows]
    costs = ready.able.costs
    choice = policies.choose([c.id for c in candidates], scored.p, costs, policy)
    ranking = tuple(
        Ranked(candidates[i], float(scored.p[i]), costs[i], choice.utility[i]) for i in choice.order
    )
    return Decision(
        selected=ranking[0].candidate,
        reason=choice.reason,
        ranking=ranking,
        exclusions=ready.able.excluded,
        revision=ready.table.revision,
        input_tokens=ready.input_tokens,
        truncated=ready.prompt.truncated,
        unlikeness=ready.unlikeness,
        timing={},
    )
