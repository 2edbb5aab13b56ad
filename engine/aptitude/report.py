"""The file that `modelsat candidates add` reads, with how its figures came about; and the same for
people."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from html import escape
from typing import Any

from engine import __version__
from engine.api.candidate import DEFAULT_ANSWER_TOKENS, TEST_TASKS, Candidate, to_json
from engine.aptitude.grading import Marks, TaskFigure, expected_figures
from engine.aptitude.llm import Endpoint, estimated_tokens, prompt_of
from engine.aptitude.questions import Question, standard_tasks
from engine.aptitude.selection import PER_TASK, Paper

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
            "made_by": f"modelsat {__version__} aptitude run",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **sitting(paper, endpoint),
            "source": paper.source,
            "seed": paper.seed,
            "asked": marks.asked,
            "reference_question_overlap": paper.standard,
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
            "imputed_tasks": expected_figures(marks),
        },
    }


def summary(marks: Marks, paper: Paper, *, direct: bool = False) -> list[str]:
    """What a person should know of the result, a sentence each."""
    tasks = len(marks.figures)
    said = [
        f"{marks.asked} questions of {tasks} tasks: {marks.accuracy:.1%} right, standard error"
        f" {marks.standard_error:.1%}; mean answer {marks.mean_output_tokens:g} tokens"
        + ("" if marks.counted == marks.asked else f" ({marks.asked - marks.counted} estimated)")
        + "."
    ]
    if direct:
        said.append(
            "The length of letters alone (--answer-only) says nothing of usual answers: it is not "
            "kept,"
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


ROW, TOP, LABEL, BAR, GAP = 18, 74, 215, 230, 60  # pixels
WIDTH = 2 * (LABEL + BAR + GAP)
INK, PALE, BLUE, ORANGE = "#24292f", "#d0d7de", "#4c78a8", "#d9730d"


def picture(name: str, marks: Marks) -> str:
    """An SVG document, in two columns."""
    rows = (len(marks.figures) + 1) // 2
    height = TOP + rows * ROW + 16
    title = f"{name}: {marks.accuracy:.1%} ± {marks.standard_error:.1%}"
    about = (
        f"{len(marks.figures)} tasks, {marks.asked} questions, {marks.unparsed} replies unparsed."
        " Line: standard error; orange: mean of the training candidates."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
            f' width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12"'
            f' fill="{INK}" role="img" aria-label="{escape(title)}">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="28" font-size="18" font-weight="bold">{escape(title)}</text>',
            f'<text x="16" y="48">{escape(about)}</text>',
            *_column(marks.figures[:rows], 0, rows),
            *_column(marks.figures[rows:], WIDTH // 2, rows),
            "</svg>\n",
        ]
    )


def _column(figures: Sequence[TaskFigure], left: int, rows: int) -> list[str]:
    zero = left + LABEL
    lines = []
    for tenth in range(0, 11, 5):
        x = zero + BAR * tenth / 10
        lines.append(
            f'<line x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{TOP + rows * ROW}" stroke="{PALE}"/>'
            f'<text x="{x}" y="{TOP - 10}" text-anchor="middle" font-size="10">{tenth * 10}%</text>'
        )
    return lines + [_row(f, zero, TOP + i * ROW) for i, f in enumerate(figures)]


def _row(figure: TaskFigure, zero: int, y: int) -> str:
    def at(share: float) -> float:
        return round(zero + BAR * min(1.0, max(0.0, share)), 1)

    low, high = figure.accuracy - figure.standard_error, figure.accuracy + figure.standard_error
    known = standard_tasks().get(figure.task)
    tick = ""
    if known is not None:
        x = at(known.mean)
        tick = (
            f'<line x1="{x}" x2="{x}" y1="{y + 1}" y2="{y + 15}" stroke="{ORANGE}"'
            ' stroke-width="2"/>'
        )
    label = figure.task.replace("_", " ")
    label = label if len(label) <= 32 else label[:31] + "…"
    return (
        f'<text x="{zero - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{zero}" y="{y + 3}" width="{round(at(figure.accuracy) - zero, 1)}" height="10"'
        f' fill="{BLUE}"/>'
        f'<line x1="{at(low)}" x2="{at(high)}" y1="{y + 8}" y2="{y + 8}" stroke="{INK}"/>{tick}'
        f'<text x="{zero + BAR + 8}" y="{y + 12}">{figure.accuracy:.0%}</text>'
    )
