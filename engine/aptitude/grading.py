"""Grade replies: find the chosen option, compute accuracies and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult
from engine.api.errors import InvalidInputError, Violation
from engine.aptitude.answers import Reading, extract, read_answer
from engine.aptitude.journal import Reply
from engine.aptitude.marking.reasoning import without_reasoning
from engine.aptitude.questions import Question
from engine.aptitude.selection import QUESTIONS_PER_TASK
from engine.datasets.known_tasks import keywords_of
from engine.registry.candidate_files.tasks import IMPUTED_QUESTIONS, PARTIAL, expected_accuracies

__all__ = [
    "AptitudeResult",
    "TaskScore",
    "extract",
    "grade",
    "imputed_accuracies",
    "is_complete",
    "read_reply",
    "why_unreadable",
    "with_result",
]

NO_SCORES: Mapping[str, float] = MappingProxyType({})
INCOMPLETE = "ended at --max-tokens before an answer"
# Characters of a first line, and of a reply of one line, that can be an answer though cut.
MAX_FIRST_LINE, MAX_WHOLE_REPLY = 200, 24


@dataclass(frozen=True)
class TaskScore:
    """Counts of questions of one task: asked, answered right, and without a readable answer.

    right: a sum of scores, which a program may give in parts. Unparsed replies count as wrong.
    Incomplete ones, which ended at the token limit before an answer, say nothing about the task and
    count neither as right nor as wrong.
    """

    task: str
    asked: int
    right: float
    unparsed: int
    incomplete: int = 0

    @property
    def graded(self) -> int:
        """Number of complete replies."""
        return self.asked - self.incomplete

    @property
    def accuracy(self) -> float:
        """Share of complete replies that are right, in [0, 1]."""
        return self.right / self.graded

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy; one right and one wrong answer are added (Laplace), so
        that it is never 0."""
        share = (self.right + 1) / (self.graded + 2)
        return math.sqrt(share * (1 - share) / (self.graded + 2))


@dataclass(frozen=True)
class AptitudeResult:
    """The outcome of an aptitude test.

    scores: of the tasks that were tested, sorted by task. mean_output_tokens: length of a reply.
    cut: replies that ended at the token limit. counted: replies whose tokens the endpoint
    reported; the others are estimates.
    """

    scores: tuple[TaskScore, ...]
    mean_output_tokens: float
    cut: int
    counted: int

    @property
    def asked(self) -> int:
        """Number of questions."""
        return sum(s.asked for s in self.scores)

    @property
    def unparsed(self) -> int:
        """Number of complete replies that choose no option."""
        return sum(s.unparsed for s in self.scores)

    @property
    def incomplete(self) -> int:
        """Number of replies that ended at the token limit before an answer."""
        return sum(s.incomplete for s in self.scores)

    @property
    def accuracy(self) -> float:
        """Mean of the tasks' accuracies, as the router reads it."""
        return math.fsum(s.accuracy for s in self.scores) / len(self.scores)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean accuracy, given these tasks."""
        return math.sqrt(math.fsum(s.standard_error**2 for s in self.scores)) / len(self.scores)

    @property
    def partial(self) -> bool:
        """True if it has fewer than TEST_TASKS tasks or QUESTIONS_PER_TASK questions in one."""
        too_few = any(s.asked < QUESTIONS_PER_TASK for s in self.scores)
        return len(self.scores) < TEST_TASKS or too_few


def read_reply(reply: Reply, options: Sequence[str]) -> Reading:
    """Read the option that `reply` chooses.

    A reply that ended at the token limit is only read if it begins with its answer: what stands
    further down may be an idea that the model had before the end.
    """
    if not reply.cut:
        return read_answer(reply.text, options)
    visible = without_reasoning(reply.text) or ""
    first, ended, _ = visible.strip().partition("\n")
    begins = len(first) <= (MAX_FIRST_LINE if ended else MAX_WHOLE_REPLY)
    reading = read_answer(first, options) if begins else None
    return reading if reading and reading.letter else Reading(None, INCOMPLETE)


def is_complete(reply: Reply) -> bool:
    """True if a reply to a free-text question ended by itself, and not within its reasoning."""
    return not reply.cut and without_reasoning(reply.text) is not None


def why_unreadable(reply: Reply, options: Sequence[str]) -> str:
    """Say why a reply cannot be graded, "" if it can. options: none for free text."""
    if not options:
        return "" if is_complete(reply) else INCOMPLETE
    reading = read_reply(reply, options)
    return reading.problem if reading.letter is None else ""


def grade(
    questions: Sequence[Question],
    replies: Mapping[str, Reply],
    free_text: Mapping[str, float] = NO_SCORES,
) -> AptitudeResult:
    """Grade `questions`, each of which has a reply (question key -> reply).

    A task without a complete reply is left out.

    free_text: question key -> score in [0, 1] of the complete replies to free-text questions.

    Raises:
        InvalidInputError: there is no complete reply at all.
    """
    problems = {q.key: why_unreadable(replies[q.key], q.options) for q in questions}
    scores = []
    for task in sorted({q.task for q in questions}):
        of_task = [q for q in questions if q.task == task]
        complete = [q for q in of_task if problems[q.key] != INCOMPLETE]
        right = math.fsum(_score(q, replies[q.key], free_text) for q in complete)
        unparsed = sum(bool(problems[q.key]) for q in complete)
        incomplete = len(of_task) - len(complete)
        score = TaskScore(task, len(of_task), right, unparsed, incomplete)
        if score.graded:
            scores.append(score)
    if not scores:
        raise InvalidInputError(
            Violation("--max-tokens", "ended every reply before its answer; allow more tokens.")
        )
    graded = [replies[q.key] for q in questions]
    return AptitudeResult(
        scores=tuple(scores),
        mean_output_tokens=round(sum(r.answer_tokens for r in graded) / len(graded), 1),
        cut=sum(r.cut for r in graded),
        counted=sum(r.counted for r in graded),
    )


def _score(question: Question, reply: Reply, free_text: Mapping[str, float]) -> float:
    if not question.options:
        return free_text[question.key]
    return float(read_reply(reply, question.options).letter == question.answer)


def imputed_accuracies(result: AptitudeResult) -> dict[str, float]:
    """Estimate the accuracy of tasks that were not tested; see expected_accuracies."""
    return expected_accuracies({s.task: s.accuracy for s in result.scores})


def with_result(
    candidate: Candidate,
    result: AptitudeResult,
    *,
    answer_only: bool = False,
    places: Mapping[str, bytes] | None = None,
) -> Candidate:
    """Add the results and the mean answer length to `candidate`, and tag a partial test.

    places: task -> where its questions lie among instructions, see TaskResult; None if unknown.
    answer_only: the model was asked for letters alone, whose length says nothing about its usual
    answers, so the length is left out.
    """
    tested = [(s.task, s.accuracy, s.graded) for s in result.scores]
    figures = tested + [(t, a, IMPUTED_QUESTIONS) for t, a in imputed_accuracies(result).items()]
    keywords = keywords_of([task for task, _, _ in figures])
    known = places or {}
    aptitude = tuple(
        TaskResult(k, a, n, known.get(task, b""))
        for k, (task, a, n) in zip(keywords, figures, strict=True)
    )
    tags = tuple(sorted({*candidate.tags, PARTIAL})) if result.partial else candidate.tags
    length = None if answer_only else result.mean_output_tokens
    return replace(candidate, aptitude=aptitude, mean_output_tokens=length, tags=tags)
