"""The file that `modelsat candidates add` reads, with how its figures came about; and the same for
people."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from engine.aptitude.endpoint import Endpoint, estimated_tokens, prompt_of
from engine.aptitude.marking import Marks, expected_figures
from engine.aptitude.questions import Question
from engine.aptitude.selection import PER_TASK, Paper
from engine.contract.candidate import DEFAULT_ANSWER_TOKENS, TEST_TASKS, Candidate, to_json
from engine.version import VERSION

ENOUGH_STANDARD = 0.9  # share of questions from which the level compares with the zoo's
ANSWER_TOKENS = {True: 5, False: 350}  # a letter; a few steps of reasoning


def sitting(paper: Paper, endpoint: Endpoint) -> dict[str, Any]:
    """What must be the same for answers to belong together."""
    return {
        "model": endpoint.model,
        "base_url": endpoint.base_url,
        "questions": paper.digest,
        "direct": endpoint.direct,
        "max_tokens": endpoint.max_tokens,
        "body": dict(endpoint.body),
    }


def estimate(
    questions: Sequence[Question], endpoint: Endpoint, answer_tokens: float | None
) -> tuple[int, int]:
    """Tokens that `questions` take, read and written; answer_tokens: of a reply, None assumes."""
    read = sum(estimated_tokens(prompt_of(q, direct=endpoint.direct)) for q in questions)
    each = ANSWER_TOKENS[endpoint.direct] if answer_tokens is None else answer_tokens
    return read, round(len(questions) * each)


def content(candidate: Candidate, marks: Marks, paper: Paper, endpoint: Endpoint) -> dict[str, Any]:
    """The JSON document."""
    return {
        "candidates": [to_json(candidate)],
        "provenance": {
            "made_by": f"modelsat {VERSION} aptitude run",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **sitting(paper, endpoint),
            "source": paper.source,
            "seed": paper.seed,
            "asked": marks.asked,
            "same_questions_as_the_zoo": paper.standard,
            "unparsed": marks.unparsed,
            "cut_at_max_tokens": marks.cut,
            "answers_with_counted_tokens": marks.counted,
            "accuracy": round(marks.accuracy, 4),
            "standard_error": round(marks.standard_error, 4),
            "tasks": {
                f.task: {
                    "asked": f.asked,
                    "right": f.right,
                    "unparsed": f.unparsed,
                    "standard_error": round(f.standard_error, 4),
                }
                for f in marks.figures
            },
            "not_sat_but_expected": expected_figures(marks),
        },
    }


def summary(marks: Marks, paper: Paper, *, direct: bool = False) -> list[str]:
    """What a person should know of the result, a sentence each."""
    tasks = len(marks.figures)
    said = [
        f"{marks.asked} questions of {tasks} tasks: {marks.accuracy:.1%} right, standard error"
        f" {marks.standard_error:.1%}; mean answer {marks.mean_answer_tokens:g} tokens"
        + ("" if marks.counted == marks.asked else f" ({marks.asked - marks.counted} estimated)")
        + "."
    ]
    if direct:
        said.append(
            "The length of letters alone (--direct) says nothing of usual answers: it is not kept,"
            f" and costs are reckoned with {DEFAULT_ANSWER_TOKENS:g} tokens."
        )
    if marks.unparsed:
        said.append(
            f"{marks.unparsed} replies chose no option and count as wrong; {marks.cut} of all"
            " replies ended at --max-tokens."
        )
    if marks.partial:
        error = sum(f.standard_error for f in marks.figures) / tasks
        said.append(
            f"This is a partial test (whole: {TEST_TASKS} tasks x {PER_TASK}): a task's figure has"
            f" a standard error of {error:.1%}; {TEST_TASKS - tasks} tasks were not sat and carry"
            " what is expected of a candidate of this level. It is tagged partial-test."
        )
    if paper.standard < ENOUGH_STANDARD * marks.asked:
        said.append(
            f"Only {paper.standard} of {marks.asked} questions are those that the shipped"
            " candidates sat: an easier or harder test moves this candidate's level beside theirs."
            " --questions TIGER-Lab/MMLU-Pro has theirs."
        )
    return said


def cost_usd(tokens: tuple[int, int], candidate: Candidate) -> float | None:
    """Price of (read, written) tokens; None where a price is unknown."""
    read, written = candidate.input_usd_per_million, candidate.output_usd_per_million
    if read is None or written is None:
        return None
    return (tokens[0] * read + tokens[1] * written) / 1e6
