"""Choose the questions of an aptitude test.

Questions that the shipped candidates were tested on come first, so that accuracies compare. The
others are drawn by seed.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.api.candidate import TEST_TASKS
from engine.api.errors import InvalidInputError, Violation
from engine.aptitude.hub import read_hub
from engine.aptitude.questions import Question, read_file, read_folder
from engine.datasets.known_tasks import reference_tasks
from engine.registry.candidate_files.tasks import known_task

log = logging.getLogger(__name__)

QUESTIONS_PER_TASK = 20


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one test, in the order in which they are asked.

    source: where they come from. seed: of the draw. reference_overlap: how many of them the
    shipped candidates were tested on.
    """

    questions: tuple[Question, ...]
    source: str
    seed: int
    reference_overlap: int

    @property
    def tasks(self) -> list[str]:
        """Tasks, sorted."""
        return sorted({q.task for q in self.questions})

    @property
    def digest(self) -> str:
        """The sha256 of questions, tasks and right letters. References of free-text questions are
        not in it, so that replies can be graded again in another way."""
        listed = sorted(f"{q.task}\0{q.key}\0{q.answer}" for q in self.questions)
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def sample_questions(
    source: str, questions_per_task: int, tasks: Sequence[str], seed: int, grader: str = ""
) -> QuestionSet:
    """Draw a test from a file, a data folder, or a data set of the Hugging Face hub.

    Args:
        source: path, or an id like cais/mmlu.
        questions_per_task: 1 to 1000; a task with fewer questions gives all of them.
        tasks: use only these. Empty means all, or the reference tasks if the source has more than
            TEST_TASKS tasks.
        seed: equal arguments give equal questions.
        grader: of free-text questions in a file that name none.

    Raises:
        InvalidInputError: the source cannot be read, or a task is not in it.
    """
    if not 1 <= questions_per_task <= 1000:
        raise InvalidInputError(
            Violation("--questions-per-task", f"is {questions_per_task}; expected 1 to 1000.")
        )
    by_task = _read_source(source, grader)
    draw = random.Random(seed)  # noqa: S311 - a draw that can be repeated
    reference = reference_tasks()
    chosen: list[Question] = []
    overlap = repeated = 0
    for task in _choose_tasks(by_task, tasks):
        items = reference[task].items if task in reference else frozenset[str]()
        candidates = sorted({q.key: q for q in by_task[task]}.values(), key=lambda q: q.key)
        repeated += len(by_task[task]) - len(candidates)
        draw.shuffle(candidates)
        candidates.sort(key=lambda q: q.key not in items)
        chosen += candidates[:questions_per_task]
        overlap += sum(q.key in items for q in candidates[:questions_per_task])
    if repeated:
        log.warning("%s repeats %d of its questions; each is asked once", source, repeated)
    draw.shuffle(chosen)
    return QuestionSet(tuple(chosen), source, seed, overlap)


def _choose_tasks(by_task: Mapping[str, Sequence[Question]], tasks: Sequence[str]) -> list[str]:
    if missing := [t for t in tasks if t not in by_task]:
        raise InvalidInputError(
            Violation("--tasks", f"names {missing}; the questions have {sorted(by_task)}.")
        )
    reference = [t for t in reference_tasks() if t in by_task]
    whole = by_task if len(by_task) <= TEST_TASKS else reference or by_task
    chosen = sorted(set(tasks) or whole)
    if not 1 <= len(chosen) <= TEST_TASKS:
        raise InvalidInputError(
            Violation(
                "--questions",
                f"has {len(chosen)} tasks; a test has 1 to {TEST_TASKS}, choose with --tasks.",
            )
        )
    return chosen


def _known(task: str, source: str) -> str:
    try:
        return known_task(task) if task else task
    except ValueError as error:
        raise InvalidInputError(Violation("--questions", f"is {source}: {error}.")) from error


def _read_source(source: str, grader: str) -> dict[str, list[Question]]:
    """Task -> its questions."""
    path = Path(source)
    if path.is_dir():
        folder = read_folder(path)
        return {t: [replace(q, task=t) for q in questions] for t, questions in folder.items()}
    if path.is_file():
        questions = read_file(path, grader)
    elif path.suffix not in {".jsonl", ".gz"} and source.count("/") == 1:
        questions = read_hub(source)
    else:
        raise InvalidInputError(
            Violation(
                "--questions",
                f"is {source}, which is not a file, a folder, or a data set like cais/mmlu.",
            )
        )
    named = {q.task: _known(q.task, source) for q in questions}
    task_of = {key: task for task, entry in reference_tasks().items() for key in entry.items}
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        task = task_of.get(question.key, named[question.task])
        if task:
            by_task.setdefault(task, []).append(replace(question, task=task))
    return by_task
