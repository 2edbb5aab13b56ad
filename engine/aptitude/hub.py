"""Read questions of a data set on the Hugging Face hub. Needs the extra `aptitude`.

Columns are those of cais/mmlu or of TIGER-Lab/MMLU-Pro.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.aptitude.questions import LETTERS, Question, lettered

# The first pattern that matches wins: cais/mmlu has a folder for each subject, and one for all.
SHARDS = ("all/test-*.parquet", "data/test-*.parquet", "*/test-*.parquet", "*test*.parquet")


def read_hub(dataset: str, revision: str | None = None) -> list[Question]:
    """Read the test split of `dataset`, an id like cais/mmlu.

    Raises:
        InvalidInputError: a package is missing, or the hub does not have the data in this form.
    """
    try:
        # The command shows a progress bar of its own.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        import httpx2
        import huggingface_hub
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidInputError(
            Violation(
                "--questions",
                f"is a data set of the hub, which needs {error.name}:"
                " pip install '.[aptitude]', or give a local file.",
            )
        ) from error
    try:
        files = huggingface_hub.HfApi().list_repo_files(
            dataset, repo_type="dataset", revision=revision
        )
        paths = [
            huggingface_hub.hf_hub_download(dataset, f, repo_type="dataset", revision=revision)
            for f in shards(files)
        ]
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidInputError(
            Violation("--questions", f"{dataset} could not be read from the hub: {reason[0][:300]}")
        ) from error
    if not paths:
        raise InvalidInputError(
            Violation("--questions", f"{dataset} has no test split in Parquet among its files.")
        )
    rows = [row for path in paths for row in pyarrow.parquet.read_table(path).to_pylist()]
    return list(from_rows(rows, dataset))


def shards(files: Sequence[str]) -> list[str]:
    """Choose the Parquet files of the test split."""
    for pattern in SHARDS:
        if matching := sorted(f for f in files if fnmatch(f, pattern)):
            return matching
    return []


def from_rows(rows: Sequence[Mapping[str, Any]], dataset: str) -> Iterator[Question]:
    """Turn rows into questions.

    A row has question, choices or options, answer (a number or a letter), and subject or src. Rows
    with fewer than two options or a hidden answer (-1) are skipped.
    """
    counts: dict[str, int] = {}
    for n, row in enumerate(rows):
        options = row.get("choices", row.get("options"))
        if "question" not in row or options is None or "answer" not in row:
            raise InvalidInputError(
                Violation(
                    dataset,
                    f"has the columns {sorted(row)}; expected question, choices (or options) and"
                    " answer, as in cais/mmlu.",
                )
            )
        answer = row["answer"]
        if isinstance(answer, int) and not -1 <= answer < min(len(options), len(LETTERS)):
            raise InvalidInputError(
                Violation(
                    dataset,
                    f"row {n} has the answer {answer}; expected -1 (hidden) or the index of one of"
                    f" its {len(options)} options.",
                )
            )
        letter = LETTERS[answer] if isinstance(answer, int) else str(answer).strip()
        if len(options) < 2 or answer == -1 or letter not in LETTERS[: len(options)]:
            continue
        task = str(row.get("subject") or _source_subject(row))
        number = counts[task] = counts.get(task, -1) + 1
        identifier = str(row.get("question_id", f"{task}/{number}"))
        text = lettered(str(row["question"]), options)
        yield Question(f"{dataset}/{identifier}", task, text, tuple(map(str, options)), letter)


def _source_subject(row: Mapping[str, Any]) -> str:
    """Read the subject of a question that MMLU-Pro took from MMLU: ori_mmlu-marketing in `src`."""
    match = re.fullmatch(r"ori_mmlu-(.+)", str(row.get("src", "")))
    return match[1] if match else ""
