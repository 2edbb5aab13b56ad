"""What is done with a chunk of requests: one forward for each instruction, then every policy on the
same probabilities, by the functions that Router.route is made of.

Letters: n requests of a chunk, M candidates of the table, P policies.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS, Candidate
from engine.api.errors import BundleError, InvalidInputError, NoEligibleCandidateError, Violation
from engine.api.policy import DecisionKind, Policy
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import Tokenizer as AnyTokenizer
from engine.bundle.training_set import TrainingSet, load_training_set
from engine.bundle.types import FloatArray, Int64Array
from engine.inference.backend import Backend, ScoringHead
from engine.inference.devices import open_backend
from engine.registry.onnx_encoder import load_encoder
from engine.registry.table import Table, make_table
from engine.replay.log import PastRequest
from engine.routing.decision import (
    PromptInfo,
    build_decision,
    prepare_prompt,
    select_eligible,
)
from engine.routing.ranking import DecisionContext

KINDS: tuple[DecisionKind, ...] = get_args(DecisionKind)
NOBODY = -1


@dataclass(frozen=True)
class Scores:
    """p: (n, M) float32. input_tokens: (n,). ood_score: (n,), NaN where unknown."""

    p: NDArray[np.float32]
    input_tokens: Int64Array
    ood_score: NDArray[np.float64]


@dataclass(frozen=True)
class Decisions:
    """(n, P) each. choice: table row, NOBODY where no candidate was eligible. p: of the choice.
    cost: its expected cost in US dollars, NaN where unknown. kind: index of KINDS."""

    choice: NDArray[np.int16]
    p: NDArray[np.float32]
    cost: NDArray[np.float64]
    kind: NDArray[np.int8]


@dataclass(frozen=True)
class Work:
    """instructions: (text, context_chars) each. scores: where they are known already."""

    number: int
    instructions: tuple[tuple[str, int], ...]
    scores: Scores | None


@dataclass(frozen=True)
class Done:
    """The answer to the Work of that number."""

    number: int
    scores: Scores
    decisions: Decisions


@dataclass(frozen=True)
class Plan:
    """What a worker is told. manifest_hash: sha256 of the bundle's manifest.json, which holds that
    of every other file."""

    bundle: Path
    manifest_hash: str
    table: Table
    policies: Mapping[str, Policy]


class Scorer:
    """Scores and decides; for one thread. It keeps nothing from one chunk to the next."""

    def __init__(
        self,
        table: Table,
        policies: Sequence[Policy],
        tokenizer: AnyTokenizer,
        backend: Backend,
        head: ScoringHead,
        known: TrainingSet | None = None,
    ) -> None:
        self._table = table
        self._policies = policies
        self._tokenizer = tokenizer
        self._backend = backend
        self._head = head
        self._known = known

    def do(self, work: Work) -> Done:
        """Raises UnavailableError where the forward fails."""
        scores = self._score(work.instructions) if work.scores is None else work.scores
        return Done(work.number, scores, decide_all(self._table, self._policies, scores))

    def _score(self, instructions: Sequence[tuple[str, int]]) -> Scores:
        """Alone in its forward, an instruction has the same p whatever stands beside it in the log;
        equal ones are scored once."""
        everyone = np.arange(len(self._table.candidates))
        seen: dict[bytes, NDArray[np.float32]] = {}
        p = np.empty((len(instructions), len(everyone)), dtype=np.float32)
        infos = []
        for i, (text, context_chars) in enumerate(instructions):
            prompt, info = prepare_prompt(text, context_chars, self._tokenizer, self._known)
            infos.append(info)
            key = prompt.tokens.tobytes()
            if key not in seen:
                seen[key] = self._backend.probabilities(
                    [prompt.tokens], self._table.embeddings, everyone, self._head
                ).p[0]
            p[i] = seen[key]
        unlike = [math.nan if r.ood_score is None else r.ood_score for r in infos]
        return Scores(p, np.array([r.input_tokens for r in infos]), np.array(unlike))


class Worker:
    """What runs in a process or an actor; it opens the bundle with its first chunk, so that what is
    wrong with it reaches the one who waits for that chunk."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._scorer: Scorer | None = None

    def do(self, work: Work) -> Done:
        """See Scorer.do and open_scorer."""
        if self._scorer is None:
            self._scorer = open_scorer(self._plan)
        return self._scorer.do(work)


def decide_all(table: Table, policies: Sequence[Policy], scores: Scores) -> Decisions:
    """Every policy on every row of `scores`."""
    shape = (len(scores.p), len(policies))
    found = Decisions(
        np.full(shape, NOBODY, dtype=np.int16),
        np.full(shape, np.nan, dtype=np.float32),
        np.full(shape, np.nan),
        np.zeros(shape, dtype=np.int8),
    )
    for i in range(shape[0]):
        strange = float(scores.ood_score[i])
        info = PromptInfo(
            int(scores.input_tokens[i]), False, None if strange != strange else strange
        )
        context = DecisionContext(info.ood_score)
        for j, policy in enumerate(policies):
            try:
                eligible = select_eligible(table, info, policy)
            except NoEligibleCandidateError:
                continue
            p = scores.p[i, eligible.rows]
            decision = build_decision(table, info, eligible, policy, p, context)
            first = decision.ranking[0]
            found.choice[i, j] = table.rows[first.candidate.id]
            found.p[i, j] = first.probability
            if first.expected_cost_usd is not None:
                found.cost[i, j] = first.expected_cost_usd
            found.kind[i, j] = KINDS.index(decision.kind)
    return found


def open_table(bundle: Path, candidates: Sequence[Candidate]) -> Table:
    """The table that a server which begins with `candidates` serves. Raises BundleError."""
    manifest = read_manifest(bundle, "bundle")
    encoder = load_encoder(bundle, load_arrays(bundle))
    entries = [(c, encoder.encode(c)) for c in candidates]
    return make_table(1, entries, manifest.width)


def make_plan(bundle: Path, table: Table, policies: Mapping[str, Policy]) -> Plan:
    """The plan for workers that find the same bundle under the same path."""
    return Plan(bundle.resolve(), _manifest_hash(bundle), table, policies)


def open_scorer(plan: Plan) -> Scorer:
    """A scorer on one thread of the CPU: a process for each core is faster than one session on all
    of them, and p does not hang on the number of cores (docs/how-to/replay.md).

    Raises BundleError where this machine has no bundle there, or another one.
    """
    manifest, arrays = read_manifest(plan.bundle, "bundle"), load_arrays(plan.bundle)
    if (found := _manifest_hash(plan.bundle)) != plan.manifest_hash:
        raise BundleError(
            f"{plan.bundle} on {platform.node()} is another bundle: its manifest.json has sha256"
            f" {found[:12]}, expected {plan.manifest_hash[:12]}; give every node the same."
        )
    return Scorer(
        plan.table,
        list(plan.policies.values()),
        Tokenizer.from_file(str(plan.bundle / "tokenizer.json")),
        open_backend(plan.bundle, manifest, "cpu", threads=1),
        ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration),
        load_training_set(plan.bundle),
    )


def _manifest_hash(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


@dataclass(frozen=True)
class Columns:
    """(N,) each. used: table row of what answered, NOBODY where the table has none of that name or
    none was logged. used_p, used_cost: what scoring and price list say of it. logged_cost, outcome,
    time: see PastRequest. NaN is unknown. decisions: (N, P)."""

    used: NDArray[np.int16]
    used_p: FloatArray
    used_cost: FloatArray
    logged_cost: FloatArray
    outcome: FloatArray
    time: FloatArray
    input_tokens: NDArray[np.int64]
    decisions: Decisions


@dataclass
class Names:
    """From the log's names of candidates to rows of `table`, and those it does not have."""

    table: Table
    rows: dict[str, int]
    unknown: Counter[str] = field(default_factory=Counter)
    unnamed: int = 0

    def row(self, name: str) -> int:
        """NOBODY where there is none, which is counted."""
        found = self.rows.get(name, NOBODY)
        if not name:
            self.unnamed += 1
        elif found == NOBODY:
            self.unknown[name] += 1
        return found


def names_of(table: Table, aliases: Sequence[str]) -> Names:
    """Candidates go by their ids, display names and `aliases` (LOGGED=ID).

    Raises InvalidInputError where an alias leads nowhere.
    """
    rows = {c.display_name: row for row, c in enumerate(table.candidates) if c.display_name}
    rows |= table.rows
    problems = []
    for alias in aliases:
        logged, _, identifier = alias.rpartition("=")
        if not logged or identifier not in table.rows:
            problems.append(
                Violation(
                    "--candidate-alias", f"is {alias!r}; expected LOGGED=ID, ID of the table."
                )
            )
        else:
            rows[logged] = table.rows[identifier]
    if problems:
        raise InvalidInputError(*problems)
    return Names(table, rows)


def columns_of(
    requests: Sequence[PastRequest], names: Names, scores: Scores, decisions: Decisions
) -> Columns:
    """The columns of one chunk."""
    used = np.array([names.row(r.used) for r in requests], dtype=np.int16)
    costs = np.full(len(used), np.nan)
    for i, row in enumerate(used):
        if row != NOBODY:
            candidate = names.table.candidates[row]
            tokens = int(scores.input_tokens[i])
            cost = candidate.expected_cost_usd(tokens, DEFAULT_OUTPUT_TOKENS)
            costs[i] = math.nan if cost is None else cost
    p = scores.p[np.arange(len(used)), used].astype(np.float64)
    return Columns(
        used,
        np.where(used == NOBODY, np.nan, p),
        costs,
        np.array([r.cost for r in requests]),
        np.array([r.outcome for r in requests]),
        np.array([r.time for r in requests]),
        scores.input_tokens,
        decisions,
    )


def joined(parts: Mapping[int, Columns]) -> Columns:
    """All chunks in the order of their numbers."""
    ordered = [parts[number] for number in sorted(parts)]

    def whole(of: Sequence[object]) -> dict[str, NDArray[np.generic]]:
        keys = [k for k, v in vars(of[0]).items() if isinstance(v, np.ndarray)]
        return {k: np.concatenate([getattr(part, k) for part in of]) for k in keys}

    decisions = Decisions(**whole([c.decisions for c in ordered]))  # type: ignore[arg-type]
    return Columns(**whole(ordered), decisions=decisions)  # type: ignore[arg-type]
