"""Make a candidate of benchmark figures that others published.

A published figure is an aptitude test of one task with many questions, on another scale: that of
MMLU-Pro and what is harder. `published_scale.json` has a line for each benchmark,

    log-odds(accuracy) = intercept + slope theta + error

where theta is the log-odds of the level, the mean accuracy in the aptitude test. The figures give
theta with its standard error. Each of the test's tasks gets the accuracy that its usual difficulty
and the level give it, and a part of the candidate's lead in its subject if MMLU-Pro is given by
subject. Benchmarks of other work become tasks of their own, with the accuracy that the test would
have at the level that they show. The numbers of questions are those that give the standard errors.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine import __version__
from engine.api.candidate import (
    TEST_TASKS,
    WORD_LISTS,
    Candidate,
    TaskResult,
    require_valid,
    to_json,
)
from engine.api.errors import InvalidInputError, Violation
from engine.datasets.known_tasks import keywords_of, reference_tasks
from engine.registry.candidate_files.documents import read_document

SCALE_FILE = Path(__file__).with_name("published_scale.json")
ANCHOR = "mmlu_pro"
PRIOR_THETA, PRIOR_ERROR = 1.0, 1.5  # of models at large: levels from .38 to .92
# What all figures of one model have in common, and what a benchmark alone says of the level at
# best, in log-odds of the level.
COMMON_ERROR, MIN_BENCHMARK_ERROR = 0.1, 0.2
MAX_QUESTIONS = 1000
LATENCIES = ("time_to_first_token_ms", "output_tokens_per_s")
PRICES = ("input_usd_per_million", "output_usd_per_million")
# A profile made of usual difficulties has less scatter than a measured one, which the weights take
# for a higher level: by .012 to .030 in p on instructions of five folders. Log-odds of the level.
SMOOTHNESS = 0.09
FIGURE_FIELDS = {"benchmark", "subject", "accuracy", "questions", "source", "date"}
CANDIDATE_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "display_name", "price_source"), str),
    "context_window": int,
    **dict.fromkeys(("mean_output_tokens", *LATENCIES, *PRICES), (int, float)),
    **dict.fromkeys(WORD_LISTS, list),
}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark on the test's scale. keywords: its task's, "" if its tasks are the test's.
    questions: how many it has. error: in log-odds. models: how many the line was fitted on."""

    name: str
    keywords: str
    questions: int
    intercept: float
    slope: float
    error: float
    models: int


@dataclass(frozen=True)
class Scale:
    """What puts published figures on the test's scale.

    subject_means: mean accuracies of the fitted candidates in MMLU-Pro's subjects. task_subjects:
    of the test's tasks, in their order. carried_share: how much of a lead in a subject shows in a
    task of it.
    """

    benchmarks: Mapping[str, Benchmark]
    subject_means: Mapping[str, float]
    task_subjects: Sequence[str]
    carried_share: float


@dataclass(frozen=True)
class Figure:
    """A published accuracy in [0, 1]. subject: of MMLU-Pro, "" for the whole. questions: 0 for the
    benchmark's. source: where it was published. date: when, YYYY-MM-DD."""

    benchmark: str
    subject: str
    accuracy: float
    questions: int
    source: str
    date: str


@dataclass(frozen=True)
class PublishedCandidate:
    """A candidate without results, and the published figures to make them of."""

    candidate: Candidate
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Level:
    """Log-odds of a mean accuracy, and their standard error."""

    theta: float
    error: float

    @property
    def accuracy(self) -> float:
        """The mean accuracy in [0, 1]."""
        return _share(self.theta)


@lru_cache(maxsize=1)
def read_scale() -> Scale:
    """Read the shipped scale."""
    raw = json.loads(SCALE_FILE.read_text(encoding="utf-8"))
    benchmarks = {name: Benchmark(name, **values) for name, values in raw["benchmarks"].items()}
    subjects = list(raw["task_subjects"].values())
    return Scale(benchmarks, raw["subject_means"], subjects, raw["carried_share"])


def read_published(path: Path) -> list[PublishedCandidate]:
    """Read candidates with published figures: an object, a list, or {"candidates": [...]}.

    Raises:
        InvalidInputError: that lists every problem.
    """
    raw = read_document(path)
    raw = raw["candidates"] if isinstance(raw, dict) and "candidates" in raw else raw
    items = raw if isinstance(raw, list) else [raw]
    problems: list[Violation] = []
    found = []
    for i, item in enumerate(items):
        if read := _read_candidate(item, f"candidates[{i}]", problems):
            found.append(read)
    if problems:
        raise InvalidInputError(*problems)
    return found


def _read_candidate(item: Any, field: str, problems: list[Violation]) -> PublishedCandidate | None:
    """Read one candidate; None, with the reasons in `problems`, if it is invalid."""
    before = len(problems)
    figures = item.get("figures") if isinstance(item, dict) else None
    if not isinstance(figures, list) or not figures:
        problems.append(Violation(field, "has no list of `figures`."))
        return None
    for name, value in item.items():
        if name not in CANDIDATE_FIELDS and name != "figures":
            known = sorted([*CANDIDATE_FIELDS, "figures"])
            problems.append(Violation(f"{field}.{name}", f"is unknown; known fields are {known}."))
        elif name != "figures" and (
            isinstance(value, bool) or not isinstance(value, CANDIDATE_FIELDS[name])
        ):
            problem = f"is {str(value)[:80]!r}, a {type(value).__name__}."
            problems.append(Violation(f"{field}.{name}", problem))
    read = _read_figures(figures, field, problems)
    if len(problems) > before:
        return None
    fields: dict[str, Any] = {
        k: tuple(sorted(map(str, v))) if isinstance(v, list) else v for k, v in item.items()
    }
    fields |= {k: float(fields[k]) for k in ("mean_output_tokens", *PRICES) if k in fields}
    del fields["figures"]
    return PublishedCandidate(
        Candidate(id=str(fields.pop("id", "")), aptitude=(), **fields),
        read,
    )


def parse_figures(raw: Any, field: str) -> tuple[Figure, ...]:
    """Read the figures of one candidate; raises InvalidInputError that lists every problem.

    field: path of the candidate.
    """
    problems: list[Violation] = []
    if not isinstance(raw, list) or not raw:
        raise InvalidInputError(Violation(f"{field}.figures", "is not a list of figures."))
    figures = _read_figures(raw, field, problems)
    if problems:
        raise InvalidInputError(*problems)
    return figures


def _read_figures(raw: Sequence[Any], field: str, problems: list[Violation]) -> tuple[Figure, ...]:
    read = [_read_figure(f, f"{field}.figures[{i}]", problems) for i, f in enumerate(raw)]
    names = [(f.benchmark, f.subject, f.source) for f in read if f]
    for repeated in sorted({n for n in names if names.count(n) > 1}):
        problems.append(
            Violation(field, f"has {' '.join(filter(None, repeated[:2]))} twice of one source.")
        )
    return tuple(f for f in read if f)


def _read_figure(raw: Any, field: str, problems: list[Violation]) -> Figure | None:
    """Read one figure; None, with the reasons in `problems`, if it is invalid."""
    before = len(problems)

    def refuse(name: str, problem: str) -> None:
        problems.append(Violation(f"{field}.{name}".rstrip("."), problem))

    if not isinstance(raw, dict) or not set(raw) <= FIGURE_FIELDS:
        refuse("", f"is not an object of {sorted(FIGURE_FIELDS)}.")
        return None
    scale = read_scale()
    benchmark = re.sub(r"[\s-]+", "_", str(raw.get("benchmark", "")).strip().lower())
    subject = str(raw.get("subject", ""))
    accuracy: Any = raw.get("accuracy")
    questions: Any = raw.get("questions", 0)
    if benchmark not in scale.benchmarks:
        refuse("benchmark", f"is {raw.get('benchmark')!r}; known are {sorted(scale.benchmarks)}.")
    if subject and (benchmark != ANCHOR or subject not in scale.subject_means):
        known = sorted(scale.subject_means)
        refuse("subject", f"is {subject!r}; {ANCHOR} has {known}, the others none.")
    if (
        isinstance(accuracy, bool)
        or not isinstance(accuracy, int | float)
        or not 0 <= accuracy <= 1
    ):
        percent = isinstance(accuracy, int | float) and 1 < accuracy <= 100
        advice = f"; if it is in percent, give {accuracy / 100:g}" if percent else ""
        refuse("accuracy", f"is {accuracy!r}, expected a share in [0, 1]{advice}.")
    if isinstance(questions, bool) or not isinstance(questions, int) or not 0 <= questions <= 10**6:
        refuse("questions", f"is {questions!r}; expected a whole number, 0 if unknown.")
    if not str(raw.get("source", "")).strip():
        refuse("source", "is missing; a figure is taken only with where it was published.")
    try:
        datetime.date.fromisoformat(str(raw.get("date", "")))
    except ValueError:
        refuse("date", f"is {raw.get('date')!r}; expected the day of publication, YYYY-MM-DD.")
    if len(problems) > before:
        return None
    return Figure(benchmark, subject, float(accuracy), questions, raw["source"], raw["date"])


def estimate_level(figures: Sequence[Figure], scale: Scale) -> Level:
    """Estimate a level from figures, each weighed by its precision, and a wide prior."""
    precision = PRIOR_ERROR**-2
    total = PRIOR_THETA * precision
    for name, accuracy, questions in _by_benchmark(figures, scale):
        shown = shown_level(scale.benchmarks[name], accuracy, questions)
        precision += shown.error**-2
        total += shown.theta * shown.error**-2
    return Level(total / precision, math.hypot(precision**-0.5, COMMON_ERROR))


def shown_level(benchmark: Benchmark, accuracy: float, questions: int) -> Level:
    """Return the level that one figure alone shows."""
    share = (accuracy * questions + 0.5) / (questions + 1)
    sampling = 1 / math.sqrt((questions + 1) * share * (1 - share))
    theta = (_log_odds(share) - benchmark.intercept) / benchmark.slope
    error = math.hypot(benchmark.error, sampling) / benchmark.slope
    # MMLU-Pro asks what the test asks, so its error is what was found.
    return Level(theta, error if benchmark.name == ANCHOR else max(error, MIN_BENCHMARK_ERROR))


def _by_benchmark(figures: Sequence[Figure], scale: Scale) -> list[tuple[str, float, int]]:
    """(benchmark, mean accuracy, questions) of each benchmark; of MMLU-Pro the subjects weigh as in
    the aptitude test, and its whole counts only without them."""
    merged = []
    for name in sorted({f.benchmark for f in figures}):
        of_name = [f for f in figures if f.benchmark == name]
        if subjects := _subject_accuracies(of_name, scale):
            leads = [a - scale.subject_means[s] for s, a in subjects.items()]
            lead = sum(leads) / len(leads)
            of_tasks = [
                subjects.get(s, min(0.99, max(0.01, scale.subject_means[s] + lead)))
                for s in scale.task_subjects
            ]
            questions = sum(f.questions for f in of_name if f.subject)
            merged.append((name, sum(of_tasks) / len(of_tasks), questions or 50 * len(subjects)))
        else:
            mean = sum(f.accuracy for f in of_name) / len(of_name)
            stated = max(f.questions for f in of_name)
            merged.append((name, mean, stated or scale.benchmarks[name].questions))
    return merged


def _subject_accuracies(figures: Sequence[Figure], scale: Scale) -> dict[str, float]:
    """Subject of MMLU-Pro -> mean of its figures."""
    found = {}
    for subject in scale.subject_means:
        if of_subject := [f.accuracy for f in figures if f.subject == subject]:
            found[subject] = sum(of_subject) / len(of_subject)
    return found


def candidate_from(published: PublishedCandidate, scale: Scale | None = None) -> Candidate:
    """Make a candidate of its published figures. scale: the shipped one if None.

    Raises:
        InvalidInputError: a field of the candidate is invalid.
    """
    results = expected_results(published.figures, scale or read_scale())
    candidate = replace(published.candidate, aptitude=results)
    require_valid([candidate])
    return candidate


def expected_results(figures: Sequence[Figure], scale: Scale) -> tuple[TaskResult, ...]:
    """Return the TEST_TASKS results that published figures lead to expect; those of other
    benchmarks than MMLU-Pro are first."""
    level = estimate_level(figures, scale)
    own = []
    for name, accuracy, questions in _by_benchmark(figures, scale):
        benchmark = scale.benchmarks[name]
        if benchmark.keywords:
            shown = shown_level(benchmark, accuracy, questions)
            count = _questions(shown.accuracy, shown.error, 1, min(questions, MAX_QUESTIONS))
            own.append(TaskResult(benchmark.keywords, round(shown.accuracy, 4), count))
    leads = _leads(figures, scale)
    reference = list(reference_tasks().items())[: TEST_TASKS - len(own)]
    keywords = keywords_of([task for task, _ in reference])
    offsets = [
        _log_odds(entry.mean) + leads.get(subject, 0.0)
        for (_, entry), subject in zip(reference, scale.task_subjects, strict=False)
    ]
    count = _questions(level.accuracy, level.error, TEST_TASKS, MAX_QUESTIONS)
    profile_mean = _share(level.theta - SMOOTHNESS)
    missing = profile_mean * TEST_TASKS - sum(r.accuracy for r in own)
    accuracies = _shifted(offsets, missing / len(offsets))
    results = [TaskResult(k, round(a, 4), count) for k, a in zip(keywords, accuracies, strict=True)]
    return (*own, *results)


def with_figures(candidate: Candidate, figures: tuple[Figure, ...]) -> Candidate:
    """Add to a candidate's own results those that its published figures lead to expect."""
    own = tuple(candidate.aptitude)
    tested = {result.task for result in own}
    others = [r for r in expected_results(figures, read_scale()) if r.task not in tested]
    return replace(candidate, aptitude=(*own, *others[: max(0, TEST_TASKS - len(own))]))


def _leads(figures: Sequence[Figure], scale: Scale) -> dict[str, float]:
    """Subject -> log-odds by which the candidate leads in it, against its mean lead, as far as that
    shows in the test's tasks."""
    subjects = _subject_accuracies(figures, scale)
    if not subjects:
        return {}
    leads = {
        s: _log_odds(min(0.995, max(0.005, a))) - _log_odds(scale.subject_means[s])
        for s, a in subjects.items()
    }
    mean = sum(leads.values()) / len(leads)
    return {s: scale.carried_share * (lead - mean) for s, lead in leads.items()}


def _shifted(offsets: Sequence[float], mean: float) -> list[float]:
    """Accuracies whose log-odds are `offsets` plus a constant, and whose mean is `mean`."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        accuracies = [_share(offset + middle) for offset in offsets]
        low, high = (middle, high) if sum(accuracies) < mean * len(offsets) else (low, middle)
    return accuracies


def _questions(accuracy: float, error: float, tasks: int, most: int) -> int:
    """Number of questions a task that gives the mean of `tasks` accuracies the standard error
    `error`, in log-odds."""
    variance = accuracy * (1 - accuracy)
    return max(1, min(most, round(1 / (tasks * error**2 * variance))))


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def document(published: Sequence[PublishedCandidate]) -> dict[str, Any]:
    """Build the JSON document that `modelsat candidates create` reads, with all sources."""
    return {
        "candidates": [to_json(candidate_from(each)) for each in published],
        "provenance": {
            "made_by": f"modelsat {__version__} aptitude from-published",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "figures": {each.candidate.id: [vars(f) for f in each.figures] for each in published},
        },
    }
