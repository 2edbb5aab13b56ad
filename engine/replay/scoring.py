"""Process a chunk of requests: one forward pass per instruction, then every policy on its scores.

Policies decide by the functions that Router.route is made of.

Shapes: n requests of a chunk, N of the log, M candidates of the table, P policies.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS, Candidate
from engine.api.conversation.conversation import Conversation, Needs
from engine.api.conversation.reading import read
from engine.api.errors import BundleError, InvalidInputError, NoEligibleCandidateError, Violation
from engine.api.policy import DecisionKind, Policy
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import Tokenizer as AnyTokenizer
from engine.bundle.training_set import TrainingSet, load_training_set
from engine.bundle.types import FloatArray, Int64Array
from engine.inference.backend import Backend, ScoringHead
from engine.inference.devices import open_backend
from engine.registry.matching.task_match import add_log_odds
from engine.registry.onnx_encoder import load_encoder
from engine.registry.table import Table, make_table
from engine.replay.log import PastRequest
from engine.routing.decision import (
    PromptInfo,
    TokenizerCounter,
    build_decision,
    prepare_prompt,
    select_eligible,
    with_unusualness,
)
from engine.routing.ranking import DecisionContext

KINDS: tuple[DecisionKind, ...] = get_args(DecisionKind)
NO_CANDIDATE = -1


@dataclass(frozen=True)
class Scores:
    """Scores of a chunk. p: (n, M). input_tokens: (n,). ood_score: (n,), NaN if unknown."""

    p: NDArray[np.float32]
    input_tokens: Int64Array
    ood_score: NDArray[np.float64]


@dataclass(frozen=True)
class Decisions:
    """What each policy selects, (n, P) each.

    choice: table row, NO_CANDIDATE if no candidate was eligible. p: its probability. cost: its
    expected cost in US dollars, NaN if unknown. kind: index into KINDS.
    """

    choice: NDArray[np.int16]
    p: NDArray[np.float32]
    cost: NDArray[np.float64]
    kind: NDArray[np.int8]


@dataclass(frozen=True)
class ChunkTask:
    """A chunk to process.

    conversations: empty if the scores are known. needs: of each request. scores: known already from
    a checkpoint, or None.
    """

    number: int
    conversations: tuple[Conversation, ...]
    needs: tuple[Needs, ...]
    scores: Scores | None


@dataclass(frozen=True)
class ChunkResult:
    """The result of the ChunkTask with the same number."""

    number: int
    scores: Scores
    decisions: Decisions


@dataclass(frozen=True)
class ReplayJob:
    """What a worker needs to know.

    manifest_hash: sha256 of the bundle's manifest.json, which holds that of every other file.
    """

    bundle: Path
    manifest_hash: str
    table: Table
    policies: Mapping[str, Policy]


class Scorer:
    """Score and decide, on one thread. Nothing is kept from one chunk to the next."""

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
        self._counter = TokenizerCounter(tokenizer)
        self._backend = backend
        self._head = head
        self._known = known

    def process(self, task: ChunkTask) -> ChunkResult:
        """Score the chunk, unless its scores are known, and decide by every policy.

        Raises:
            UnavailableError: the forward pass fails.
        """
        scores = self._score(task.conversations) if task.scores is None else task.scores
        decisions = decide_all(self._table, self._policies, scores, task.needs)
        return ChunkResult(task.number, scores, decisions)

    def _score(self, conversations: Sequence[Conversation]) -> Scores:
        """Score each request in a forward pass of its own, equal ones once; a request without text
        to route by has the candidates' mean accuracies.

        Its probabilities then do not depend on the other requests of the log.
        """
        rows = np.arange(len(self._table.candidates))
        scored: dict[bytes, tuple[NDArray[np.float32], float | None]] = {}
        p = np.empty((len(conversations), len(rows)), dtype=np.float32)
        infos = []
        for i, conversation in enumerate(conversations):
            reading = read(conversation, self._counter)
            prompt, info = prepare_prompt(
                reading.ask, reading.context, self._tokenizer, self._known
            )
            if not reading.ask:
                infos.append(info)
                p[i] = self._table.mean_accuracies
                continue
            key = prompt.tokens.tobytes()
            if key not in scored:
                found = self._backend.probabilities(
                    [prompt.tokens], self._table.embeddings, rows, self._head
                )
                matched, unusualness = found.p, None
                if (match := self._table.match) is not None:
                    matched = add_log_odds(found.p, match.log_odds(found.embeddings))
                    unusualness = match.unusualness(found.embeddings[0])
                scored[key] = matched[0], unusualness
            p[i], unusualness = scored[key]
            infos.append(with_unusualness(info, unusualness))
        ood_scores = [math.nan if r.ood_score is None else r.ood_score for r in infos]
        return Scores(p, np.array([r.input_tokens for r in infos]), np.array(ood_scores))


class Worker:
    """Run in a process or a Ray actor.

    It opens the bundle with its first chunk, so that an error reaches the caller that waits for
    that chunk.
    """

    def __init__(self, job: ReplayJob) -> None:
        self._job = job
        self._scorer: Scorer | None = None

    def process(self, task: ChunkTask) -> ChunkResult:
        """Process a chunk; raises what open_scorer and Scorer.process raise."""
        if self._scorer is None:
            self._scorer = open_scorer(self._job)
        return self._scorer.process(task)


def decide_all(
    table: Table, policies: Sequence[Policy], scores: Scores, needs: Sequence[Needs]
) -> Decisions:
    """Decide by every policy on every row of `scores`, each with the needs of its request."""
    shape = (len(scores.p), len(policies))
    decisions = Decisions(
        np.full(shape, NO_CANDIDATE, dtype=np.int16),
        np.full(shape, np.nan, dtype=np.float32),
        np.full(shape, np.nan),
        np.zeros(shape, dtype=np.int8),
    )
    for i in range(shape[0]):
        ood_score = float(scores.ood_score[i])
        known_score = None if math.isnan(ood_score) else ood_score
        info = PromptInfo(int(scores.input_tokens[i]), False, known_score)
        context = DecisionContext(info.ood_score)
        for j, policy in enumerate(policies):
            try:
                eligible = select_eligible(table, info, needs[i].constrain(policy))
            except NoEligibleCandidateError:
                continue
            p = scores.p[i, eligible.rows]
            decision = build_decision(table, info, eligible, policy, p, context)
            first = decision.ranking[0]
            decisions.choice[i, j] = table.rows[first.candidate.id]
            decisions.p[i, j] = first.probability
            if first.expected_cost_usd is not None:
                decisions.cost[i, j] = first.expected_cost_usd
            decisions.kind[i, j] = KINDS.index(decision.kind)
    return decisions


def open_table(bundle: Path, candidates: Sequence[Candidate]) -> Table:
    """Build the table that a server with these candidates serves, without the match, which is too
    large to send to workers; raises BundleError."""
    manifest = read_manifest(bundle, "bundle")
    encoder = load_encoder(bundle, load_arrays(bundle))
    entries = [(c, encoder.encode(c)) for c in candidates]
    return make_table(1, entries, manifest.width)


def make_job(bundle: Path, table: Table, policies: Mapping[str, Policy]) -> ReplayJob:
    """Describe the job for workers that have the same bundle under the same path."""
    return ReplayJob(bundle.resolve(), _manifest_hash(bundle), table, policies)


def open_scorer(job: ReplayJob) -> Scorer:
    """Open a scorer on one CPU thread.

    A process for each core is faster than one session on all of them, and probabilities do not
    depend on the number of cores (docs/how-to/replay.md).

    Raises:
        BundleError: this machine has no bundle at the path, or another one.
    """
    manifest, arrays = read_manifest(job.bundle, "bundle"), load_arrays(job.bundle)
    if (actual := _manifest_hash(job.bundle)) != job.manifest_hash:
        raise BundleError(
            f"{job.bundle} on {platform.node()} is another bundle: its manifest.json has sha256"
            f" {actual[:12]}, expected {job.manifest_hash[:12]}; copy one bundle to every node."
        )
    match = load_encoder(job.bundle, arrays).match(job.table.candidates)
    return Scorer(
        replace(job.table, match=match),
        list(job.policies.values()),
        Tokenizer.from_file(str(job.bundle / "tokenizer.json")),
        open_backend(job.bundle, manifest, "cpu", threads=1),
        ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration),
        load_training_set(job.bundle),
    )


def _manifest_hash(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


@dataclass(frozen=True)
class ResultArrays:
    """What the report is computed from, (N,) each; NaN is unknown.

    logged: table row of the logged candidate, NO_CANDIDATE if the log names none or the table does
    not have it. logged_p: its probability. estimated_cost: its expected cost in US dollars.
    logged_cost, outcome, time, propensity: see PastRequest. decisions: (N, P).
    """

    logged: NDArray[np.int16]
    logged_p: FloatArray
    estimated_cost: FloatArray
    logged_cost: FloatArray
    outcome: FloatArray
    time: FloatArray
    propensity: FloatArray
    input_tokens: NDArray[np.int64]
    decisions: Decisions


@dataclass
class CandidateNames:
    """Map the log's candidate names to rows of `table`, and count those it does not have."""

    table: Table
    rows: dict[str, int]
    unknown: Counter[str] = field(default_factory=Counter)
    unnamed: int = 0

    def row(self, name: str, other_names: Sequence[str] = ()) -> int:
        """Look up the row of a candidate by its names; NO_CANDIDATE, and a count more, if there is
        none. A provider before the name and a variant after it may be missing in the table, as in
        openai/NAME and NAME:free."""
        names = (name, *other_names)
        bare = [n.split(":")[0].rpartition("/")[2] for n in names]
        inner = [n.partition("/")[2] for n in names]
        found = [self.rows[n] for n in (*names, *inner, *bare) if n in self.rows]
        row = found[0] if found else NO_CANDIDATE
        if not name:
            self.unnamed += 1
        elif row == NO_CANDIDATE:
            self.unknown[name] += 1
        return row


def candidate_names(table: Table, aliases: Sequence[str]) -> CandidateNames:
    """Collect the names of candidates: their ids, display names and `aliases` (LOGGED=ID).

    Raises:
        InvalidInputError: an alias names no candidate of the table.
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
    return CandidateNames(table, rows)


def result_arrays(
    requests: Sequence[PastRequest], names: CandidateNames, scores: Scores, decisions: Decisions
) -> ResultArrays:
    """Collect the arrays of one chunk."""
    logged = np.array([names.row(r.candidate, r.other_names) for r in requests], dtype=np.int16)
    costs = np.full(len(logged), np.nan)
    for i, row in enumerate(logged):
        if row != NO_CANDIDATE:
            candidate = names.table.candidates[row]
            tokens = int(scores.input_tokens[i])
            cost = candidate.expected_cost_usd(tokens, DEFAULT_OUTPUT_TOKENS)
            costs[i] = math.nan if cost is None else cost
    p = scores.p[np.arange(len(logged)), logged].astype(np.float64)
    return ResultArrays(
        logged,
        np.where(logged == NO_CANDIDATE, np.nan, p),
        costs,
        np.array([r.cost for r in requests]),
        np.array([r.outcome for r in requests]),
        np.array([r.time for r in requests]),
        np.array([r.propensity for r in requests]),
        scores.input_tokens,
        decisions,
    )


def concat(parts: Mapping[int, ResultArrays]) -> ResultArrays:
    """Concatenate chunks in the order of their numbers."""
    ordered = [parts[number] for number in sorted(parts)]

    def whole(of: Sequence[object]) -> dict[str, NDArray[np.generic]]:
        keys = [k for k, v in vars(of[0]).items() if isinstance(v, np.ndarray)]
        return {k: np.concatenate([getattr(part, k) for part in of]) for k in keys}

    decisions = Decisions(**whole([c.decisions for c in ordered]))  # type: ignore[arg-type]
    return ResultArrays(**whole(ordered), decisions=decisions)  # type: ignore[arg-type]
