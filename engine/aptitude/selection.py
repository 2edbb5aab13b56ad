"""Which questions are asked: the same ones that the zoo's candidates sat where the source has them,
others drawn by seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.api.candidate import TEST_TASKS
from engine.api.errors import InvalidInputError, Violation
from engine.aptitude.hub import read_hub
from engine.aptitude.questions import Question, read_file, read_folder, standard_tasks

PER_TASK = 20


@dataclass(frozen=True)
class Paper:
    """The questions of one test, in the order in which they are asked.

    source: where they come from. seed: of the draw. standard: how many the zoo's candidates sat.
    """

    questions: tuple[Question, ...]
    source: str
    seed: int
    standard: int

    @property
    def tasks(self) -> list[str]:
        """Tasks, sorted."""
        return sorted({q.task for q in self.questions})

    @property
    def digest(self) -> str:
        """sha256 of what is asked and what is right."""
        asked = sorted(f"{q.task}\0{q.key}\0{q.answer}" for q in self.questions)
        return hashlib.sha256("\n".join(asked).encode()).hexdigest()


def compose(source: str, questions_per_task: int, tasks: Sequence[str], seed: int) -> Paper:
    """The paper from a file, a data folder, or a data set of the hub. tasks: only these; empty
    means the standard 50 where the source has any of them, else the source's own.

    Raises InvalidInputError.
    """
    if not 1 <= questions_per_task <= 1000:
        raise InvalidInputError(
            Violation("--questions-per-task", f"is {questions_per_task}; expected 1 to 1000.")
        )
    pools = _pools(source)
    wanted = _wanted(pools, tasks)
    draw = random.Random(seed)  # noqa: S311 - a draw that can be repeated
    known = standard_tasks()
    chosen: list[Question] = []
    standard = 0
    for task in wanted:
        items = known[task].items if task in known else frozenset[str]()
        pool = sorted({q.key: q for q in pools[task]}.values(), key=lambda q: q.key)
        draw.shuffle(pool)
        pool.sort(key=lambda q: q.key not in items)
        chosen += pool[:questions_per_task]
        standard += sum(q.key in items for q in pool[:questions_per_task])
    draw.shuffle(chosen)
    return Paper(tuple(chosen), source, seed, standard)


def _wanted(pools: Mapping[str, Sequence[Question]], tasks: Sequence[str]) -> list[str]:
    if missing := [t for t in tasks if t not in pools]:
        raise InvalidInputError(
            Violation("--tasks", f"names {missing}; the questions have {sorted(pools)}.")
        )
    standard = [t for t in standard_tasks() if t in pools]
    wanted = sorted(set(tasks) or standard or pools)
    if not 1 <= len(wanted) <= TEST_TASKS:
        raise InvalidInputError(
            Violation(
                "--questions",
                f"holds {len(wanted)} tasks; a test has 1 to {TEST_TASKS}, choose with --tasks.",
            )
        )
    return wanted


def _pools(source: str) -> dict[str, list[Question]]:
    path = Path(source)
    if path.is_dir():
        found = read_folder(path)
        return {t: [replace(q, task=t) for q in questions] for t, questions in found.items()}
    if path.is_file():
        questions = read_file(path)
    elif path.suffix not in {".jsonl", ".gz"} and source.count("/") == 1:
        questions = read_hub(source)
    else:
        raise InvalidInputError(
            Violation(
                "--questions",
                f"is {source}: neither a file, a folder, nor a data set like cais/mmlu.",
            )
        )
    home = {key: task for task, entry in standard_tasks().items() for key in entry.items}
    pools: dict[str, list[Question]] = {}
    for question in questions:
        task = home.get(question.key, question.task)
        if task:
            pools.setdefault(task, []).append(replace(question, task=task))
    return pools
