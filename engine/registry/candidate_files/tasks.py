"""Name the tasks of a hand-written test, and estimate the accuracies that it leaves out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult
from engine.datasets.known_tasks import keywords_of, load_task_keywords, reference_tasks

PARTIAL = "partial-test"  # tag of a candidate that was not given the whole test
IMPUTED_QUESTIONS = 1  # an accuracy that no question was asked for weighs least
MAX_TYPOS = 2  # characters by which a name may differ from the one that was meant
MIN_CHARS_PER_TYPO = 4  # shorter names differ by less


def task_keywords(name: str) -> str:
    """Return the keywords under which a task is registered; name and errors as in known_task."""
    task = known_task(name)
    return task if "," in task else keywords_of([task])[0]


def known_task(name: str) -> str:
    """Return the name of the known task that is meant, or the name itself of any other task.

    name: of a known task ("college_physics", "College Physics"), its keywords, or a name of your
    own for another task.

    Raises:
        ValueError: the name is so like a known task's that it may be mistyped.
    """
    words = _words(name)
    if (known := _known_words().get(words)) is not None:
        return known
    if "," in name:  # keywords
        return name
    if meant := [task for known, task in _known_words().items() if _is_like(words, known)]:
        raise ValueError(
            f"{name[:80]!r} is no known task; did you mean {' or '.join(meant)}? Give a task of"
            " your own a name that is less like it"
        )
    return name


def own_tasks(results: Iterable[TaskResult]) -> list[str]:
    """List the tasks that are no known ones."""
    known = set(load_task_keywords().values())
    return [r.task for r in results if r.task not in known]


def with_whole_test(candidate: Candidate) -> Candidate:
    """Add estimates for tasks that were not tested, so that there are TEST_TASKS in all, and tag
    the candidate as PARTIAL. One without results, or with a whole test, stays as it is."""
    if not 0 < len(candidate.aptitude) < TEST_TASKS:
        return candidate
    keywords = load_task_keywords()
    given = (replace(r, task=keywords.get(r.task, r.task)) for r in candidate.aptitude)
    tags = tuple(sorted({*candidate.tags, PARTIAL}))
    return replace(candidate, aptitude=_whole_test(tuple(given)), tags=tags)


def merged_results(
    before: Iterable[TaskResult], new: Iterable[TaskResult]
) -> tuple[TaskResult, ...]:
    """Return the measured results of a new test, and those of an earlier one on other tasks."""
    measured = [r for r in new if r.questions != IMPUTED_QUESTIONS]
    tasks = {r.task for r in measured}
    kept = (r for r in before if r.questions != IMPUTED_QUESTIONS and r.task not in tasks)
    return (*measured, *kept)


def _whole_test(results: tuple[TaskResult, ...]) -> tuple[TaskResult, ...]:
    names = {keywords: task for task, keywords in load_task_keywords().items()}
    expected = expected_accuracies({names.get(r.task, r.task): r.accuracy for r in results})
    missing = list(expected)[: max(0, TEST_TASKS - len(results))]
    added = zip(keywords_of(missing), missing, strict=True)
    return (*results, *(TaskResult(k, expected[task], IMPUTED_QUESTIONS) for k, task in added))


def expected_accuracies(tested: Mapping[str, float]) -> dict[str, float]:
    """Estimate the accuracies of tasks that were not tested, so that there are TEST_TASKS in all.

    Each is the training candidates' mean on the task, plus this candidate's lead over them on the
    tasks that it was tested on. The overall level stays that of the tested tasks, and the task
    profile says nothing about the others.

    tested: task -> accuracy in [0, 1]. Returns task -> estimated accuracy.
    """
    reference = reference_tasks()
    average = math.fsum(t.mean for t in reference.values()) / len(reference)
    usual = [reference[task].mean if task in reference else average for task in tested]
    lead = (math.fsum(tested.values()) - math.fsum(usual)) / len(tested)
    missing = [t for t in reference if t not in tested][: TEST_TASKS - len(tested)]
    return {t: round(min(1.0, max(0.0, reference[t].mean + lead)), 4) for t in missing}


def _words(name: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", name.strip().lower()))


@lru_cache(maxsize=1)
def _known_words() -> dict[str, str]:
    """Words of the name, or of the keywords, of a known task -> its name."""
    known = load_task_keywords()
    return {_words(task): task for task in known} | {_words(k): task for task, k in known.items()}


def _is_like(name: str, known: str) -> bool:
    """True if one name is the other with other word order, or with a few typing errors."""
    typos = min(MAX_TYPOS, len(name) // MIN_CHARS_PER_TYPO)
    return sorted(name.split()) == sorted(known.split()) or _distance(name, known, typos) <= typos


def _distance(a: str, b: str, limit: int) -> int:
    """Number of characters to insert, delete or replace, at most limit + 1 (Levenshtein)."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y)))
        if min(row) > limit:
            return limit + 1
    return row[-1]
