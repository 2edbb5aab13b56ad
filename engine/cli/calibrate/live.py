"""Score traffic by the table that serves: the server's candidates, figures, prices, weights and
adaptation, by dry runs of Route.

Shapes: B requests, M candidates.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.errors import InvalidInputError, Violation
from engine.api.policy import Policy
from engine.api.text_files import read_utf8
from engine.bundle.types import Float64Array
from engine.client.errors import ModelsatClientError
from engine.client.requests import Instruction
from engine.client.results import RouteDecision
from engine.client.sync import Client
from engine.datasets.rows import read_rows
from engine.replay.formats import COLUMNS, FormatReader
from engine.replay.log import PastRequest, expand, past_request

BATCH = 32  # requests at a time, so that others are served in between
MAX_WAIT_S, WAIT_S = 60.0, 0.5  # for a server that is busy
QUALITY = Policy("willingness_to_pay_usd", math.inf)
BUSY = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclass(frozen=True)
class LiveScores:
    """What a server says of B requests.

    names: of the M candidates that were eligible for one. p: (B, M), -inf where one is not
    eligible. costs: (B, M) in US dollars, NaN where unknown. rows: (B,) positions among the
    instructions. skipped: why others have no answer -> how many.
    """

    names: list[str]
    p: Float64Array
    costs: Float64Array
    rows: list[int]
    skipped: Counter[str]


@dataclass(frozen=True)
class LiveMix:
    """What a server decides at one willingness to pay, with its guard.

    shares: candidate -> share of the requests, most first. probability, cost: means, the cost in US
    dollars, NaN if none is known.
    """

    willingness_to_pay_usd: float
    shares: dict[str, float]
    probability: float
    cost: float


def read_traffic(patterns: Sequence[str], limit: int) -> list[Instruction]:
    """Return at most `limit` requests, evenly spaced, of logs as `modelsat replay` reads them, and
    of .txt files with an instruction on each line.

    Raises InvalidInputError: a file cannot be read, or there is no request.
    """
    found: list[Instruction] = []
    for pattern in patterns:
        if pattern.endswith(".txt"):
            try:
                lines = read_utf8(Path(pattern)).splitlines()
            except (OSError, ValueError) as error:
                raise InvalidInputError(Violation(pattern, f"cannot be read ({error}).")) from error
            found += [line for line in lines if line.strip()]
        else:
            for file in expand([pattern]):
                found += _requests(file)
    if not found:
        raise InvalidInputError(Violation(", ".join(patterns), "holds no request."))
    if len(found) <= limit:
        return found
    return [found[i * len(found) // limit] for i in range(limit)]


def _requests(file: Path) -> Iterator[Instruction]:
    reader = FormatReader(None)
    for row in read_rows(file):
        for form, record in reader.requests(row.record) if row.record is not None else ():
            parsed = past_request(record, COLUMNS, None, form)
            if isinstance(parsed, PastRequest):
                yield parsed.conversation


class LiveTable:
    """Asks a server for dry runs of the same instructions."""

    def __init__(
        self,
        client: Client,
        instructions: Sequence[Instruction],
        advance: Callable[[], Any] = lambda: None,
        required_api: str = "",
    ) -> None:
        """advance: called after each answer of `score`. required_api: see Policy."""
        self._client = client
        self._required_api = required_api
        self._instructions = instructions
        self._advance = advance

    def score(self) -> LiveScores:
        """Return the probabilities and costs of all candidates.

        Raises:
            InvalidInputError: no request has an answer.
            ModelsatClientError: the server stays busy or away.
        """
        decisions, skipped = list[tuple[int, RouteDecision]](), Counter[str]()
        for row, result in enumerate(self._ask(QUALITY)):
            self._advance()
            if isinstance(result, RouteDecision):
                decisions.append((row, result))
            else:
                skipped[f"{result.code}: {str(result)[:200]}"] += 1
        if not decisions:
            raise InvalidInputError(Violation("traffic", f"has no answer: {dict(skipped)}."))
        names = sorted({each.candidate for _, d in decisions for each in d.ranking})
        column = {name: i for i, name in enumerate(names)}
        p = np.full((len(decisions), len(names)), -np.inf)
        costs = np.full(p.shape, np.nan)
        for i, (_, decision) in enumerate(decisions):
            for each in decision.ranking:
                p[i, column[each.candidate]] = each.probability
                if each.expected_cost_usd is not None:
                    costs[i, column[each.candidate]] = each.expected_cost_usd
        return LiveScores(names, p, costs, [row for row, _ in decisions], skipped)

    def mix(self, willingness_to_pay_usd: float) -> LiveMix:
        """Return what the server decides; raises ModelsatClientError."""
        policy = Policy("willingness_to_pay_usd", willingness_to_pay_usd, ranking_size=1)
        decided = [d for d in self._ask(policy) if isinstance(d, RouteDecision)]
        counts = Counter(d.selected for d in decided).most_common()
        first = [d.ranking[0] for d in decided]
        costs = [r.expected_cost_usd for r in first if r.expected_cost_usd is not None]
        return LiveMix(
            willingness_to_pay_usd,
            {name: count / len(decided) for name, count in counts},
            float(np.mean([r.probability for r in first])),
            float(np.mean(costs)) if costs else math.nan,
        )

    def _ask(self, policy: Policy) -> Iterator[RouteDecision | ModelsatClientError]:
        policy = replace(policy, required_api=self._required_api)
        for start in range(0, len(self._instructions), BATCH):
            yield from self._batch(self._instructions[start : start + BATCH], policy)

    def _batch(
        self, instructions: Sequence[Instruction], policy: Policy
    ) -> list[RouteDecision | ModelsatClientError]:
        """Return the answers, and wait for a server that is busy."""
        found: list[RouteDecision | ModelsatClientError] = []
        until = time.monotonic() + MAX_WAIT_S
        while len(found) < len(instructions):
            left = instructions[len(found) :]
            for result in self._client.route_many(left, policy, dry_run=True):
                if isinstance(result, ModelsatClientError) and result.code in BUSY:
                    if time.monotonic() > until:
                        raise result
                    time.sleep(result.retry_after_s or WAIT_S)
                    break
                found.append(result)
        return found
