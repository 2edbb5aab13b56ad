"""Fit a correction of the weights' probabilities to remembered outcomes.

The logit of candidate m on an instruction with weights' logit z and kernel features phi becomes

    slope z + reach(z) (level + w0 phi a) + offset_m + w1 phi b_m

in three stages, each penalized: slope, level and offsets; then the residuals' common part a, which
says that an instruction is harder or easier than thought, and relative parts b_m; then all global
weights again on predictions that leave the own instruction out. Linear in the outcomes, a few
hundred features wide. docs/explanation/adaptation.md has the figures.

Shapes: N instructions, M candidates, K outcomes, R landmarks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from engine.adaptation.adaptation import FitFigures
from engine.adaptation.fitted import (
    MAX_LOGIT,
    CandidateParts,
    CommonPart,
    FittedAdaptation,
)
from engine.adaptation.kernel import Coverage, KernelFeatures, choose_landmarks
from engine.adaptation.outcome_matrix import PROVENANCES, OutcomeMatrix
from engine.adaptation.regression import (
    LogisticWeights,
    fit_logistic,
    fit_ridge,
    log_loss,
    sigmoid,
)
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array, Float64Array, Int64Array

METHOD = "3"  # part of an adaptation's ID; change it with anything that changes its figures
MAX_LANDMARKS = 512
MEANS_CHUNK = 1024
SLOPE_PRECISION, LEVEL_PRECISION, OFFSET_PRECISION, PART_PRECISION = 30.0, 2.0, 30.0, 10.0
COMMON_VARIANCE, RELATIVE_VARIANCE = 0.5, 1.0  # of the kernel's functions, in squared logits
INSTRUCTION_VARIANCE = 1.0  # of what one instruction has in common for all candidates
MIN_INFORMATION = 0.05  # of an outcome, so that a sure error does not decide alone
# How much an outcome of the router's own choice counts where candidates are compared. At 1 the
# choice's bias costs up to 1.4 points of routed accuracy, at .1 at most .4.
CHOSEN_WEIGHT = 0.1
LOWEST_QUANTILE = 0.1
# The correction is used if it beats the weights on left-out outcomes by this many standard errors.
# Outcomes of choices alone do not say how the other candidates would have done.
GUARD, GUARD_OF_CHOSEN, MIN_UNBIASED = 1.0, 2.0, 30
# Nor may it be worse by more than this on newer outcomes than those it was fitted to. At 0, chance
# rejects one good fit of five at 50 instructions.
GUARD_OF_NEWER = 1.0
MIN_INSTRUCTIONS = 10
CONTRADICTION, MIN_CONTRADICTIONS = 3.0, 20  # standard errors, and outcomes of a principal
NEWER_SHARE, MIN_NEWER = 0.3, 12  # instructions that are predicted from the older ones


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """Known outcomes in coordinate form: instruction n, candidate m, weights' logit z, score y, and
    the weight where candidates are compared, each (K,)."""

    n: Int64Array
    m: Int64Array
    z: Float64Array
    y: Float64Array
    weight: Float64Array
    candidates: int

    def of(self, rows: Int64Array) -> _Outcomes:
        """Keep the outcomes of these instructions."""
        kept = np.isin(self.n, rows)
        return _Outcomes(
            self.n[kept],
            self.m[kept],
            self.z[kept],
            self.y[kept],
            self.weight[kept],
            self.candidates,
        )


@dataclass(frozen=True, eq=False)
class _Model:
    """The fitted parts, and the logits (K,) of outcomes by fits without their instruction."""

    slope: float
    common: CommonPart
    offsets: Float64Array
    relative: Float64Array
    left_out: Float64Array

    def logits(self, outcomes: _Outcomes, features: Float32Array) -> Float64Array:
        """Return the logits of outcomes, whose instructions have `features` (N, R)."""
        near = self.common.level + self.common.weight * (features @ self.common.coefficients)
        relative = np.einsum("kr,rk->k", features[outcomes.n], self.relative[:, outcomes.m])
        shared = self.common.reach(outcomes.z) * near[outcomes.n]
        return np.asarray(self.slope * outcomes.z + shared + self.offsets[outcomes.m] + relative)


def fit(matrix: OutcomeMatrix, space: InstructionSpace) -> FittedAdaptation:
    """Fit an adaptation to `matrix`, which has one instruction or more.

    Deterministic. It takes about a second for 10,000 instructions, in linear algebra that releases
    the interpreter's lock.
    """
    started = time.monotonic()
    # Left out one by one, copies of an instruction would vouch for each other.
    distinct, row = _distinct(matrix.embeddings)
    outcomes = _coordinates(matrix, row)
    center = space.center_of(matrix.embeddings)
    everything = space.unit_vectors(matrix.embeddings, center)
    vectors = everything[distinct]
    landmarks = choose_landmarks(vectors, MAX_LANDMARKS)
    kernel = KernelFeatures.of(vectors[landmarks])
    similarities = kernel.similarities(vectors)
    features = similarities @ kernel.mix
    model = _fit_model(outcomes, features)
    if contradicting := _contradicting(matrix.principals, row, outcomes, model):
        outcomes = outcomes.of(np.setdiff1d(np.arange(len(distinct)), contradicting))
        model = _fit_model(outcomes, features)
    loss = _compare(outcomes, model.left_out)
    active, reason = _judge(outcomes, features, loss, len(distinct))
    figures = FitFigures(
        instructions=len(matrix),
        outcomes={name: int((matrix.provenance == i).sum()) for i, name in enumerate(PROVENANCES)},
        log_loss_before=loss.before,
        log_loss_after=loss.after,
        standard_error=loss.standard_error,
        as_of=float(matrix.recorded_at.max()),
        seconds=time.monotonic() - started,
    )
    fitted = FittedAdaptation(
        id=f"{matrix.id}-{METHOD}",
        active=active,
        reason=reason,
        figures=figures,
        space=space,
        center=center,
        features=kernel,
        coverage=Coverage.of(space, matrix.embeddings[distinct[landmarks]]),
        slope=model.slope,
        common=model.common,
        parts=_candidate_parts(matrix, row, outcomes, model, similarities, features),
        offset_precision=OFFSET_PRECISION,
        vectors=everything.astype(np.float16),
    )
    fitted.prepare()
    return fitted


def _distinct(embeddings: Float32Array) -> tuple[Int64Array, Int64Array]:
    """Return the rows of instructions that differ, in order, and of each row (N,) its place among
    them."""
    seen: dict[bytes, int] = {}
    row = np.array([seen.setdefault(each.tobytes(), len(seen)) for each in embeddings])
    return np.unique(row, return_index=True)[1], row


def _coordinates(matrix: OutcomeMatrix, row: Int64Array) -> _Outcomes:
    """Return the known outcomes, several of one candidate on one instruction as their mean."""
    n, m = np.nonzero(~np.isnan(matrix.scores) & ~np.isnan(matrix.logits))
    chosen = matrix.provenance[n, m] == PROVENANCES.index("chosen")
    z = np.clip(matrix.logits[n, m].astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
    y = matrix.scores[n, m].astype(np.float64)
    weight = np.where(chosen, CHOSEN_WEIGHT, 1.0)
    count = len(matrix.candidates)
    keys, at = np.unique(row[n] * count + m, return_inverse=True)
    z, y, weight = (np.bincount(at, x) / np.bincount(at) for x in (z, y, weight))
    return _Outcomes(keys // count, keys % count, z, y, weight, count)


def _fit_model(outcomes: _Outcomes, features: Float32Array) -> _Model:
    """Run the three stages. features: (N, R)."""
    n, m, z, y = outcomes.n, outcomes.m, outcomes.z, outcomes.y
    rows, zeros = len(features), np.zeros(outcomes.candidates)
    lowest = float(np.quantile(z, LOWEST_QUANTILE)) if len(z) else 0.0
    reach = CommonPart(lowest, 0, 0, np.empty(0)).reach(z)

    first = fit_logistic(
        y,
        m,
        outcomes.weight,
        reach[None],
        z[None],
        LogisticWeights(np.zeros(1), np.ones(1), zeros),
        (np.array([LEVEL_PRECISION]), np.array([SLOPE_PRECISION]), OFFSET_PRECISION),
    )
    q = sigmoid(first.logits(reach[None], z[None], m))
    information = np.maximum(q * (1 - q), MIN_INFORMATION)
    residual = (y - q) / information  # the working residual of a Newton step

    def by_row(values: Float64Array) -> Float64Array:
        return np.asarray(np.bincount(n, values, rows), dtype=np.float64)

    shared = by_row(information * reach**2)
    mean = by_row(information * reach * residual) / np.maximum(shared, 1e-9)
    a, smooth, left_out = (
        x[:, 0] for x in fit_ridge(features, shared, mean[:, None], COMMON_VARIANCE)
    )
    # What an instruction's own outcomes say of it beyond its neighbors, shrunk by their number.
    trust = INSTRUCTION_VARIANCE / (INSTRUCTION_VARIANCE + 1 / np.maximum(shared, 1e-9))
    rest = residual - reach * (smooth + trust * (mean - smooth))[n]
    typical = by_row(information) / np.maximum(by_row(np.ones_like(y)), 1)
    b, relative = _fit_relative(outcomes, features, rest, typical)

    common = np.stack([reach, reach * left_out[n]])
    second = fit_logistic(
        y,
        m,
        outcomes.weight,
        common,
        np.stack([z, relative]),
        LogisticWeights(np.array([0.0, 1.0]), np.ones(2), zeros),
        (
            np.array([LEVEL_PRECISION, PART_PRECISION]),
            np.array([SLOPE_PRECISION, PART_PRECISION]),
            OFFSET_PRECISION,
        ),
    )
    level, weight = map(float, second.common)
    return _Model(
        slope=float(second.relative[0]),
        common=CommonPart(lowest, level, weight, a),
        offsets=second.offsets,
        relative=b * second.relative[1],
        left_out=second.logits(common, np.stack([z, relative]), m),
    )


def _fit_relative(
    outcomes: _Outcomes, features: Float32Array, rest: Float64Array, typical: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Fit each candidate's part: coefficients (R, M), and left-out predictions of outcomes (K,).

    rest: (K,) residuals. typical: (N,) mean information of an instruction's outcomes. Candidates
    with outcomes on the same instructions share one regression.
    """
    order = np.lexsort((outcomes.n, outcomes.m))
    bounds = np.searchsorted(outcomes.m[order], np.arange(outcomes.candidates + 1))
    groups: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    of = [order[bounds[c] : bounds[c + 1]] for c in range(outcomes.candidates)]
    for candidate, own in enumerate(of):
        if len(own):
            key = outcomes.n[own].tobytes(), outcomes.weight[own].tobytes()
            groups[key].append(candidate)
    coefficients = np.zeros((features.shape[1], outcomes.candidates))
    predicted = np.zeros(len(rest))
    for members in groups.values():
        own = of[members[0]]
        rows = outcomes.n[own]
        targets = np.stack([rest[of[c]] for c in members], axis=1)
        weights = typical[rows] * outcomes.weight[own]
        found, _, left_out = fit_ridge(features[rows], weights, targets, RELATIVE_VARIANCE)
        coefficients[:, members] = found
        for i, candidate in enumerate(members):
            predicted[of[candidate]] = left_out[:, i]
    return coefficients, predicted


def _contradicting(
    principals: tuple[str, ...], row: Int64Array, outcomes: _Outcomes, model: _Model
) -> list[int]:
    """Return the instructions of principals whose outcomes contradict those of the others.

    On them the correction is clearly worse than the weights alone, although it helps elsewhere. So
    a caller who reports the opposite of the truth does not teach the others.
    """
    owner = np.empty(int(row.max()) + 1, dtype=np.int64)
    names, of = np.unique(np.array(principals), return_inverse=True)
    owner[row] = of
    if len(names) < 2:
        return []
    harm = log_loss(outcomes.y, sigmoid(model.left_out)) - log_loss(outcomes.y, sigmoid(outcomes.z))
    found: list[int] = []
    for principal in range(len(names)):
        mine = owner[outcomes.n] == principal
        if mine.sum() < MIN_CONTRADICTIONS or 2 * mine.sum() > len(mine):
            continue
        error = harm[mine].std() / np.sqrt(mine.sum())
        if harm[mine].mean() > CONTRADICTION * error and harm[~mine].mean() < 0:
            found += np.flatnonzero(owner == principal).tolist()
    return found


def _candidate_parts(
    matrix: OutcomeMatrix,
    row: Int64Array,
    outcomes: _Outcomes,
    model: _Model,
    similarities: Float32Array,
    features: Float32Array,
) -> CandidateParts:
    nearest = similarities.argmax(axis=1)[outcomes.n]
    shape = (similarities.shape[1], outcomes.candidates)
    q = sigmoid(model.left_out)
    information = np.zeros(shape, dtype=np.float32)
    known = np.maximum(q * (1 - q), MIN_INFORMATION) * outcomes.weight
    np.add.at(information, (nearest, outcomes.m), known)
    counts = np.zeros(shape, dtype=np.float32)
    np.add.at(counts, (nearest, outcomes.m), 1)
    near = model.common.level + model.common.weight * (features @ model.common.coefficients)
    coefficients = model.relative.astype(np.float32)
    scored, total = np.zeros((2, outcomes.candidates))
    for start in range(0, len(matrix), MEANS_CHUNK):  # all at once takes 1 GB for 1,000 candidates
        here, at = matrix.logits[start : start + MEANS_CHUNK], row[start : start + MEANS_CHUNK]
        n, m = np.nonzero(~np.isnan(here))
        z = np.clip(here[n, m].astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
        logits = model.slope * z + model.common.reach(z) * near[at[n]] + model.offsets[m]
        p = sigmoid(logits + (features[at] @ coefficients)[n, m])
        scored += np.bincount(m, minlength=outcomes.candidates)
        total += np.bincount(m, p, outcomes.candidates)
    return CandidateParts(
        columns={name: i for i, name in enumerate(matrix.candidates)},
        offsets=model.offsets,
        coefficients=model.relative,
        information=information,
        outcomes=counts,
        means=(total / np.maximum(scored, 1)).astype(np.float32),
    )


@dataclass(frozen=True)
class _Comparison:
    """Mean log loss of outcomes by the weights and by a correction, the standard error of the
    difference over instructions, and whether the outcomes are free of the router's choice."""

    before: float
    after: float
    standard_error: float
    unbiased: bool

    @property
    def errors(self) -> float:
        """Return the improvement in standard errors."""
        return (self.before - self.after) / max(self.standard_error, 1e-9)


def _compare(outcomes: _Outcomes, logits: Float64Array) -> _Comparison:
    """Compare on outcomes that no choice biases if there are enough, else on all."""
    unbiased = outcomes.weight > CHOSEN_WEIGHT
    used = unbiased if unbiased.sum() >= MIN_UNBIASED else np.ones(len(unbiased), dtype=bool)
    before = log_loss(outcomes.y, sigmoid(outcomes.z))[used]
    after = log_loss(outcomes.y, sigmoid(logits))[used]
    rows = np.unique(outcomes.n[used], return_inverse=True)[1]
    sums = np.bincount(rows, before - after)
    error = float(np.sqrt(((sums - sums.mean()) ** 2).sum()) / len(before))
    is_unbiased = bool(unbiased.sum() >= MIN_UNBIASED)
    return _Comparison(float(before.mean()), float(after.mean()), error, is_unbiased)


def _judge(
    outcomes: _Outcomes, features: Float32Array, loss: _Comparison, count: int
) -> tuple[bool, str]:
    """Return whether the correction is used, and why."""
    if count < MIN_INSTRUCTIONS:
        return (
            False,
            f"{count} instructions are remembered; at least {MIN_INSTRUCTIONS} are needed.",
        )
    needed = GUARD if loss.unbiased else GUARD_OF_CHOSEN
    figures = f"from {loss.before:.3f} to {loss.after:.3f}"
    if loss.after >= loss.before:
        return False, f"The log loss of left-out outcomes would go {figures}."
    if loss.errors <= needed:
        return False, (
            f"The log loss of left-out outcomes goes {figures}, an improvement of {loss.errors:.1f}"
            f" standard errors; {needed:g} are needed."
        )
    newer = round(NEWER_SHARE * count)
    if newer >= MIN_NEWER:
        cut = count - newer
        older = outcomes.of(np.arange(cut))
        model = _fit_model(older, features[:cut])
        new = outcomes.of(np.arange(cut, count))
        later = _compare(new, model.logits(new, features))
        if later.errors < -GUARD_OF_NEWER:
            return False, (
                f"Fitted to the older {cut} instructions, it does not predict the newer {newer}:"
                f" log loss goes from {later.before:.3f} to {later.after:.3f}."
            )
    return True, f"The log loss of left-out outcomes goes {figures}."
