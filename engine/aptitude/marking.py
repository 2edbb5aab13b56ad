"""From replies to the figures of a candidate, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.aptitude.answers import extract
from engine.aptitude.journal import Reply
from engine.aptitude.questions import Question
from engine.aptitude.selection import PER_TASK
from engine.aptitude.standard import standard_tasks
from engine.contract.candidate import TEST_TASKS, Candidate, TaskResult
from engine.contract.outcomes import task_keywords

PARTIAL = "partial-test"  # tag of a candidate that sat less than the whole test


@dataclass(frozen=True)
class TaskFigure:
    """asked, right, unparsed: questions; unparsed ones count as wrong."""

    task: str
    asked: int
    right: int
    unparsed: int

    @property
    def accuracy(self) -> float:
        """Share answered right."""
        return self.right / self.asked

    @property
    def standard_error(self) -> float:
        """Of the accuracy, with one right and one wrong answer added (Laplace): never 0."""
        share = (self.right + 1) / (self.asked + 2)
        return math.sqrt(share * (1 - share) / (self.asked + 2))


@dataclass(frozen=True)
class Marks:
    """figures: of the tasks that were sat, sorted. cut: replies that ended at the token limit.
    counted: replies whose tokens the endpoint counted; the others are estimates."""

    figures: tuple[TaskFigure, ...]
    mean_answer_tokens: float
    cut: int
    counted: int

    @property
    def asked(self) -> int:
        """Questions."""
        return sum(f.asked for f in self.figures)

    @property
    def unparsed(self) -> int:
        """Replies that choose no option."""
        return sum(f.unparsed for f in self.figures)

    @property
    def accuracy(self) -> float:
        """Mean of the tasks' accuracies, as the router reads it."""
        return math.fsum(f.accuracy for f in self.figures) / len(self.figures)

    @property
    def standard_error(self) -> float:
        """Of the mean accuracy, for these tasks."""
        return math.sqrt(math.fsum(f.standard_error**2 for f in self.figures)) / len(self.figures)

    @property
    def partial(self) -> bool:
        """Whether it is less than 50 tasks with 20 questions each."""
        return len(self.figures) < TEST_TASKS or any(f.asked < PER_TASK for f in self.figures)


def mark(questions: Sequence[Question], replies: Mapping[str, Reply]) -> Marks:
    """The marks of `questions`, each of which has a reply."""
    letters = {q.key: extract(replies[q.key].text, q.options) for q in questions}
    figures = []
    for task in sorted({q.task for q in questions}):
        own = [q for q in questions if q.task == task]
        right = sum(letters[q.key] == q.answer for q in own)
        unparsed = sum(letters[q.key] is None for q in own)
        figures.append(TaskFigure(task, len(own), right, unparsed))
    given = [replies[q.key] for q in questions]
    return Marks(
        figures=tuple(figures),
        mean_answer_tokens=round(sum(r.answer_tokens for r in given) / len(given), 1),
        cut=sum(r.cut for r in given),
        counted=sum(r.counted for r in given),
    )


def expected_figures(marks: Marks) -> dict[str, float]:
    """Task -> accuracy for tasks that were not sat, as many as make 50 with those that were: the
    training candidates' mean, moved by how much this candidate is above them on the others. So the
    level stays that of the tasks it sat, and its shape says nothing of the rest."""
    known = standard_tasks()
    average = math.fsum(t.mean for t in known.values()) / len(known)
    usual = [known[f.task].mean if f.task in known else average for f in marks.figures]
    above = marks.accuracy - math.fsum(usual) / len(usual)
    sat = {f.task for f in marks.figures}
    missing = [t for t in known if t not in sat][: TEST_TASKS - len(sat)]
    return {t: round(min(1.0, max(0.0, known[t].mean + above)), 4) for t in missing}


def with_marks(candidate: Candidate, marks: Marks, *, direct: bool = False) -> Candidate:
    """`candidate` with figures, mean answer length, and the tag `partial-test` where it fits.
    direct: whether it was asked for letters alone, whose length says nothing of its answers."""
    figures = {f.task: f.accuracy for f in marks.figures} | expected_figures(marks)
    words = task_keywords(list(figures))
    aptitude = tuple(TaskResult(w, a) for w, a in zip(words, figures.values(), strict=True))
    tags = tuple(sorted({*candidate.tags, PARTIAL})) if marks.partial else candidate.tags
    length = None if direct else marks.mean_answer_tokens
    return replace(candidate, aptitude=aptitude, mean_answer_tokens=length, tags=tags)
