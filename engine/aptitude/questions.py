"""Read questions from a file or from a data folder.

A file has a JSON object on each line: text (the question, then its options, each on a line that
begins "A. "), answer (a letter), task (or mmlu_subject or subtask), and optionally id. A question
without options has free text as its answer: `answer` is the right one, a list of right ones, or a
JSON schema, and `grader` says how replies are compared with it, see
engine/compare/graders/answers.py. Of a data folder the items of its aptitude test are read.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.errors import InvalidInputError, Violation
from engine.api.text_files import read_utf8
from engine.datasets.aptitude_test import derive_items
from engine.datasets.folder import instructions_file, read_lines
from engine.datasets.outcomes import split

FREE_TEXT_GRADERS = ("exact", "numeric", "contains", "regex", "json-schema", "program")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A question: multiple-choice, or with free text as the answer.

    task: empty if the source names none. text: the question and its options, as the model reads
    them. options: texts of the options, from A on; none for free text. answer: the right letter,
    "" for free text. references, grader: what replies are compared with, and how, for free text.
    """

    id: str
    task: str
    text: str
    options: tuple[str, ...]
    answer: str
    references: tuple[Any, ...] = ()
    grader: str = ""

    @property
    def key(self) -> str:
        """Hash of the text without white space, equal for the same question of any source."""
        return hashlib.sha256(re.sub(r"\s+", "", self.text).encode()).hexdigest()[:12]


def lettered(stem: str, options: Iterable[str]) -> str:
    """Render a question: its stem, then a line for each option."""
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([stem.strip(), *listed])


def options_of(text: str) -> tuple[str, ...]:
    """Read the options at the end of `text`, from its last line that begins "A. " on."""
    start = text.rfind("\nA. ")
    options: list[str] = []
    while start >= 0:
        following = LETTERS[len(options) + 1 : len(options) + 2]
        end = text.find(f"\n{following}. ", start + 1) if following else -1
        options.append(text[start + 4 : None if end < 0 else end].strip())
        start = end
    return tuple(options)


def question_from(record: Mapping[str, Any], at: str, grader: str = "") -> Question:
    """Read one line of a file, which `at` names in errors.

    grader: of free-text questions that name none.

    Raises:
        InvalidInputError: the record is not a question with options and a right answer, nor one
            with a grader.
    """
    text, answer = str(record.get("text", "")).strip(), str(record.get("answer", "")).strip()
    task = str(record.get("task") or record.get("mmlu_subject") or record.get("subtask") or "")
    identifier = str(record.get("id") or at)
    options = options_of(text)
    if "grader" in record or (grader and len(options) < 2):
        given = record.get("answer")
        references = tuple(given) if isinstance(given, list) else () if given is None else (given,)
        # Graders compare texts; a JSON schema is an object.
        texts = tuple(r if isinstance(r, dict) else _text(r) for r in references)
        return _free_text(Question(identifier, task, text, (), "", texts, grader), record, at)
    if len(options) < 2 or len(answer) != 1 or answer not in LETTERS[: len(options)]:
        raise InvalidInputError(
            Violation(
                at,
                f"has {len(options)} options and the answer {answer[:20]!r}; expected a text with"
                ' two or more lines that begin "A. ", "B. " and so on, and the letter of one, or a'
                " question for free text with a grader (--grader, or `grader` on its line).",
            )
        )
    return Question(identifier, task, text, options, answer)


def _free_text(question: Question, record: Mapping[str, Any], at: str) -> Question:
    named = replace(question, grader=str(record.get("grader") or question.grader))
    problem = ""
    if named.grader not in FREE_TEXT_GRADERS:
        problem = f"has the grader {named.grader[:40]!r}; expected one of {FREE_TEXT_GRADERS}."
    elif not named.text or not named.task:
        problem = "is a question for free text; expected a `text` and a `task`."
    if problem:
        raise InvalidInputError(Violation(at, problem))
    return named


def _text(reference: Any) -> str:
    return reference if isinstance(reference, str) else json.dumps(reference)


def read_file(path: Path, grader: str = "") -> list[Question]:
    """Read the questions of a .jsonl or .jsonl.gz file. grader: see question_from."""
    lines = enumerate(_records(path), start=1)
    return [question_from(record, f"{path}, line {n}", grader) for n, record in lines]


def read_folder(folder: Path) -> dict[str, list[Question]]:
    """Read the items of a data folder's aptitude test: task -> questions.

    They are those that its aptitude.json names, or else those that training derives from its
    scores (engine/datasets/aptitude_test.py).
    """
    path = instructions_file(folder)
    records = _records(path)
    test = folder / "aptitude.json"
    items = _named_items(test, path, records) if test.is_file() else _derived_items(folder, records)
    return {
        task: [question_from(records[i], f"{path}, line {i + 1}") for i in rows]
        for task, rows in items.items()
        if rows
    }


def _named_items(test: Path, path: Path, records: list[dict[str, Any]]) -> dict[str, list[int]]:
    row_of = {str(r.get("id")): i for i, r in enumerate(records)}
    try:
        named = json.loads(read_utf8(test))["items"]
        items = {t: [row_of[q] for q in ids if q in row_of] for t, ids in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            Violation(
                str(test),
                f"cannot be read ({type(error).__name__}: {error}); expected a JSON object whose"
                ' "items" are {task: [id, ...]}.',
            )
        ) from error
    if not any(items.values()):
        count = sum(map(len, named.values()))
        raise InvalidInputError(
            Violation(str(test), f"names {count} items; expected ids of {path}, and none is.")
        )
    return items


def _derived_items(folder: Path, records: list[dict[str, Any]]) -> dict[str, list[int]]:
    path = folder / "scores.npz"
    try:
        with np.load(path) as arrays:
            scores = arrays["scores"].astype(np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InvalidInputError(
            Violation(
                str(path),
                f"cannot be read ({error}); expected the candidates' scores, or an aptitude.json"
                " that names the items.",
            )
        ) from error
    if scores.ndim != 2 or scores.shape[1] != len(records):
        raise InvalidInputError(
            Violation(
                str(path),
                f"has shape {scores.shape}; expected (candidates, {len(records)}), a"
                " column for each instruction.",
            )
        )
    training, _, _ = split([str(r.get("text")) for r in records])
    subjects = [str(r.get("subtask") or r.get("benchmark")) for r in records]
    return derive_items(scores, subjects, training)


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line) for line in read_lines(path) if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise InvalidInputError(
            Violation(str(path), f"is not a readable file of JSON lines ({error}).")
        ) from error
    if others := [n for n, r in enumerate(records, start=1) if not isinstance(r, dict)]:
        raise InvalidInputError(Violation(f"{path}, line {others[0]}", "is not a JSON object."))
    return records
