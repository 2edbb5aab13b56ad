"""What a comparison is expected to cost, and a budget that it does not exceed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.api.errors import InvalidInputError, Violation
from engine.aptitude.journal import Reply
from engine.aptitude.llm import ChatPrompt, estimated_tokens
from engine.compare.endpoints import PricedEndpoint
from engine.compare.graders.judges import DEFAULT_RUBRIC, MAX_SHOWN_CHARS, pairs_of
from engine.compare.sampling.instructions import LoggedInstruction

TYPICAL_ANSWER_TOKENS = 350.0  # a few steps of reasoning
VERDICT_TOKENS, FRAME_TOKENS = 150, 200  # of a judge's reply; of its prompt besides the material
MAX_SHOWN_TOKENS = MAX_SHOWN_CHARS // 4


@dataclass(frozen=True)
class JudgePlan:
    """An LLM that grades. kind: pointwise or pairwise. baseline: see PairwiseJudge."""

    endpoint: PricedEndpoint
    kind: Literal["judge", "pairwise"] = "judge"
    rubric: str = DEFAULT_RUBRIC
    baseline: str = ""

    def calls(self, candidates: Sequence[str]) -> int:
        """Verdicts on one instruction."""
        if self.kind == "pairwise":
            return 2 * len(pairs_of(list(candidates), self.baseline))
        return len(candidates)


@dataclass(frozen=True)
class ExpectedCost:
    """What one endpoint is expected to be asked. usd is None if a price is unknown."""

    name: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    usd: float | None


def prompt_for(instruction: LoggedInstruction) -> ChatPrompt:
    """Return what every candidate is asked."""
    return ChatPrompt(instruction.key, instruction.messages, instruction.extra_body)


def expected_costs(
    instructions: Sequence[LoggedInstruction],
    candidates: Sequence[PricedEndpoint],
    judges: Sequence[JudgePlan],
    answered: Mapping[str, Collection[str]],
) -> list[ExpectedCost]:
    """Estimate tokens and cost of each endpoint. answered: candidate -> keys of instructions whose
    replies are in the journal. Verdicts are counted as if none was."""
    costs = []
    for candidate in candidates:
        known = answered.get(candidate.name, ())
        left = [i for i in instructions if i.key not in known]
        tokens = sum(prompt_for(i).tokens for i in left)
        output = round(len(left) * _answer_tokens(candidate))
        costs.append(_expected(candidate, len(left), tokens, output))
    names = [candidate.name for candidate in candidates]
    mean_answer = sum(map(_answer_tokens, candidates)) / max(1, len(candidates))
    for judge in judges:
        calls = judge.calls(names) * len(instructions)
        shown = mean_answer * (2 if judge.kind == "pairwise" else 1)
        own = FRAME_TOKENS + estimated_tokens(judge.rubric) + shown
        read = sum(prompt_for(i).tokens for i in instructions) * judge.calls(names)
        costs.append(
            _expected(judge.endpoint, calls, round(read + calls * own), calls * VERDICT_TOKENS)
        )
    return costs


def _answer_tokens(candidate: PricedEndpoint) -> float:
    return candidate.mean_output_tokens or TYPICAL_ANSWER_TOKENS


def _expected(endpoint: PricedEndpoint, requests: int, read: int, written: int) -> ExpectedCost:
    usd = endpoint.cost_usd(read, written)
    return ExpectedCost(endpoint.name, endpoint.endpoint.model, requests, read, written, usd)


def worst_verdicts_usd(
    instruction: LoggedInstruction, candidates: Sequence[str], judges: Sequence[JudgePlan]
) -> float:
    """Return what the verdicts on one instruction cost at most, before there are replies."""
    total = 0.0
    for judge in judges:
        answers = MAX_SHOWN_TOKENS * (2 if judge.kind == "pairwise" else 1)
        own = FRAME_TOKENS + estimated_tokens(judge.rubric) + answers
        read = own + prompt_for(instruction).tokens
        total += judge.calls(candidates) * worst_reply_usd(judge.endpoint, read)
    return total


def worst_reply_usd(endpoint: PricedEndpoint, input_tokens: int) -> float:
    """Return what a reply costs at most; 0 if a price is unknown."""
    return endpoint.cost_usd(input_tokens, endpoint.max_output_tokens) or 0.0


class Budget:
    """US dollars that may be spent. What is in flight counts with the most that it can cost.

    limit_usd: None means no limit.
    """

    def __init__(self, limit_usd: float | None) -> None:
        self._limit = limit_usd
        self.spent_usd = 0.0
        self._reserved = 0.0

    def reserve(self, usd: float) -> bool:
        """Set `usd` aside; False if that could exceed the limit."""
        total = self.spent_usd + self._reserved + usd
        if usd and self._limit is not None and total > self._limit:
            return False
        self._reserved += usd
        return True

    def release(self, usd: float) -> None:
        """Give back what was set aside, once its replies are counted."""
        self._reserved -= usd

    def count(self, endpoint: PricedEndpoint, reply: Reply) -> None:
        """Count what a reply cost."""
        self.spent_usd += endpoint.cost_of(reply) or 0.0


def require_prices(endpoints: Sequence[PricedEndpoint], flag: str) -> None:
    """Raise InvalidInputError if a price is unknown, as a budget could not hold."""
    if unpriced := [e.name for e in endpoints if e.cost_usd(1, 1) is None]:
        problem = (
            f"needs the prices of {', '.join(unpriced)}: set input_usd_per_million and"
            " output_usd_per_million in the file of --endpoints, 0 if it costs nothing."
        )
        raise InvalidInputError(Violation(flag, problem))
