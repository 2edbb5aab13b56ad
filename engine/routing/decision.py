"""From a prompt and its scores to a decision: the steps that Router and replay share.

Pure functions and the values that they return. Shapes: L prompt tokens, E eligible candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.adaptation.adaptation import Adaptation, CorrectedScores
from engine.api.candidate import DEFAULT_OUTPUT_TOKENS, Candidate
from engine.api.conversation.progress import RECENT_RESULTS
from engine.api.conversation.tokens import TokenCount
from engine.api.errors import NoEligibleCandidateError
from engine.api.policy import DecisionKind, Policy
from engine.bundle.prompt import (
    MAX_CHARS_PER_TOKEN,
    MAX_INSTRUCTION_TOKENS,
    Prompt,
    Tokenizer,
    render,
)
from engine.bundle.training_set import TrainingSet
from engine.bundle.types import Float32Array
from engine.registry.table import Table
from engine.routing.eligibility import (
    Eligible,
    Latency,
    OutputTokens,
    drop_non_finite,
    find_eligible,
)
from engine.routing.guard import Evidence, with_level_errors
from engine.routing.ranking import DecisionContext, decide

# What failed on the way says that a task is harder than its words show.
# No outcomes of agents' turns were measured: half the odds for each failure is an assumption.
ODDS_FACTOR, MAX_HALVINGS = 0.5, 3
MIN_COVERAGE = 0.5  # of an instruction by the memory, for a guarded decision
CHARS_PER_TOKEN = 4.0  # estimates tokens before the text is tokenized
CLIPPED_CHARS = 2 * MAX_INSTRUCTION_TOKENS * MAX_CHARS_PER_TOKEN


@dataclass(frozen=True)
class PromptInfo:
    """What is known of a prompt besides its scores.

    input_tokens: tokens that the selected candidate will read, estimated where the text was not
    tokenized. truncated: whether the middle of the text was left out. ood_score:
    out-of-distribution score in [0, 1], None if the bundle has no training statistics.
    token_count_method: "tokenizer", "estimate" or "mixed". uncounted: what input_tokens leaves out
    because its size is unknown.
    failures: how much failed since the ask; see engine/api/conversation/progress.py.
    """

    input_tokens: int
    truncated: bool
    ood_score: float | None
    token_count_method: str = "tokenizer"  # noqa: S105 - no password
    uncounted: tuple[str, ...] = ()
    failures: int = 0


@dataclass(frozen=True)
class RankingEntry:
    """An eligible candidate with its scores. expected_cost_usd is None if no price is known.

    base_probability: before the correction. standard_error: of `probability`. similar_outcomes:
    effective number of the candidate's remembered outcomes on similar instructions. The three are
    None if no adaptation corrected the probability.
    """

    candidate: Candidate
    probability: float
    expected_cost_usd: float | None
    utility: float
    base_probability: float | None = None
    standard_error: float | None = None
    similar_outcomes: float | None = None


@dataclass(frozen=True)
class Decision:
    """A selected candidate and what the choice is based on, all of one revision of the table.

    ranking: the eligible candidates, the selected one first. excluded: candidate ID -> reason.
    timing: phase -> seconds. id: 128 random bits in hexadecimal, "" before Router sets it.
    adaptation_id: of the adaptation that was used, "" if none was. unadapted: ID of the candidate
    that would be selected without it, "" if none was used. propensity: the probability
    with which the candidate was drawn, None if the server does not explore.
    """

    selected: Candidate
    reason: str
    ranking: tuple[RankingEntry, ...]
    excluded: dict[str, str]
    revision: int
    prompt: PromptInfo
    kind: DecisionKind
    timing: dict[str, float]
    id: str = ""
    revision_token: str = ""
    adaptation_id: str = ""
    unadapted: str = ""
    propensity: float | None = None


@dataclass(frozen=True)
class Correction:
    """An adaptation, and the embedding (D,) of the instruction whose probabilities it corrects."""

    adaptation: Adaptation
    embedding: Float32Array

    def apply(self, p: Float32Array, ids: Sequence[str]) -> CorrectedScores | None:
        """Correct the probabilities p (E,) of candidates; None if a result is not finite."""
        corrected = self.adaptation.correct(self.embedding, p, ids)
        return corrected if np.isfinite(corrected.p).all() else None


class TokenizerCounter:
    """Count tokens by the bundle's tokenizer; see TokenCounter."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def prepare_prompt(
    text: str, context: TokenCount, tokenizer: Tokenizer, training_set: TrainingSet | None
) -> tuple[Prompt, PromptInfo]:
    """Tokenize `text`, and describe it.

    Args:
        text: the instruction; see engine/bundle/prompt.py for how it is truncated.
        context: tokens that the selected candidate will read as well.
        tokenizer: the bundle's.
        training_set: the bundle's statistics for the out-of-distribution score, if it has any.
    """
    prompt = render(text, tokenizer)
    # A text this long is truncated in the middle, and its length estimated from the rest.
    own = "mixed" if len(text) > CLIPPED_CHARS else "tokenizer"
    method = own if not context.tokens or context.method == own else "mixed"
    ood_score = training_set.ood_score(prompt.tokens) if training_set and text else None
    return prompt, PromptInfo(
        prompt.input_tokens + context.tokens,
        prompt.truncated,
        ood_score,
        method,
        context.unknown,
    )


def with_unusualness(info: PromptInfo, unusualness: float | None) -> PromptInfo:
    """Return `info` with an out-of-distribution score that sees more than the tokens, which may be
    common ones in a log or a dump. unusualness: see TaskMatch, None if it is unknown."""
    if unusualness is None or info.ood_score is None:
        return info
    return replace(info, ood_score=max(info.ood_score, unusualness))


def select_eligible(
    table: Table,
    info: PromptInfo,
    policy: Policy,
    known_output_tokens: OutputTokens | None = None,
    known_latency: Latency | None = None,
) -> Eligible:
    """Return the candidates that a valid `policy` admits; see find_eligible.

    Raises:
        NoEligibleCandidateError: it admits none; the error has a reason for each candidate.
    """
    eligible = find_eligible(
        table,
        policy,
        info.input_tokens,
        DEFAULT_OUTPUT_TOKENS,
        known_output_tokens,
        known_latency,
    )
    if not len(eligible.rows):
        raise NoEligibleCandidateError(eligible.excluded)
    return eligible


def harder(p: Float32Array, failures: int) -> Float32Array:
    """Return the probabilities p (E,) with odds that are halved for each failure, three at most.

    All candidates share the factor, so their order stays. But of high probabilities the lower one
    falls faster, so that a better candidate is worth more than before.
    """
    if failures <= 0:
        return p
    factor = ODDS_FACTOR ** min(failures, MAX_HALVINGS)
    return np.asarray(p * factor / (1 - p * (1 - factor)), dtype=np.float32)


def escalation(failures: int, limit: int) -> str:
    """Say why the most probable candidate is to be chosen; "" if it is not. limit: 0 for never."""
    if not 0 < limit <= failures:
        return ""
    return (
        f"{failures} of the last {RECENT_RESULTS} steps on this task failed, {limit} is the limit"
    )


def build_decision(
    table: Table,
    info: PromptInfo,
    eligible: Eligible,
    policy: Policy,
    p: Float32Array,
    context: DecisionContext,
    correction: Correction | None = None,
) -> Decision:
    """Rank the eligible candidates by their probabilities p (E,); leaves out timing and ID.

    correction: None ranks by p as it is.

    Raises:
        UnavailableError: no probability is finite.
    """
    eligible, p = drop_non_finite(table, eligible, p)
    candidates = [table.candidates[row] for row in eligible.rows]
    ids, costs = [candidate.id for candidate in candidates], eligible.costs
    result = decide(ids, p, costs, policy, context)
    corrected, unadapted = None if correction is None else correction.apply(p, ids), ""
    if corrected is not None and correction is not None:
        unadapted = ids[result.order[0]]
        evidence = None
        is_asked = policy.confidence or (policy.confidence is None and context.confidence)
        # Far from what is remembered, what is best on average there says nothing.
        if is_asked and corrected.coverage >= MIN_COVERAGE:
            mean_p = correction.adaptation.mean_probabilities(ids)
            errors = with_level_errors(
                corrected.standard_error,
                table.level_errors[eligible.rows],
                corrected.similar_outcomes,
            )
            if np.isnan(mean_p).all():
                evidence = Evidence(p, errors, "the weights' choice")
            else:  # one without outcomes is not the best on average
                evidence = Evidence(np.nan_to_num(mean_p), errors)
        result = decide(ids, corrected.p, costs, policy, context, evidence)
    ranking = tuple(
        _entry(i, candidates[i], p, costs[i], result.utility[i], corrected) for i in result.order
    )
    return Decision(
        selected=ranking[0].candidate,
        reason=result.reason,
        ranking=ranking,
        excluded=eligible.excluded,
        revision=table.revision,
        prompt=info,
        kind=result.kind,
        timing={},
        revision_token=table.id.token,
        adaptation_id=correction.adaptation.id if correction and corrected else "",
        unadapted=unadapted,
    )


def _entry(
    i: int,
    candidate: Candidate,
    p: Float32Array,
    cost: float | None,
    utility: float,
    corrected: CorrectedScores | None,
) -> RankingEntry:
    """Return the entry of position i."""
    base = float(p[i])
    if corrected is None:
        return RankingEntry(candidate, base, cost, utility)
    return RankingEntry(
        candidate,
        float(corrected.p[i]),
        cost,
        utility,
        base,
        float(corrected.standard_error[i]),
        float(corrected.similar_outcomes[i]),
    )
