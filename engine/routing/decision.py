"""From a prompt and its scores to a decision: the steps that Router and replay share.

Pure functions and the values that they return. Shapes: L prompt tokens, E eligible candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS, Candidate
from engine.api.errors import NoEligibleCandidateError
from engine.api.policy import DecisionKind, Policy
from engine.bundle.prompt import Prompt, Tokenizer, render
from engine.bundle.training_set import TrainingSet
from engine.bundle.types import Float32Array
from engine.registry.table import Table
from engine.routing.eligibility import Eligible, drop_non_finite, find_eligible
from engine.routing.ranking import DecisionContext, decide

CHARS_PER_TOKEN = 4.0  # estimates tokens of text that is counted but not tokenized


@dataclass(frozen=True)
class PromptInfo:
    """What is known of a prompt besides its scores.

    input_tokens: tokens that the selected candidate will read, estimated where the text was not
    tokenized. truncated: whether the middle of the text was left out. ood_score:
    out-of-distribution score in [0, 1], None if the bundle has no training statistics.
    """

    input_tokens: int
    truncated: bool
    ood_score: float | None


@dataclass(frozen=True)
class RankingEntry:
    """An eligible candidate with its scores. expected_cost_usd is None if no price is known."""

    candidate: Candidate
    probability: float
    expected_cost_usd: float | None
    utility: float


@dataclass(frozen=True)
class Decision:
    """A selected candidate and what the choice is based on, all of one revision of the table.

    ranking: the eligible candidates, the selected one first. excluded: candidate ID -> reason.
    timing: phase -> seconds. id: 128 random bits in hexadecimal, "" before Router sets it.
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


def prepare_prompt(
    text: str, context_chars: int, tokenizer: Tokenizer, training_set: TrainingSet | None
) -> tuple[Prompt, PromptInfo]:
    """Tokenize `text`, and describe it.

    Args:
        text: the instruction; see engine/bundle/prompt.py for how it is truncated.
        context_chars: characters that the selected candidate will read as well.
        tokenizer: the bundle's.
        training_set: the bundle's statistics for the out-of-distribution score, if it has any.
    """
    prompt = render(text, tokenizer)
    input_tokens = prompt.input_tokens + round(context_chars / CHARS_PER_TOKEN)
    ood_score = None if training_set is None else training_set.ood_score(prompt.tokens)
    return prompt, PromptInfo(input_tokens, prompt.truncated, ood_score)


def select_eligible(table: Table, info: PromptInfo, policy: Policy) -> Eligible:
    """Return the candidates that a valid `policy` admits.

    Raises:
        NoEligibleCandidateError: it admits none; the error has a reason for each candidate.
    """
    eligible = find_eligible(table, policy, info.input_tokens, DEFAULT_OUTPUT_TOKENS)
    if not len(eligible.rows):
        raise NoEligibleCandidateError(eligible.excluded)
    return eligible


def build_decision(
    table: Table,
    info: PromptInfo,
    eligible: Eligible,
    policy: Policy,
    p: Float32Array,
    context: DecisionContext,
) -> Decision:
    """Rank the eligible candidates by their probabilities p (E,); leaves out timing and ID.

    Raises:
        UnavailableError: no probability is finite.
    """
    eligible, p = drop_non_finite(table, eligible, p)
    candidates, ids = [], []
    for row in eligible.rows:
        candidates.append(table.candidates[row])
        ids.append(table.candidates[row].id)
    result = decide(ids, p, eligible.costs, policy, context)
    ranking = []
    for i in result.order:
        ranked = RankingEntry(candidates[i], float(p[i]), eligible.costs[i], result.utility[i])
        ranking.append(ranked)
    return Decision(
        selected=ranking[0].candidate,
        reason=result.reason,
        ranking=tuple(ranking),
        excluded=eligible.excluded,
        revision=table.revision,
        prompt=info,
        kind=result.kind,
        timing={},
        revision_token=table.id.token,
    )
