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
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from engine.adaptation.adaptation import FitFigures
from engine.adaptation.contradiction import Surroundings, find_contradicting
from engine.adaptation.fitted import (
    OFFSET_PRECISION,
    CandidateParts,
    CommonPart,
    FittedAdaptation,
    reach_of,
)
from engine.adaptation.judgment import LossComparison, compare_losses, gain_of_weights
from engine.adaptation.kernel import KernelFeatures, Landmarks, choose_landmarks
from engine.adaptation.outcome_matrix import PROVENANCES, KnownOutcomes, OutcomeMatrix
from engine.adaptation.regression import (
    LogisticWeights,
    fit_logistic,
    fit_ridge,
    sigmoid,
)
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array, Float64Array, Int64Array

METHOD = "9"  # part of an adaptation's ID; change it with anything that changes its figures
MAX_LANDMARKS = 512
MAX_LOGIT = 9.2  # of p = 1e-4 and 1 - 1e-4
MEANS_CHUNK = 1024
SLOPE_PRECISION, LEVEL_PRECISION, PART_PRECISION = 30.0, 2.0, 10.0
COMMON_VARIANCE, RELATIVE_VARIANCES = 0.5, (1.0, 0.4, 0.15)  # of functions, in squared logits
INSTRUCTION_VARIANCE = 1.0  # of what one instruction has in common for all candidates
MIN_INFORMATION = 0.05  # of an outcome, so that a sure error does not decide alone
# How much an outcome of the router's own choice counts where candidates are compared. At 1 the
# choice's bias costs up to 1.4 points of routed accuracy, at .1 at most .4.
CHOSEN_WEIGHT = 0.1
LOWEST_QUANTILE = 0.1
# The correction is used if it beats the weights on left-out outcomes by this many standard errors.
# Outcomes of choices alone do not say how the other candidates would have done.
GUARD, GUARD_OF_CHOSEN = 1.0, 2.0
# Nor may it be worse by more than this on newer outcomes than those it was fitted to. At 0, chance
# rejects one good fit of five at 50 instructions.
GUARD_OF_NEWER = 1.0
MIN_INSTRUCTIONS = 10
FOLDS, FOLDED_INSTRUCTIONS = 10, 150
NEWER_SHARE, MIN_NEWER = 0.3, 12  # instructions that are predicted from the older ones


@dataclass(frozen=True, eq=False)
class _Model:
    """The fitted parts. lowest, level: see CommonPart. common: (R,) and relative: (R, M)
    coefficients of the features. offsets: (M,). left_out: the logits (K,) of outcomes by fits
    without their instruction."""

    slope: float
    lowest: float
    level: float
    common: Float32Array
    relative: Float32Array
    offsets: Float64Array
    left_out: Float64Array

    def logits(self, outcomes: KnownOutcomes, features: Float32Array) -> Float64Array:
        """Return the logits of outcomes, whose instructions have `features` (N, R)."""
        return self.logits_of(outcomes.n, outcomes.m, outcomes.z, features)

    def logits_of(
        self, n: Int64Array, m: Int64Array, z: Float64Array, features: Float32Array
    ) -> Float64Array:
        """Return the logits (K,) of candidates m with weights' logits z on instructions n."""
        relative = (features @ self.relative)[n, m]
        return np.asarray(self.logits_everywhere(n, m, z, features) + relative)

    def logits_everywhere(
        self, n: Int64Array, m: Int64Array, z: Float64Array, features: Float32Array
    ) -> Float64Array:
        """Return the same without the relative parts, which hold on some instructions only."""
        shared = reach_of(z, self.lowest) * (self.level + features @ self.common)[n]
        return np.asarray(self.slope * z + shared + self.offsets[m])


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
    nearest, owner = similarities.argmax(axis=1), _owners(matrix.principals, row)
    contradicting = find_contradicting(
        owner,
        outcomes,
        model.left_out,
        Surroundings(nearest, kernel.similarities(kernel.landmarks)),
    )
    if len(contradicting):
        outcomes = outcomes.of(np.flatnonzero(~np.isin(owner, contradicting)))
        model = _fit_model(outcomes, features)
    loss = compare_losses(outcomes, _left_out(outcomes, features, model))
    active, reason = _judge(outcomes, features, loss, len(distinct))
    parts = _candidate_parts(matrix, row, outcomes, model, similarities, kernel, features)
    common = CommonPart(model.lowest, model.level, kernel.mix @ model.common)
    gain = gain_of_weights(outcomes, parts.means)
    decides = active or (loss.unbiased and gain < 0 and len(distinct) >= MIN_INSTRUCTIONS)
    if decides and not active:
        default = matrix.candidates[int(parts.means.argmax())]
        reason += (
            f" But the weights' choices scored {-gain:.3f} less than {default} on what is"
            f" remembered, so {default} is left only on evidence."
        )
    if not loss.unbiased:  # own choices do not say which candidate is best on average
        parts = replace(parts, means=np.full_like(parts.means, np.nan))
    figures = FitFigures(
        instructions=len(matrix),
        outcomes={name: int((matrix.provenance == i).sum()) for i, name in enumerate(PROVENANCES)},
        log_loss_before=loss.before,
        log_loss_after=loss.after,
        standard_error=loss.standard_error,
        as_of=float(matrix.recorded_at.max()),
        seconds=time.monotonic() - started,
    )
    return FittedAdaptation(
        id=f"{matrix.id}-{METHOD}",
        active=active,
        decides=decides,
        reason=reason,
        figures=figures,
        space=space,
        center=center,
        landmarks=Landmarks.of(space, matrix.embeddings[distinct[landmarks]], center),
        slope=model.slope if active else 1.0,
        common=common if active else common.without_effect(),
        parts=parts if active else parts.without_effect(),
        vectors=everything.astype(np.float16),
    )


def _distinct(embeddings: Float32Array) -> tuple[Int64Array, Int64Array]:
    """Return the rows of instructions that differ, in order, and of each row (N,) its place among
    them."""
    seen: dict[bytes, int] = {}  # by digests: 100,000 embeddings take 230 MB
    digests = (blake2b(each, digest_size=16).digest() for each in embeddings)
    row = np.array([seen.setdefault(digest, len(seen)) for digest in digests])
    return np.unique(row, return_index=True)[1], row


def _owners(principals: tuple[str, ...], row: Int64Array) -> Int64Array:
    """Return the number of the principal of each instruction that differs; the last of copies."""
    owner = np.empty(int(row.max()) + 1, dtype=np.int64)
    owner[row] = np.unique(np.array(principals), return_inverse=True)[1]
    return owner


def _coordinates(matrix: OutcomeMatrix, row: Int64Array) -> KnownOutcomes:
    """Return the known outcomes, several of one candidate on one instruction as their mean."""
    n, m = np.nonzero(~np.isnan(matrix.scores) & ~np.isnan(matrix.logits))
    chosen = matrix.provenance[n, m] == PROVENANCES.index("chosen")
    z = np.clip(matrix.logits[n, m].astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
    y = matrix.scores[n, m].astype(np.float64)
    weight = np.where(chosen, CHOSEN_WEIGHT, 1.0)
    count = len(matrix.candidates)
    keys, at = np.unique(row[n] * count + m, return_inverse=True)
    unbiased = np.bincount(at, ~chosen) > 0
    z, y, weight = (np.bincount(at, x) / np.bincount(at) for x in (z, y, weight))
    return KnownOutcomes(keys // count, keys % count, z, y, weight, unbiased, count)


def _fit_model(outcomes: KnownOutcomes, features: Float32Array) -> _Model:
    """Run the three stages. features: (N, R)."""
    n, m, z, y = outcomes.n, outcomes.m, outcomes.z, outcomes.y
    rows, zeros = len(features), np.zeros(outcomes.candidates)
    lowest = float(np.quantile(z, LOWEST_QUANTILE)) if len(z) else 0.0
    reach = reach_of(z, lowest)

    def by_row(values: Float64Array) -> Float64Array:
        return np.asarray(np.bincount(n, values, rows), dtype=np.float64)

    # Outcomes of one instruction share how hard it is, so many say little more of the level.
    shared = by_row(_information(sigmoid(z)) * reach**2)
    weights = 1 / (1 + INSTRUCTION_VARIANCE * shared[n]), outcomes.weight
    first = fit_logistic(
        y,
        m,
        weights,
        reach[None],
        z[None],
        LogisticWeights(np.zeros(1), np.ones(1), zeros),
        (np.array([LEVEL_PRECISION]), np.array([SLOPE_PRECISION]), OFFSET_PRECISION),
    )
    q = sigmoid(first.logits(reach[None], z[None], m))
    information = _information(q)
    residual = (y - q) / information  # the working residual of a Newton step
    shared = by_row(information * reach**2)
    mean = by_row(information * reach * residual) / np.maximum(shared, 1e-9)
    common_fits = fit_ridge(features, shared, mean[:, None], (COMMON_VARIANCE,))
    a, smooth, left_out = (x[:, 0] for x in common_fits[0])
    # What an instruction's own outcomes say of it beyond its neighbors, shrunk by their number.
    trust = INSTRUCTION_VARIANCE / (INSTRUCTION_VARIANCE + 1 / np.maximum(shared, 1e-9))
    rest = residual - reach * (smooth + trust * (mean - smooth))[n]
    typical = by_row(information) / np.maximum(by_row(np.ones_like(y)), 1)
    b, relative = _fit_relative(outcomes, features, rest, typical)

    common = np.stack([reach, reach * left_out[n]])
    second = fit_logistic(
        y,
        m,
        weights,
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
        lowest=lowest,
        level=level,
        common=(weight * a).astype(np.float32),
        relative=(b * second.relative[1]).astype(np.float32),
        offsets=second.offsets,
        left_out=second.logits(common, np.stack([z, relative]), m),
    )


def _information(q: Float64Array) -> Float64Array:
    """Return what outcomes of probability q say of their logit."""
    return np.maximum(q * (1 - q), MIN_INFORMATION)


def _fit_relative(
    outcomes: KnownOutcomes, features: Float32Array, rest: Float64Array, typical: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Fit each candidate's part: coefficients (R, M), and left-out predictions of outcomes (K,).

    rest: (K,) residuals. typical: (N,) mean information of an instruction's outcomes. A smaller
    variance than the first is taken if it predicts left-out residuals better by a standard error:
    what is right differs tenfold between kinds of instructions.
    """
    precision = typical[outcomes.n] * outcomes.weight
    order = np.lexsort((outcomes.n, outcomes.m))
    bounds = np.searchsorted(outcomes.m[order], np.arange(outcomes.candidates + 1))
    # Candidates with outcomes on the same instructions share one regression.
    groups: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    of = [order[bounds[c] : bounds[c + 1]] for c in range(outcomes.candidates)]
    for candidate, own in enumerate(of):
        if len(own):
            key = outcomes.n[own].tobytes(), outcomes.weight[own].tobytes()
            groups[key].append(candidate)
    count = len(RELATIVE_VARIANCES)
    coefficients = np.zeros((count, features.shape[1], outcomes.candidates))
    predicted = np.zeros((count, len(rest)))
    for members in groups.values():
        own = of[members[0]]
        targets = np.stack([rest[of[c]] for c in members], axis=1)
        fits = fit_ridge(features[outcomes.n[own]], precision[own], targets, RELATIVE_VARIANCES)
        for k, (found, _, left_out) in enumerate(fits):
            coefficients[k][:, members] = found
            for i, candidate in enumerate(members):
                predicted[k, of[candidate]] = left_out[:, i]
    best = 0
    for other in range(1, count):
        better = precision * ((rest - predicted[best]) ** 2 - (rest - predicted[other]) ** 2)
        gains = np.bincount(outcomes.n, better)
        if gains.sum() > np.sqrt((gains**2).sum()):
            best = other
    return coefficients[best], predicted[best]


def _left_out(outcomes: KnownOutcomes, features: Float32Array, model: _Model) -> Float64Array:
    """Return the logits (K,) of outcomes by fits that are made without their instruction.

    Those of the model know the instruction's outcomes in the slope, the level and the offsets. Of
    many instructions that is little; of few it makes a fit to noise look like an improvement.
    """
    if len(features) > FOLDED_INSTRUCTIONS:
        return model.left_out
    logits = np.empty(len(outcomes.n))
    for fold in range(FOLDS):
        own = outcomes.n % FOLDS == fold
        rest = _fit_model(outcomes.of(np.unique(outcomes.n[~own])), features)
        logits[own] = rest.logits(outcomes.of(np.unique(outcomes.n[own])), features)
    return logits


def _candidate_parts(
    matrix: OutcomeMatrix,
    row: Int64Array,
    outcomes: KnownOutcomes,
    model: _Model,
    similarities: Float32Array,
    kernel: KernelFeatures,
    features: Float32Array,
) -> CandidateParts:
    count, landmarks = outcomes.candidates, similarities.shape[1]
    nearest = similarities.argmax(axis=1)[outcomes.n]
    q = sigmoid(model.left_out)
    known = _information(q) * outcomes.weight
    by_landmark = np.zeros((count + 1, 3, landmarks), dtype=np.float32)
    by_landmark[:count, 0] = (kernel.mix @ model.relative).T
    cells, size = outcomes.m * landmarks + nearest, count * landmarks
    by_landmark[:count, 1] = np.bincount(cells, known, size).reshape(count, landmarks)
    by_landmark[:count, 2] = np.bincount(cells, minlength=size).reshape(count, landmarks)
    everywhere = np.zeros((count + 1, 2), dtype=np.float32)
    everywhere[:count, 0] = model.offsets
    everywhere[:count, 1] = np.bincount(outcomes.m, known, count)
    scored, total = np.zeros((2, count))
    for start in range(0, len(matrix), MEANS_CHUNK):  # all at once takes 1 GB for 1,000 candidates
        here, at = matrix.logits[start : start + MEANS_CHUNK], row[start : start + MEANS_CHUNK]
        n, m = np.nonzero(~np.isnan(here))
        z = np.clip(here[n, m].astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
        # The default is what is best everywhere. With the relative parts, ten lies on one kind of
        # instructions would move the mean by what they say of that kind, and every choice with it.
        p = sigmoid(model.logits_everywhere(n, m, z, features[at]))
        scored += np.bincount(m, minlength=count)
        total += np.bincount(m, p, count)
    return CandidateParts(
        columns={name: i for i, name in enumerate(matrix.candidates)},
        by_landmark=by_landmark,
        everywhere=everywhere,
        means=(total / np.maximum(scored, 1)).astype(np.float32),
    )


def _judge(
    outcomes: KnownOutcomes, features: Float32Array, loss: LossComparison, count: int
) -> tuple[bool, str]:
    """Return whether the correction is used, and why."""
    if count < MIN_INSTRUCTIONS:
        return (
            False,
            f"Instructions remembered: {count}; at least {MIN_INSTRUCTIONS} are needed.",
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
        later = compare_losses(new, model.logits(new, features))
        if later.errors < -GUARD_OF_NEWER:
            return False, (
                f"Fitted to the older {cut} instructions, it does not predict the newer {newer}:"
                f" log loss goes from {later.before:.3f} to {later.after:.3f}."
            )
    return True, f"The log loss of left-out outcomes goes {figures}."
