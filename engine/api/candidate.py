"""Candidate LLMs and their aptitude test results as immutable values: validation and JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import is_utf8

ID_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
WORD_PATTERN = re.compile(r"[a-z0-9._-]{1,63}")
WORD_LISTS = ("modalities", "features", "tags", "regions")
MAX_WORDS = 32  # of a list
MAX_REPEATED_WORDS = 1000  # of a policy's list, in which a repeated word has no effect
NAME_PREFIX = "candidates/"
TEST_TASKS = 50  # tasks of an aptitude test (Model-SAT, section 3)
USUAL_QUESTIONS = 20  # of a task of that test; taken if the number is unknown
MAX_TASK_CHARS = 300
MAX_PLACE_BYTES = 1024  # of a task; a page of 200 candidates then fits a message
DEFAULT_OUTPUT_TOKENS = 400.0  # of a candidate whose mean answer was never measured
MAX_NAME_CHARS = 200
MAX_NUMBER = 1_000_000_000  # of tokens, or US dollars per million of them
MAX_CANDIDATES = 1000  # of a table
MAX_PROBLEMS = 100  # of candidates that one error lists; a table can have a million


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Result on one task of the aptitude test.

    task: the keywords that name the task. accuracy: share of its questions answered correctly, in
    [0, 1]. questions: how many questions that share rests on, 0 if it is unknown. place: where they
    lie among instructions, as `modelsat aptitude run` packs it; empty if unknown.
    """

    task: str
    accuracy: float
    questions: int = 0
    place: bytes = b""


class Aptitude(Sequence[TaskResult]):
    """The results of an aptitude test, which makes each TaskResult when it is asked for.

    A table has up to 50,000. As objects, they let each full run of the garbage collector hold up
    the event loop by 10 ms; it does not walk tuples of strings and numbers.
    """

    __slots__ = ("_accuracies", "_places", "_questions", "_tasks")

    def __init__(self, results: Iterable[TaskResult]) -> None:
        kept = tuple(results)
        self._tasks = tuple([r.task for r in kept])
        self._accuracies = tuple([r.accuracy for r in kept])
        self._questions = tuple([r.questions for r in kept])
        # Candidates that took one test share the places, so that a table holds them once.
        self._places = _shared(tuple([r.place for r in kept]))

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def __getitem__(self, index: int) -> TaskResult: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TaskResult, ...]: ...
    def __getitem__(self, index: int | slice) -> TaskResult | tuple[TaskResult, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        return TaskResult(
            self._tasks[index],
            self._accuracies[index],
            self._questions[index],
            self._places[index],
        )

    def __iter__(self) -> Iterator[TaskResult]:
        return map(TaskResult, self._tasks, self._accuracies, self._questions, self._places)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Aptitude):
            return self._content == other._content
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._content)

    def __repr__(self) -> str:
        return repr(tuple(self))

    @property
    def _content(self) -> tuple[object, ...]:
        return self._tasks, self._accuracies, self._questions, self._places


@lru_cache(maxsize=MAX_CANDIDATES)
def _shared(places: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the first tuple that was equal."""
    return places


@dataclass(frozen=True)
class Candidate:
    """One LLM that requests can be routed to. None means unknown; unknown values are never guessed.

    Prices are in US dollars per million tokens, context_window and mean_output_tokens in tokens,
    cached_input_usd_per_million is that of input tokens from the provider's prompt cache.
    time_to_first_token_ms in milliseconds, output_tokens_per_s in tokens a second after the first.
    modalities (in addition to text), features, tags and regions are what policies select by, see
    candidate.proto.
    """

    id: str
    aptitude: Sequence[TaskResult]
    display_name: str = ""
    context_window: int | None = None
    input_usd_per_million: float | None = None
    output_usd_per_million: float | None = None
    price_source: str = ""
    mean_output_tokens: float | None = None
    time_to_first_token_ms: float | None = None
    cached_input_usd_per_million: float | None = None
    output_tokens_per_s: float | None = None
    modalities: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.aptitude, Aptitude):
            object.__setattr__(self, "aptitude", Aptitude(self.aptitude))

    @property
    def name(self) -> str:
        """The resource name, `candidates/{id}`."""
        return NAME_PREFIX + self.id

    @property
    def etag(self) -> str:
        """A hash of all fields: it changes if and only if the candidate does."""
        return _etag(self)

    def mean_accuracy(self) -> float:
        """Mean accuracy over the tasks of the aptitude test, in [0, 1]."""
        return math.fsum(r.accuracy for r in self.aptitude) / len(self.aptitude)

    def level_standard_error(self) -> float:
        """Standard error of the mean accuracy, given these tasks; .013 for a whole test.

        One right and one wrong answer are added to each task (Laplace), so that it is never 0.
        """
        total = 0.0
        for result in self.aptitude:
            count = result.questions if result.questions > 0 else USUAL_QUESTIONS
            right = count * min(max(result.accuracy, 0.0), 1.0)  # not validated yet
            share = (right + 1) / (count + 2)
            total += share * (1 - share) / count
        return math.sqrt(total) / max(len(self.aptitude), 1)

    def expected_cost_usd(self, input_tokens: int, default_output_tokens: float) -> float | None:
        """Estimate the cost of one request in US dollars; None if a price is unknown.

        default_output_tokens: assumed length of the reply if mean_output_tokens is unknown.
        """
        stated = self.mean_output_tokens
        return self.cost_usd(input_tokens, default_output_tokens if stated is None else stated)

    def expected_latency_ms(self, output_tokens: float) -> float | None:
        """Estimate the time until the last token of an answer; None if a figure is unknown."""
        if self.time_to_first_token_ms is None or not self.output_tokens_per_s:
            return None
        return self.time_to_first_token_ms + 1000 * output_tokens / self.output_tokens_per_s

    def cache_saving_usd(self, cached_tokens: int) -> float:
        """Return what a call costs less in US dollars if the provider has so many of its input
        tokens in its prompt cache; 0 if a price is unknown."""
        full, cached = self.input_usd_per_million, self.cached_input_usd_per_million
        if full is None or cached is None:
            return 0.0
        return cached_tokens * max(0.0, full - cached) / 1e6

    def cost_usd(self, input_tokens: int, output_tokens: float) -> float | None:
        """Return the list price of a call in US dollars; None if a price is unknown."""
        if self.input_usd_per_million is None or self.output_usd_per_million is None:
            return None
        input_cost = input_tokens * self.input_usd_per_million
        return (input_cost + output_tokens * self.output_usd_per_million) / 1e6


def parse_name(name: str, field: str = "name") -> str:
    """Return the ID in the resource name `candidates/{id}`.

    field: path of the name in the request, for the error. Raises InvalidInputError for other names.
    """
    identifier = name.removeprefix(NAME_PREFIX)
    if not name.startswith(NAME_PREFIX) or not ID_PATTERN.fullmatch(identifier):
        raise InvalidInputError(
            Violation(field, f"is {name[:80]!r}; expected candidates/{{id}}, {_ID_RULE}.")
        )
    return identifier


def parse_names(names: Sequence[str], field: str) -> tuple[str, ...]:
    """Return the IDs in resource names; raise InvalidInputError as parse_name does, or if there are
    more names than a table can hold."""
    if not names:
        return ()
    if len(names) > MAX_CANDIDATES:
        raise InvalidInputError(
            Violation(field, f"has {len(names)} names; a table holds at most {MAX_CANDIDATES}.")
        )
    return tuple(parse_name(name, f"{field}[{i}]") for i, name in enumerate(names))


def check_counts(holder: Any, field: str, labels: Sequence[str], limit: int) -> None:
    """Raise InvalidInputError for lists of words that are too long to look at.

    holder: a message or value that has an attribute for each of `labels`.
    """
    for label in labels:
        if (count := len(getattr(holder, label))) > limit:
            problem = f"has {count} words, the limit is {limit}."
            raise InvalidInputError(Violation(f"{field}.{label}", problem))


def validate(candidate: Candidate, field: str = "candidate") -> list[Violation]:
    """List every problem of `candidate`; the list is empty if it is valid."""
    return [
        *_check_words(candidate, field),
        *_check_aptitude(candidate.aptitude, f"{field}.aptitude"),
        *_check_numbers(candidate, field),
        *check_word_lists(candidate, field),
    ]


def check_word_lists(
    holder: Any, field: str, labels: Sequence[str] = WORD_LISTS
) -> list[Violation]:
    """List the problems of the word lists of a candidate or a policy.

    holder: has an attribute for each of `labels`, a sequence of words.
    """
    problems = []
    for label in labels:
        words = getattr(holder, label)
        path = f"{field}.{label}"
        if len(words) > MAX_WORDS:
            problems.append(Violation(path, f"has {len(words)} words, the limit is {MAX_WORDS}."))
            continue
        invalid = next((w for w in words if not WORD_PATTERN.fullmatch(w)), None)
        if invalid is not None:
            problems.append(
                Violation(
                    path, f"has {invalid[:80]!r}; expected words of 1 to 63 of a-z 0-9 . _ -."
                )
            )
        if len(set(words)) < len(words):
            repeated = next(w for i, w in enumerate(words) if w in words[:i])
            problems.append(Violation(path, f"repeats {repeated[:80]!r}."))
    return problems


def check_table_size(count: int) -> None:
    """Raise InvalidInputError if there are more candidates than a table holds."""
    if count > MAX_CANDIDATES:
        problem = f"would be {count}, the limit is {MAX_CANDIDATES}."
        raise InvalidInputError(Violation("candidates", problem))


def require_valid(
    candidates: Sequence[Candidate], field: str = "candidates", paths: Sequence[str] = ()
) -> None:
    """Raise one InvalidInputError that lists the problems of `candidates`, duplicates included.

    The candidates after the one with problem number MAX_PROBLEMS are not looked at. paths: names of
    the candidates in errors, if not `field` with their positions.
    """
    single = len(candidates) == 1
    problems: list[Violation] = []
    first_index: dict[str, int] = {}
    for i, candidate in enumerate(candidates):
        path = paths[i] if paths else field if single else f"{field}[{i}]"
        problems += validate(candidate, path)
        first = first_index.setdefault(candidate.id, i)
        if first != i:
            problem = f"is {candidate.name}, the same as {field}[{first}]; names are unique."
            problems.append(Violation(f"{path}.name", problem))
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise InvalidInputError(*problems)


def to_json(candidate: Candidate) -> dict[str, Any]:
    """Return `candidate` as a JSON object, without the fields whose values are unknown."""
    fields = {k: v for k, v in vars(candidate).items() if v not in (None, "", ())}
    fields |= {k: list(fields[k]) for k in WORD_LISTS if k in fields}
    fields["aptitude"] = [
        {"task": r.task, "accuracy": r.accuracy}
        | ({"questions": r.questions} if r.questions else {})
        | ({"place": encode_place(r.place)} if r.place else {})
        for r in candidate.aptitude
    ]
    return fields


def encode_place(place: bytes) -> str:
    """Encode TaskResult.place for JSON, in Base64."""
    return base64.b64encode(place).decode()


def decode_place(text: str) -> bytes:
    """Invert encode_place; raises ValueError."""
    return base64.b64decode(text, validate=True)


def from_json(value: Mapping[str, Any]) -> Candidate:
    """Invert to_json, for files that this project wrote; values are not validated."""
    fields = dict(value)
    results = fields.pop("aptitude")
    if "mean_answer_tokens" in fields:  # the name in version 0.1
        fields["mean_output_tokens"] = fields.pop("mean_answer_tokens")
    aptitude = tuple(
        TaskResult(
            r["task"],
            float(r["accuracy"]),
            r.get("questions", 0),
            decode_place(r.get("place", "")),
        )
        for r in results
    )
    fields |= {k: tuple(fields[k]) for k in WORD_LISTS if k in fields}
    return Candidate(aptitude=aptitude, **fields)


@lru_cache(maxsize=4 * MAX_CANDIDATES)
def _etag(candidate: Candidate) -> str:
    payload = json.dumps(to_json(candidate), sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


def task_count_violation(count: int, field: str) -> Violation:
    """Describe an aptitude test that has `count` accuracies, none or more than TEST_TASKS."""
    problem = f"has {count} accuracies, expected 1 to {TEST_TASKS}; those left out are estimated."
    return Violation(field, problem)


_ID_RULE = "an ID is 1 to 63 of a-z 0-9 . _ - and begins and ends with a letter or digit"


def _check_words(candidate: Candidate, field: str) -> list[Violation]:
    problems = []
    if not ID_PATTERN.fullmatch(candidate.id):
        problems.append(Violation(f"{field}.name", f"has ID {candidate.id[:80]!r}; {_ID_RULE}."))
    for label in ("display_name", "price_source"):
        text = getattr(candidate, label)
        size = len(text)
        if not is_utf8(text):
            problems.append(Violation(f"{field}.{label}", "is not valid UTF-8."))
        if size > MAX_NAME_CHARS:
            problems.append(
                Violation(
                    f"{field}.{label}", f"is {size} characters, the limit is {MAX_NAME_CHARS}."
                )
            )
    return problems


def _check_aptitude(results: Sequence[TaskResult], field: str) -> list[Violation]:
    problems = []
    if len(results) != TEST_TASKS:
        problems.append(task_count_violation(len(results), field))
    if len(results) > TEST_TASKS:
        return problems  # bounds the work on hostile input
    tasks: set[str] = set()
    for i, result in enumerate(results):
        path = f"{field}[{i}]"
        if not 0.0 <= result.accuracy <= 1.0:  # false for NaN too
            problems.append(
                Violation(
                    f"{path}.accuracy",
                    f"is {result.accuracy}, expected a share in [0, 1]"
                    f"{_accuracy_advice(result.accuracy)}.",
                )
            )
        if not 0 <= result.questions <= MAX_NUMBER:
            problem = f"is {result.questions}; expected 0 (unknown) to {MAX_NUMBER}."
            problems.append(Violation(f"{path}.questions", problem))
        if not is_utf8(result.task):
            problems.append(Violation(f"{path}.task", "is not valid UTF-8."))
        if not result.task.strip() or len(result.task) > MAX_TASK_CHARS:
            problems.append(
                Violation(
                    f"{path}.task",
                    f"is {len(result.task)} characters; expected 1 to {MAX_TASK_CHARS} that name"
                    " the task by keywords.",
                )
            )
        if len(result.place) > MAX_PLACE_BYTES:
            problem = f"is {len(result.place)} bytes, the limit is {MAX_PLACE_BYTES}."
            problems.append(Violation(f"{path}.place", problem))
        if result.task in tasks:
            problems.append(Violation(f"{path}.task", f"repeats {result.task[:80]!r}."))
        tasks.add(result.task)
    return problems


def _accuracy_advice(value: float) -> str:
    """Say what to do about an accuracy that is no share."""
    if 1 < value <= 100:
        return f"; if it is in percent, give {value / 100:g}"
    if math.isnan(value):
        return "; a task without graded questions has no accuracy: ask its questions again"
    return ""


def _check_numbers(candidate: Candidate, field: str) -> list[Violation]:
    problems = []
    for label in (
        *("input_usd_per_million", "output_usd_per_million", "mean_output_tokens"),
        *("time_to_first_token_ms", "output_tokens_per_s", "cached_input_usd_per_million"),
    ):
        value = getattr(candidate, label)
        if value is not None and not 0 <= value <= MAX_NUMBER:  # true for NaN too
            problems.append(
                Violation(
                    f"{field}.{label}",
                    f"is {value}; expected 0 to {MAX_NUMBER}, or leave it out if it is unknown.",
                )
            )
    window = candidate.context_window
    if window is not None and not 0 < window <= MAX_NUMBER:
        problems.append(
            Violation(
                f"{field}.context_window",
                f"is {window} tokens; expected 1 to {MAX_NUMBER}, or leave it out.",
            )
        )
    return problems
