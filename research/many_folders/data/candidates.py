"""Draw the candidates of a training step on the device: their aptitude figures and outcomes.

This is training/data/augment.py for a GPU, with three additions. Any task set of the folder can be
the test. A synthetic candidate may always fail or always succeed in a subject, so that only the
figure of the instruction's own task predicts its outcome. A test may have few or many questions.

Shapes: M real and K synthetic candidates, T tasks, G subjects, F items, B instructions, C
representation width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST, SECOND, EITHER, BOTH, NEVER, ALWAYS, BLEND = range(7)
FULL_TEST, USUAL_QUESTIONS, PRIOR_QUESTIONS = 50, 20, 10
BUDGET, LARGEST_SHARE = 1000, 0.2  # as engine.datasets.aptitude_test
SUBSET_SHARE, FORGET_SHARE, SELECTED_SHARE = 0.3, 0.3, 0.75
QUESTIONS = (3, 5, 10, 20, 50, 200)


@dataclass(frozen=True)
class Test:
    """A task_set on the device. vectors: (T, E). means: (T,), NaN = unknown. group: (N,) in
    [0, G], G = none. items: (M, F), NaN = not measured; task, subject: (F,). weight: (F,) as a
    derived test selects items, None where all are used. row_of: (F,) the instruction that an item
    is, -1 = none. figures, counts: (M, T), as stated, or None."""

    vectors: Tensor
    means: Tensor
    group: Tensor
    groups: int
    items: Tensor
    task: Tensor
    subject: Tensor
    weight: Tensor | None
    row_of: Tensor
    figures: Tensor | None
    counts: Tensor | None


@dataclass(frozen=True)
class CandidateSample:
    """figures, counts: (M + K, T), NaN = not measured. outcomes: (B, M + K). means: (T,). counted:
    whether counts are shown. parents: (K, 2)."""

    figures: Tensor
    counts: Tensor
    outcomes: Tensor
    means: Tensor
    counted: bool


def represent(figures: Tensor, counts: Tensor | None, means: Tensor, vectors: Tensor) -> Tensor:
    """(M, C): engine.registry.encoder.accuracy_weighted, and where counts (M, T) are given, each
    task weighs by them: n / (n + PRIOR_QUESTIONS), in units of a task of USUAL_QUESTIONS."""
    measured = ~figures.isnan()
    weight = measured.float()
    if counts is not None:
        usual = USUAL_QUESTIONS / (USUAL_QUESTIONS + PRIOR_QUESTIONS)
        weight = weight * counts / (counts + PRIOR_QUESTIONS) / usual
    known = measured & ~means.isnan()
    level = mean_of(figures, weight)
    expected = mean_of(means.expand_as(figures), weight * known)
    zero = torch.zeros((), device=figures.device)
    shape = torch.where(measured, figures - level, zero) - torch.where(
        known, means - expected, zero
    )
    tasks = measured.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.cat([FULL_TEST * ((shape * weight) @ vectors) / tasks, level], dim=1)


def mean_of(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the last axis, which is kept; NaN values count nothing."""
    weight = weight * ~values.isnan()
    total = weight.sum(dim=1, keepdim=True)
    return (values.nan_to_num() * weight).sum(dim=1, keepdim=True) / total.clamp(min=1e-6)


class CandidateSampler:
    """Draws the candidates of a step.

    synthetic: K. extreme: share of them that always fail or succeed in some subjects. counts:
    whether tests of few and many questions are drawn.
    """

    def __init__(
        self, seed: int, device: torch.device, synthetic: int, extreme: float, counts: bool
    ) -> None:
        self.random = torch.Generator(device=device).manual_seed(seed)
        self.device, self.synthetic, self.extreme, self.counts = device, synthetic, extreme, counts

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.random, device=self.device)

    def _randint(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.random, device=self.device)

    def draw(
        self, test: Test, scores: Tensor, real: Tensor, rows: Tensor, draws: list[float]
    ) -> CandidateSample:
        """scores: (M_all, N). real: numbers of the real candidates shown. rows: (B,). draws: five
        numbers in [0, 1) from the host, for what a whole step decides."""
        items, task, subject = self._items(test, rows, draws[0])
        truth = scores[:, rows]
        pair = self._randint(len(scores), 2, self.synthetic)
        modes = self._modes(test.groups)
        tested = torch.zeros(test.groups + 1, dtype=torch.bool, device=self.device)
        tested[subject] = True
        synthetic = pick(modes[:, subject], items[pair[0]], items[pair[1]], self._rand)
        group = test.group[rows]
        own = pick(modes[:, group], truth[pair[0]], truth[pair[1]], self._rand)
        mixed = (modes[:, :1] != modes).any(dim=1, keepdim=True)
        own = torch.where(mixed & ~tested[group], torch.nan, own)
        everyone = torch.cat([items[real], synthetic])
        figures, counts = by_task(everyone, task, len(test.vectors))
        if test.figures is not None:
            assert test.counts is not None
            figures[: len(real)], counts[: len(real)] = test.figures[real], test.counts[real]
        figures, counts, counted = self._again(figures, counts, draws)
        if draws[3] < SUBSET_SHARE:
            figures = self._part(figures)
        forget = draws[4] < FORGET_SHARE
        means = torch.full_like(test.means, torch.nan) if forget else test.means
        return CandidateSample(figures, counts, torch.cat([truth[real], own]).T, means, counted)

    def _items(self, test: Test, rows: Tensor, die: float) -> tuple[Tensor, Tensor, Tensor]:
        """The items of a derived test: some, the distinguishing ones first, none of the batch."""
        if test.weight is None:
            return test.items, test.task, test.subject
        weight = test.weight if die < SELECTED_SHARE else torch.ones_like(test.weight)
        weight = weight * ~torch.isin(test.row_of, rows)
        count = max(1, min(BUDGET, int(len(weight) * LARGEST_SHARE)))
        # Weighted sampling without replacement (Efraimidis and Spirakis, 2006).
        key = torch.log(self._rand(len(weight))) / weight.clamp(min=1e-9)
        chosen = key.topk(count).indices
        return test.items[:, chosen], test.task[chosen], test.subject[chosen]

    def _modes(self, groups: int) -> Tensor:
        """(K, G + 1) how each synthetic candidate comes by its outcomes in each subject."""
        shape = (self.synthetic, groups + 1)
        kind = torch.arange(self.synthetic, device=self.device) % 4
        plain = torch.tensor([EITHER, BOTH, FIRST, BLEND], device=self.device)[kind]
        splice = (kind == 2)[:, None]
        modes = torch.where(splice, self._randint(2, *shape), plain[:, None])
        extreme = torch.arange(self.synthetic, device=self.device) >= round(
            self.synthetic * (1 - self.extreme)
        )
        return torch.where(extreme[:, None], self._randint(6, *shape), modes)

    def _again(
        self, figures: Tensor, counts: Tensor, draws: list[float]
    ) -> tuple[Tensor, Tensor, bool]:
        """Figures of another sampler half of the time, of few or many questions if so wanted."""
        if draws[1] < 0.5:
            return figures, counts, self.counts and draws[2] < 0.75
        asked = counts
        if self.counts:
            table = torch.tensor(QUESTIONS, device=self.device, dtype=torch.float32)
            same = self._randint(len(QUESTIONS), 1, 1).expand(1, counts.shape[1])
            each = self._randint(len(QUESTIONS), 1, counts.shape[1])
            asked = table[same if draws[2] < 0.5 else each].expand_as(counts)
        number = asked.clamp(min=1).round()
        drawn = torch.binomial(number, figures.nan_to_num().clamp(0, 1), self.random) / number
        return torch.where(figures.isnan(), torch.nan, drawn), number, self.counts

    def _part(self, figures: Tensor) -> Tensor:
        tasks = figures.shape[1]
        share = 0.25 + 0.75 * self._rand(1)
        hidden = self._rand(tasks) > share
        reduced = torch.where(hidden, torch.nan, figures)
        lost = reduced.isnan().all(dim=1, keepdim=True)
        return torch.where(lost, figures, reduced)


def pick(modes: Tensor, a: Tensor, b: Tensor, rand: object) -> Tensor:
    """Elementwise outcome by mode; NaN where a parent that matters has none."""
    blend = torch.where(rand(*a.shape) < 0.5, a, b)  # type: ignore[operator]
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    found = torch.where(modes == FIRST, a, b)
    for mode, value in (
        (EITHER, torch.maximum(a, b)),
        (BOTH, torch.minimum(a, b)),
        (NEVER, zero),
        (ALWAYS, one),
        (BLEND, blend),
    ):
        found = torch.where(modes == mode, value, found)
    return found


def by_task(items: Tensor, task: Tensor, tasks: int) -> tuple[Tensor, Tensor]:
    """(figures, counts) (M, T) of outcomes (M, F)."""
    member = (task[:, None] == torch.arange(tasks, device=task.device)).float()
    known = ~items.isnan()
    counts = known.float() @ member
    sums = items.nan_to_num() @ member
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan), counts
